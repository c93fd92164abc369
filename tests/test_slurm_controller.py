import threading
import time
from pathlib import Path

import pytest

from preemptd.errors import ProviderError
from preemptd_providers.slurm.controller import Configuration, Record, environment, is_reachable
from preemptd_providers.slurm.inspection import Expectations, Inspection, about_cluster, about_job
from tests.slurm_world import CONFIG, JOB, NODE, SlurmWorld, row
from tests.waiting import wait_until


@pytest.fixture
def world(tmp_path: Path) -> SlurmWorld:
    return SlurmWorld(tmp_path)


def test_one_question_gives_the_row_whatever_zone_and_formats_the_user_likes(world: SlurmWorld) -> None:
    world.say(row=row(end=7200))
    taste = {
        "TZ": "America/New_York",
        "SLURM_TIME_FORMAT": "relative",
        "SQUEUE_STATES": "PENDING",
        "SLURM_CLUSTERS": "elsewhere",
    }

    found = world.controller(**taste).row()

    assert (found.state, found.restarts) == ("RUNNING", 0)
    assert found.end == pytest.approx(time.time() + 7200, abs=60)
    (call,) = world.calls("squeue")
    assert call["arguments"] == [
        *("-h", "-t", "all", "-j", "12", "-O"),
        "State:|,Reason:|,EndTime:|,PreemptTime:|,RestartCnt:|,JobID:|,ArrayJobID:|,ArrayTaskID:|,HetJobID:|",
    ]
    assert call["environment"] == {"TZ": "UTC0", "SLURM_CLUSTERS": None, "SLURM_CPU_BIND": None}


def test_the_last_task_of_an_array_asks_once_for_all_tasks_and_then_for_itself(world: SlurmWorld) -> None:
    world.say(ids=["12", "12", "2", "N/A"], others=["PENDING|None|N/A|N/A|7|13|12|1|N/A|\n"])
    controller = world.controller()

    rows = [controller.row(), controller.row()]

    assert [(row.id, row.restarts) for row in rows] == [("12_2", 0), ("12_2", 0)]
    assert [call["arguments"][4] for call in world.calls("squeue")] == ["12", "12_2"]  # type: ignore[index]


def test_a_job_that_a_task_or_a_component_has_submitted_asks_for_itself(world: SlurmWorld) -> None:
    inherited = {"SLURM_ARRAY_JOB_ID": "7", "SLURM_ARRAY_TASK_ID": "1", "SLURM_HET_JOB_ID": "8"}

    assert world.controller(**inherited).row().id == "12"
    assert world.calls("squeue")[0]["arguments"][4] == "12"  # type: ignore[index]


def test_its_commands_outlive_the_signals_that_slurm_sends_to_every_process(world: SlurmWorld) -> None:
    world.controller().row()

    assert world.calls("squeue")[0]["ignored"] == ["SIGTERM", "SIGUSR1", "SIGUSR2"]


ODD = {
    "the controller is away": {
        "status": 1,
        "stderr": "slurm_load_jobs error: Unable to contact slurm controller (connect failure)\n",
    },
    "the job is forgotten": {"status": 1, "stderr": "slurm_load_jobs error: Invalid job id specified\n"},
    "nothing": {},
    "a traceback": {"stdout": "Traceback (most recent call last):\n"},
    "no text": {"stdout": "\x00\x01", "status": 0},
    "a row and a failure": {"stdout": "RUNNING|None|N/A|N/A|0|12|12|N/A|N/A|\n", "status": 1},
}


@pytest.mark.parametrize("said", ODD.values(), ids=ODD)
def test_anything_but_a_row_is_no_answer(world: SlurmWorld, said: dict[str, object]) -> None:
    world.say(squeue=said)

    with pytest.raises(ProviderError, match="squeue") as raised:
        world.controller().row()

    assert "\n" not in str(raised.value)


def test_a_complaint_is_handed_on(world: SlurmWorld) -> None:
    world.say(squeue=ODD["the controller is away"])

    with pytest.raises(ProviderError, match="Unable to contact slurm controller"):
        world.controller().row()


def test_a_command_that_hangs_is_ended_after_its_limit(world: SlurmWorld) -> None:
    world.say(hang=["squeue"])
    began = time.monotonic()

    with pytest.raises(ProviderError, match=r"squeue -h: no answer in 0\.5 s"):
        world.controller().row(0.5)

    assert time.monotonic() - began < 20
    assert world.helpers.pids == frozenset()


def test_closing_breaks_a_question_off_and_answers_no_other(world: SlurmWorld) -> None:
    world.say(hang=["squeue"])
    controller = world.controller()
    said: list[str] = []

    def ask() -> None:
        with pytest.raises(ProviderError) as raised:
            controller.row(60)
        said.append(str(raised.value))

    asking = threading.Thread(target=ask, daemon=True)
    asking.start()
    wait_until(lambda: world.calls("squeue"))
    controller.close()
    asking.join(20)

    assert said
    with pytest.raises(ProviderError, match="closed"):
        controller.row()
    assert len(world.calls("squeue")) == 1


