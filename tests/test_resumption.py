"""Which W&B run a job goes on with: the decisions, the file, its lock, and what the command finds."""

import json
import os
import threading
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest

from preemptd.model import Run
from preemptd.resumption.page import HeldError, Page, Place
from preemptd.resumption.record import JobName, Record, decode, encode, job_name, updated, variables
from tests.watching import Watch

RUN = Run("abc12345", 100, 99, "/there/wandb/run-20261120_120000-abc12345")
OTHER = Run("def67890", 200, 199, "/there/wandb/run-20261120_120000-def67890")
KEPT = Record("abc12345", directory=RUN.directory)
ALLOW = {"WANDB_RUN_ID": "abc12345", "WANDB_RESUME": "allow"}
SLURM = {"SLURM_JOB_ID": "4711", "SLURM_PROCID": "0"}


# -- which job ---------------------------------------------------------------------------------------------------


def name(environ: Mapping[str, str], job_id: str | None = None, argv: str = "python a.py", cwd: str = "/x") -> JobName:
    found = job_name(environ, job_id, argv.split(), cwd)
    assert found is not None
    return found


def test_a_command_without_a_job_has_no_name() -> None:
    assert job_name({}, None, ["python", "a.py"], "/x") is None
    assert job_name({"SLURM_JOB_ID": "", "SLURM_RESTART_COUNT": "1"}, None, ["python"], "/x") is None
    assert job_name({"SLURM_JOB_ID": "../../etc"}, None, ["python"], "/x") is None


def test_a_job_id_names_the_job_whatever_the_command_and_the_scheduler() -> None:
    assert name({}, "run42") == name(SLURM, "run42", "python b.py", "/y") == JobName("run42")
    assert JobName("run42").continues(KEPT)


def test_a_restart_by_slurm_continues_what_an_earlier_start_of_the_same_job_has_left() -> None:
    first, again = name(SLURM), name({**SLURM, "SLURM_RESTART_COUNT": "1"})

    assert first.name == again.name
    assert again.continues(replace(KEPT, restart=0))
    assert not first.continues(replace(KEPT, restart=0))
    assert not again.continues(replace(KEPT, restart=1))
    assert not again.continues(KEPT)


@pytest.mark.parametrize(
    "other",
    [
        name({**SLURM, "SLURM_JOB_ID": "4712"}),
        name({**SLURM, "SLURM_PROCID": "1"}),
        name({**SLURM, "SLURM_CLUSTER_NAME": "b"}),
        name(SLURM, argv="python a.py --seed 2"),
        name(SLURM, cwd="/y"),
    ],
)
def test_another_job_rank_cluster_command_or_directory_is_another_name(other: JobName) -> None:
    assert other.name != name(SLURM).name


def test_what_slurm_names_is_never_what_a_user_may_name() -> None:
    assert name(SLURM).name.startswith("_slurm-4711-")


# -- what the command gets ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("environ", "record", "given"),
    [
        ({}, KEPT, ALLOW),
        ({}, Record(), {}),
        ({}, replace(KEPT, several=True), {}),
        ({}, replace(KEPT, lost_by_sync=True), {}),
        ({}, replace(KEPT, fruitless=1), ALLOW),
        ({}, replace(KEPT, fruitless=2), {}),
        ({"WANDB_RUN_ID": "mine"}, KEPT, {}),
        ({"WANDB_RESUME": "must"}, KEPT, {}),
        ({"WANDB_RESUME": ""}, KEPT, {}),
        ({"WANDB_PROJECT": "p", "WANDB_RUN_GROUP": "g", "WANDB_NAME": "n"}, KEPT, ALLOW),
        ({"WANDB_SWEEP_ID": "s"}, Record(), {"WANDB_RESUME": "allow"}),
        ({"WANDB_SWEEP_ID": "s", "WANDB_RUN_ID": "of the agent"}, KEPT, {"WANDB_RESUME": "allow"}),
        ({"WANDB_SWEEP_ID": "s", "WANDB_RESUME": "never"}, KEPT, {}),
        ({}, replace(KEPT, sweep=True, several=True), {"WANDB_RESUME": "allow"}),
    ],
)
def test_the_id_is_given_where_one_run_is_known_and_nobody_else_has_spoken(
    environ: Mapping[str, str], record: Record, given: Mapping[str, str]
) -> None:
    assert variables(environ, record) == given


def test_the_first_run_of_an_attempt_is_kept() -> None:
    assert updated(Record(), [RUN], sweep=False, adopted=False) == KEPT
    assert updated(KEPT, [RUN], sweep=False, adopted=False) == KEPT