def test_without_the_programs_nothing_is_reachable(tmp_path: Path) -> None:
    both, one = SlurmWorld(tmp_path), tmp_path / "one"
    one.mkdir()
    lone = SlurmWorld(one, "squeue")

    assert is_reachable(both.environ())
    assert not is_reachable({**lone.environ(), "PATH": str(lone.bin)})
    assert not is_reachable({"PATH": ""})
    with pytest.raises(ProviderError, match="there is no scontrol on the PATH"):
        lone.controller(PATH=str(lone.bin)).record("12")


def test_the_environment_keeps_what_leads_to_the_controller() -> None:
    kept = environment({"SLURM_CONF": "/c", "SLURM_JOB_ID": "12", "SQUEUE_FORMAT": "%i", "SCONTROL_ALL": "1"})

    assert kept == {
        "SLURM_CONF": "/c",
        "SLURM_JOB_ID": "12",
        "LC_ALL": "C",
        "TZ": "UTC0",
        "SLURM_TIME_FORMAT": "standard",
    }


# Settings


def test_the_record_says_whether_the_job_can_come_back(world: SlurmWorld) -> None:
    assert world.controller().record("12") == Record(requeue=True, batch=True)
    world.say(job=JOB.replace("Requeue=1", "Requeue=0").replace("BatchFlag=1", "BatchFlag=0"))
    assert world.controller().record("12") == Record(requeue=False, batch=False)
    world.say(job="JobId=12\n")
    assert world.controller().record("12") == Record(requeue=None, batch=None)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (CONFIG, Configuration(7.0, signals_batch_scripts=False)),
        (CONFIG.replace("7 sec", "1 sec"), Configuration(5.0, signals_batch_scripts=False)),
        ("nothing of it", Configuration(30.0, signals_batch_scripts=False)),
        (
            CONFIG.replace("SlurmctldParameters     = (null)", "SlurmctldParameters = a,preempt_send_user_signal"),
            Configuration(7.0, signals_batch_scripts=True),
        ),
        (
            CONFIG.replace("PreemptParameters       = (null)", "PreemptParameters = send_user_signal"),
            Configuration(7.0, signals_batch_scripts=True),
        ),
    ],
)
def test_the_clusters_settings_are_read(world: SlurmWorld, text: str, expected: Configuration) -> None:
    world.say(config=text)

    assert world.controller().configuration() == expected


def test_a_nodes_state_is_words_and_a_reason(world: SlurmWorld) -> None:
    world.say(node=NODE.format("ALLOCATED+DRAIN*", "spot notice"))
    words, reason = world.controller().node("n1")

    assert words == {"ALLOCATED", "DRAIN"}
    assert reason == "spot notice"


BATCH = Expectations(wants_requeue=True, in_batch=True, has_canary=True, interval=30.0)


@pytest.mark.parametrize(
    ("record", "expected", "says"),
    [
        (Record(requeue=True, batch=True), BATCH, ""),
        (Record(requeue=None, batch=None), BATCH, ""),
        (Record(requeue=False, batch=True), BATCH, "#SBATCH --requeue"),
        (Record(requeue=True, batch=False), BATCH, "srun or salloc"),
        (
            Record(requeue=False, batch=False),
            Expectations(wants_requeue=False, in_batch=True, has_canary=True, interval=30),
            "",
        ),
    ],
)
def test_what_keeps_a_job_from_coming_back_is_said_on_one_line(
    record: Record, expected: Expectations, says: str
) -> None:
    text = about_job(record, "12", expected)

    assert bool(text) == bool(says)
    assert says in text
    assert "\n" not in text


@pytest.mark.parametrize(
    ("signals", "canary", "in_batch", "said"),
    [(False, False, True, True), (True, False, True, False), (False, True, True, False), (False, False, False, False)],
)
def test_a_cluster_that_is_only_asked_now_and_then_is_said_to_be_so(
    signals: bool, canary: bool, in_batch: bool, said: bool
) -> None:
    expected = Expectations(wants_requeue=True, in_batch=in_batch, has_canary=canary, interval=30.0)

    text = about_cluster(Configuration(5.0, signals_batch_scripts=signals), expected)

    assert ("each 30 s" in text) is said


def test_the_inspection_says_each_thing_once_and_asks_until_it_was_answered(world: SlurmWorld) -> None:
    world.say(job={"status": 1, "stderr": "slurm_load_jobs error: Socket timed out\n"})
    provider = world.provider()
    warnings: list[str] = []
    no_canary = Expectations(wants_requeue=True, in_batch=True, has_canary=False, interval=30.0)
    inspection = Inspection(provider._attempt, no_canary, warnings.append)

    first = inspection(world.controller())
    world.say(job=JOB.replace("Requeue=1", "Requeue=0"))
    second = inspection(world.controller())

    assert (first, second) == (False, True)
    assert provider._attempt.kill_wait == 7.0
    assert len(warnings) == 2
    provider.close()