@pytest.mark.parametrize(
    "second",
    [
        OTHER,
        replace(RUN, core_pid=200, owner_pid=199),
        replace(RUN, directory=RUN.directory.replace("120000", "120500")),
    ],
    ids=["another run", "the same run by another process", "the same run begun anew"],
)
def test_a_second_wandb_init_in_one_attempt_makes_the_id_useless_for_good(second: Run) -> None:
    record = updated(Record(), [RUN, second], sweep=False, adopted=False)

    assert record.several
    assert updated(record, [RUN], sweep=False, adopted=False).several


def test_a_script_that_chooses_another_id_is_believed() -> None:
    assert updated(KEPT, [OTHER], sweep=False, adopted=False) == Record(OTHER.run_id, directory=OTHER.directory)


def test_a_run_that_came_after_the_one_an_earlier_preemptd_saw_is_a_second_one() -> None:
    assert updated(KEPT, [OTHER], sweep=False, adopted=True).several
    assert not updated(KEPT, [RUN], sweep=False, adopted=True).several


# -- the file ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("record", [Record(), KEPT, Record("a b", True, True, True, 3, 1, "/x")])
def test_what_is_written_is_read(record: Record) -> None:
    assert decode("job", encode("job", record)) == record


DAMAGED = [
    b"",
    b"{",
    b"\xff\xfe",
    b"null",
    b"[]",
    b"[" * 60000,
    b'{"run_id": "abc"}',
    b'{"preemptd": 2, "job": "job", "run_id": "abc"}',
    b'{"preemptd": 1, "job": "other", "run_id": "abc"}',
    b'{"preemptd": 1, "job": "job", "run_id": "../../x"}',
    b'{"preemptd": 1, "job": "job", "run_id": "a\\nLD_PRELOAD=x"}',
    b'{"preemptd": 1, "job": "job", "run_id": "a\\u0000b"}',
    b'{"preemptd": 1, "job": "job", "run_id": ""}',
    b'{"preemptd": 1, "job": "job", "run_id": 7}',
    b'{"preemptd": 1, "job": "job", "run_id": "%s"}' % (b"a" * 129),
    b'{"preemptd": 1, "job": "job", "run_id": "abc", "restart": "1"}',
]


@pytest.mark.parametrize("text", DAMAGED, ids=range(len(DAMAGED)))
def test_a_damaged_or_foreign_record_is_refused(text: bytes) -> None:
    with pytest.raises(ValueError, match=r"."):
        decode("job", text)


def test_a_page_is_replaced_as_a_whole_and_leaves_nothing_else(tmp_path: Path) -> None:
    page = Page(str(tmp_path / "made" / "wandb"), "job")
    assert page.lock(0)
    page.write(KEPT)
    page.write(replace(KEPT, several=True))
    read = page.read()
    page.unlock()

    assert read == replace(KEPT, several=True)
    assert sorted(path.name for path in (tmp_path / "made" / "wandb").iterdir()) == ["job.json", "job.lock"]


def test_a_page_that_cannot_be_written_leaves_nothing_behind(tmp_path: Path) -> None:
    (tmp_path / "job.json").mkdir()
    with pytest.raises(OSError, match="Is a directory"):
        Page(str(tmp_path), "job").write(KEPT)

    assert [path.name for path in tmp_path.iterdir()] == ["job.json"]


def test_the_lock_is_held_by_one_and_says_by_whom(tmp_path: Path) -> None:
    first, second = Page(str(tmp_path), "job"), Page(str(tmp_path), "job")
    assert first.lock(0)
    with pytest.raises(HeldError, match=f"pid {os.getpid()} on "):
        second.lock(0.1)
    assert Page(str(tmp_path), "other").lock(0)
    first.unlock()

    assert second.lock(0)
    second.unlock()


def test_a_lock_that_is_given_up_in_time_is_got(tmp_path: Path) -> None:
    first, second = Page(str(tmp_path), "job"), Page(str(tmp_path), "job")
    first.lock(0)
    timer = threading.Timer(0.1, first.unlock)
    timer.start()
    got = second.lock(20)
    second.unlock()
    timer.join()

    assert got


def test_the_record_moves_with_the_checkpoints_where_they_are_known(tmp_path: Path) -> None:
    assert Place.of(None, "/state") == Place("/state/wandb")
    assert Place.of(str(tmp_path), "/state") == Place(f"{tmp_path}/.preemptd/wandb", str(tmp_path))


def test_nothing_is_put_into_a_checkpoint_directory_before_the_first_checkpoint(tmp_path: Path) -> None:
    directory = tmp_path / "checkpoints"
    place = Place.of(str(directory), "/state")
    answers = [place.ready]
    directory.mkdir()
    answers.append(place.ready)
    (directory / ".preemptd").mkdir()
    answers.append(place.ready)
    (directory / "step-1").touch()

    assert [*answers, place.ready] == [False, False, False, True]


# -- through the real program ------------------------------------------------------------------------------------

SHOW = ["sh", "-c", 'echo "${WANDB_RUN_ID-none} ${WANDB_RESUME-none}"; exit ${CODE-1}']


def show(directory: Path, *options: str, env: Mapping[str, str] | None = None, name: str = "job") -> tuple[str, Watch]:
    with Watch(directory, SHOW, "--state-dir", str(directory / "state"), *options, env=env, name=name) as watch:
        watch.wait()
    return watch.out.strip(), watch


def keep(directory: Path, job: str, record: Record = KEPT) -> Path:
    directory.mkdir(parents=True)
    Page(str(directory), job).write(record)
    return directory / f"{job}.json"


def test_a_job_started_again_finds_the_run_in_its_environment(tmp_path: Path) -> None:
    keep(tmp_path / "state" / "wandb", "run42")
    found, watch = show(tmp_path, "--job-id", "run42")

    assert found == "abc12345 allow"
    assert [line["run_id"] for line in watch.lines("resumes")] == ["abc12345"]
    assert "preemptd: W&B run abc12345 is to go on\n" in watch.err


def test_with_a_checkpoint_directory_the_id_comes_from_there_alone(tmp_path: Path) -> None:
    keep(tmp_path / "state" / "wandb", "run42", Record("of-the-state"))
    (tmp_path / "c").mkdir()
    options = ("--job-id", "run42", "--checkpoint-dir", str(tmp_path / "c"))
    before, _ = show(tmp_path, *options)
    keep(tmp_path / "c" / ".preemptd" / "wandb", "run42")
    after, _ = show(tmp_path, *options)

    assert (before, after) == ("none none", "abc12345 allow")


def test_a_job_that_is_done_is_forgotten(tmp_path: Path) -> None:
    file = keep(tmp_path / "state" / "wandb", "run42")
    found, _ = show(tmp_path, "--job-id", "run42", env={"CODE": "0"})
    after, _ = show(tmp_path, "--job-id", "run42")

    assert (found, after) == ("abc12345 allow", "none none")
    assert not file.exists()


def test_without_a_job_id_nothing_is_given_and_nothing_is_kept(tmp_path: Path) -> None:
    found, _ = show(tmp_path)

    assert found == "none none"
    assert not (tmp_path / "state").exists()


def test_a_slurm_job_that_was_requeued_goes_on_without_a_job_id(tmp_path: Path) -> None:
    job = job_name(SLURM, None, SHOW, str(tmp_path))
    assert job is not None
    keep(tmp_path / "state" / "wandb", job.name, replace(KEPT, restart=0))
    first, _ = show(tmp_path, env=SLURM)
    again, _ = show(tmp_path, env={**SLURM, "SLURM_RESTART_COUNT": "1"})
    other, _ = show(tmp_path, env={**SLURM, "SLURM_JOB_ID": "4712", "SLURM_RESTART_COUNT": "1"})

    assert (first, again, other) == ("none none", "abc12345 allow", "none none")


@pytest.mark.parametrize(
    ("env", "options", "given"),
    [
        ({"WANDB_RUN_ID": "mine"}, (), "mine none"),
        ({"WANDB_RESUME": "never"}, (), "none never"),
        ({"WANDB_SWEEP_ID": "s", "WANDB_RUN_ID": "theirs"}, (), "theirs allow"),
        ({}, ("--no-wandb",), "none none"),
        ({"WANDB_SWEEP_ID": "s"}, ("--no-wandb",), "none none"),
        ({}, ("--dry-run",), "none none"),
    ],
)
def test_what_the_user_has_said_stays(
    tmp_path: Path, env: Mapping[str, str], options: tuple[str, ...], given: str
) -> None:
    keep(tmp_path / "state" / "wandb", "run42")
    found, watch = show(tmp_path, "--job-id", "run42", *options, env=env)

    assert found == given
    assert watch.lines("resumes") == []


def test_a_sweeps_command_resumes_without_a_job_id(tmp_path: Path) -> None:
    assert show(tmp_path, env={"WANDB_SWEEP_ID": "s", "WANDB_RUN_ID": "theirs"})[0] == "theirs allow"


def test_a_rehearsal_is_no_start_of_the_job(tmp_path: Path) -> None:
    env = {**SLURM, "SLURM_RESTART_COUNT": "1", "XDG_STATE_HOME": str(tmp_path)}
    job = job_name(SLURM, None, SHOW, str(tmp_path))
    assert job is not None
    file = keep(tmp_path / "preemptd" / "wandb", job.name, replace(KEPT, restart=0))
    with Watch(tmp_path, SHOW, "--after", "0", "--grace", "2", env={**env, "CODE": "0"}, verb="rehearse") as watch:
        watch.wait()

    assert "none none" in watch.out
    assert json.loads(file.read_bytes())["run_id"] == "abc12345"
