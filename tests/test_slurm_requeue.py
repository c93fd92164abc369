import time
from dataclasses import replace
from pathlib import Path
from signal import SIGTERM, SIGUSR1

import pytest

from preemptd.errors import ProviderError
from preemptd.notices import Kind, Meaning
from preemptd.provider import Conclusion, Outcome, Requeue
from preemptd_providers.slurm.classifier import Bringing, Verdict
from preemptd_providers.slurm.provider import Slurm
from preemptd_providers.slurm.requeueing import refusal
from tests.slurm_world import SlurmWorld, row

pytestmark = pytest.mark.slow

ENDED = Conclusion(Outcome(0), preempted=True)
ALL = Requeue()


@pytest.fixture
def world(tmp_path: Path) -> SlurmWorld:
    return SlurmWorld(tmp_path)


def verdict(kind: Kind, meaning: Meaning = Meaning.PREEMPTED, bringing: Bringing = Bringing.OURS) -> Verdict:
    return Verdict(kind, meaning, None, bringing)


# Whether


@pytest.mark.parametrize("kind", [Kind.PREEMPT, Kind.NODE_FAILURE, Kind.TIME_LIMIT, Kind.REQUESTED])
def test_a_preempted_job_is_brought_back(kind: Kind) -> None:
    assert refusal(verdict(kind), ENDED, ALL, 0) is None


@pytest.mark.parametrize(
    ("kind", "wish"),
    [
        (Kind.PREEMPT, "preempt"),
        (Kind.NODE_FAILURE, "preempt"),
        (Kind.TIME_LIMIT, "timelimit"),
        (Kind.REQUESTED, "request"),
    ],
)
def test_requeue_on_chooses_by_kind(kind: Kind, wish: str) -> None:
    only = Requeue(on=frozenset({wish}))
    others = Requeue(on=ALL.on - {wish})

    assert refusal(verdict(kind), ENDED, only, 0) is None
    why = refusal(verdict(kind), ENDED, others, 0)
    assert why is not None
    assert "--requeue-on" in why


NEVER = {
    "cancelled": (verdict(Kind.CANCELLED, Meaning.STOPPED, Bringing.NOBODYS), ENDED, ALL, "cancelled"),
    "stopped by a bare SIGTERM": (
        verdict(Kind.REQUESTED, Meaning.STOPPED, Bringing.NOBODYS),
        ENDED,
        ALL,
        "not requeued",
    ),
    "superseded": (verdict(Kind.NODE_FAILURE, Meaning.SUPERSEDED, Bringing.SLURMS), ENDED, ALL, ""),
    "SLURM did it": (verdict(Kind.PREEMPT, bringing=Bringing.SLURMS), ENDED, ALL, "itself"),
    "somebody did it": (verdict(Kind.REQUEUED, bringing=Bringing.SLURMS), ENDED, ALL, "itself"),
    "done": (verdict(Kind.PREEMPT), replace(ENDED, preempted=False), ALL, ""),
    "stuck": (verdict(Kind.PREEMPT), replace(ENDED, stuck=True), ALL, "nothing new"),
    "often enough": (verdict(Kind.PREEMPT), ENDED, Requeue(at_most=2), "--max-requeues is 2"),
    "not wanted": (verdict(Kind.PREEMPT), ENDED, Requeue(on=frozenset()), "(nothing)"),
}


@pytest.mark.parametrize(("what", "conclusion", "wishes", "says"), NEVER.values(), ids=NEVER)
def test_others_are_not(what: Verdict, conclusion: Conclusion, wishes: Requeue, says: str) -> None:
    why = refusal(what, conclusion, wishes, 2)

    assert why is not None
    assert says in why


def test_max_requeues_counts_restarts() -> None:
    assert refusal(verdict(Kind.PREEMPT), ENDED, Requeue(at_most=3), 2) is None
    assert refusal(verdict(Kind.PREEMPT), ENDED, Requeue(at_most=0), 0) is not None


# How


def in_grace(world: SlurmWorld, requeue: Requeue | None = None, **environ: str) -> Slurm:
    """Make a provider that knows of a grace."""
    world.say(row=row(end=15, preempted=-5))
    provider = world.provider(None, requeue, **environ)
    notice = provider.conclude(5.0)
    assert notice is not None
    assert notice.kind is Kind.PREEMPT
    return provider


def test_the_job_is_requeued_after_one_more_look(world: SlurmWorld) -> None:
    provider = in_grace(world)
    looks = len(world.calls("squeue"))

    said = provider.settle(ENDED, 10.0)

    assert said == "requeued job 12 (preempt, restart 1)"
    assert len(world.calls("squeue")) == looks + 1
    assert [call["arguments"] for call in world.calls("scontrol")] == [["requeue", "12"]]
    provider.close()


def test_of_an_array_the_one_task_is_requeued(world: SlurmWorld) -> None:
    world.say(ids=["12", "12", "3", "N/A"])
    provider = in_grace(world, SLURM_ARRAY_JOB_ID="12", SLURM_ARRAY_TASK_ID="3")
    provider.settle(ENDED, 10.0)

    assert world.calls("scontrol", "requeue")[0]["arguments"] == ["requeue", "12_3"]
    provider.close()


@pytest.mark.parametrize(
    "inherited",
    [{"SLURM_ARRAY_JOB_ID": "7", "SLURM_ARRAY_TASK_ID": "1"}, {"SLURM_HET_JOB_ID": "8", "SLURM_HET_SIZE": "2"}],
    ids=["array", "heterogeneous"],
)
def test_a_job_that_was_submitted_inside_another_requeues_itself(world: SlurmWorld, inherited: dict[str, str]) -> None:
    provider = in_grace(world, None, **inherited)

    assert provider.settle(ENDED, 10.0) == "requeued job 12 (preempt, restart 1)"
    assert world.calls("scontrol", "requeue")[0]["arguments"] == ["requeue", "12"]
    provider.close()


def test_a_component_of_a_heterogeneous_job_is_requeued_by_its_leader(world: SlurmWorld) -> None:
    world.say(ids=["12", "12", "N/A", "11"])
    provider = in_grace(world)
    provider.settle(ENDED, 10.0)

    assert world.calls("scontrol", "requeue")[0]["arguments"] == ["requeue", "11"]
    provider.close()


def test_the_row_of_another_job_requeues_nothing(world: SlurmWorld) -> None:
    provider = in_grace(world)
    world.say(ids=["7", "7", "1", "N/A"])

    with pytest.raises(ProviderError, match="job 12 is not requeued: squeue does not know"):
        provider.settle(ENDED, 1.0)
    assert world.calls("scontrol", "requeue") == []
    provider.close()


@pytest.mark.parametrize(
    "seen",
    [
        row("COMPLETING", end=0),
        row("COMPLETING", end=0, preempted=-5),
        row("PENDING", "BeginTime", restarts=1),
        row("COMPLETING", end=None, restarts=1, preempted=-1),
    ],
    ids=["cancelled", "cancelled in the grace", "runs elsewhere", "requeued by SLURM"],
)
def test_what_happens_between_the_two_looks_turns_it_off(world: SlurmWorld, seen: list[object]) -> None:
    provider = in_grace(world)
    if seen[0] == "COMPLETING":
        provider.on_signal(SIGTERM)
    world.say(row=seen)

    provider.settle(ENDED, 10.0)

    assert world.calls("scontrol", "requeue") == ([] if seen[0] == "COMPLETING" else world.calls("scontrol"))
    provider.close()


def test_a_job_that_is_not_preempted_is_never_asked_about(world: SlurmWorld) -> None:
    provider = world.provider()
    assert provider.conclude(5.0) is None
    looks = len(world.calls("squeue"))

    assert provider.settle(replace(ENDED, preempted=False), 10.0) == ""
    assert (len(world.calls("squeue")), world.calls("scontrol")) == (looks, [])
    provider.close()


@pytest.mark.parametrize("where", [{"SLURM_PROCID": "1"}, {"SLURM_NODEID": "1", "SLURM_PROCID": "4"}])
def test_only_rank_0_requeues(world: SlurmWorld, where: dict[str, str]) -> None:
    provider = in_grace(world, None, **where)

    assert provider.settle(ENDED, 10.0) == ""
    assert world.calls("scontrol") == []
    provider.close()


def test_a_job_that_is_pending_already_was_requeued(world: SlurmWorld) -> None:
    world.say(requeue={"status": 1, "stderr": "Job is pending execution for job 12\n"})
    provider = in_grace(world)

    assert provider.settle(ENDED, 10.0).startswith("requeued job 12")
    assert len(world.calls("scontrol", "requeue")) == 1
    provider.close()


REFUSED = {
    "Requested operation is presently disabled for job 12": "#SBATCH --requeue",
    "Only batch jobs are accepted or processed for job 12": "sbatch",
    "Access/permission denied for job 12": "another user",
    "Job not heterogeneous job leader for job 13": "leader",
    "Invalid job id specified": "does not know it",
}


@pytest.mark.parametrize(("complaint", "says"), REFUSED.items(), ids=REFUSED)
def test_a_job_that_cannot_be_requeued_is_one_clear_line_and_one_try(
    world: SlurmWorld, complaint: str, says: str
) -> None:
    world.say(requeue={"status": 1, "stderr": f"{complaint}\n"})
    provider = in_grace(world)

    with pytest.raises(ProviderError, match="job 12 is not requeued") as raised:
        provider.settle(ENDED, 10.0)

    assert says in str(raised.value)
    assert "\n" not in str(raised.value)
    assert len(world.calls("scontrol", "requeue")) == 1
    provider.close()


def test_a_passing_fault_is_tried_again_three_times_at_most(world: SlurmWorld) -> None:
    fault = {"status": 1, "stderr": "slurm_requeue error: Slurm backup controller in standby mode\n"}
    world.say(requeue=[fault, {"status": 0}])
    lucky = in_grace(world)
    said = lucky.settle(ENDED, 10.0)
    world.say(requeue=fault)
    unlucky = in_grace(world)
    with pytest.raises(ProviderError, match="standby mode"):
        unlucky.settle(ENDED, 10.0)

    assert said.startswith("requeued job 12")
    assert len(world.calls("scontrol", "requeue")) == 2 + 3
    for provider in (lucky, unlucky):
        provider.close()


SILENCE = {"status": 1, "stderr": "slurm_requeue error: Unable to contact slurm controller (connect failure)\n"}


def test_a_controller_that_is_away_is_asked_for_as_long_as_there_is_time_with_a_look_before(world: SlurmWorld) -> None:
    world.say(requeue=[SILENCE] * 4 + [{"status": 0}])
    provider = in_grace(world)
    looks = len(world.calls("squeue"))

    assert provider.settle(ENDED, 60.0) == "requeued job 12 (preempt, restart 1)"
    assert len(world.calls("scontrol", "requeue")) == 5
    assert len(world.calls("squeue")) == looks + 5
    provider.close()


def test_a_job_that_is_cancelled_once_the_controller_is_back_is_not_requeued(world: SlurmWorld) -> None:
    cancelled = row("COMPLETING", end=0, preempted=-5)
    world.say(requeue=[{**SILENCE, "row": cancelled}, {"status": 0}])
    provider = in_grace(world)

    assert provider.settle(ENDED, 60.0) == "not requeued: cancelled"
    assert len(world.calls("scontrol", "requeue")) == 1
    provider.close()


def test_that_slurm_is_waited_for_is_said_once(world: SlurmWorld) -> None:
    provider = in_grace(world)
    world.say(squeue={"status": 1, "stderr": "slurm_load_jobs error: Unable to contact slurm controller\n"})

    with pytest.raises(ProviderError, match="job 12 is not requeued"):
        provider.settle(ENDED, 8.0)

    assert len(world.calls("squeue")) > 4
    assert len(said_silent(world)) == 1
    provider.close()


def said_silent(world: SlurmWorld) -> list[str]:
    return [warning for warning in world.warnings if "slurmctld does not answer" in warning]


def test_a_controller_that_has_forgotten_the_job_is_not_asked_for_ever(world: SlurmWorld) -> None:
    provider = in_grace(world)
    world.say(squeue={"status": 1, "stderr": "slurm_load_jobs error: Invalid job id specified\n"})
    began = time.monotonic()

    with pytest.raises(ProviderError, match="Invalid job id"):
        provider.settle(ENDED, 600.0)

    assert time.monotonic() - began < 60
    assert world.calls("scontrol") == []
    provider.close()


def test_a_requeue_without_an_answer_may_have_been_carried_out(world: SlurmWorld) -> None:
    pending = {"status": 1, "stderr": "Job is pending execution for job 12\n"}
    world.say(requeue=[{"hang": True}, pending])
    provider = in_grace(world)

    assert provider.settle(ENDED, 20.0).startswith("requeued job 12")
    assert len(world.calls("scontrol", "requeue")) == 2
    provider.close()


def test_the_budget_is_kept_when_nobody_answers(world: SlurmWorld) -> None:
    provider = in_grace(world)
    world.say(hang=["squeue", "requeue"])
    began = time.monotonic()

    with pytest.raises(ProviderError, match="job 12 is not requeued"):
        provider.settle(ENDED, 2.0)

    assert time.monotonic() - began < 20
    assert world.calls("scontrol") == []  # who cannot ask whether it was cancelled must not resurrect it
    provider.close()


@pytest.mark.parametrize(("delay", "start"), [(60.0, "now+60"), (1.0, "now+5"), (40.2, "now+41")])
def test_the_delay_is_set_after_the_requeue_and_not_too_short_for_slurm(
    world: SlurmWorld, delay: float, start: str
) -> None:
    provider = in_grace(world, Requeue(delay=delay))

    said = provider.settle(ENDED, 10.0)

    assert [call["arguments"] for call in world.calls("scontrol")] == [
        ["requeue", "12"],
        ["update", "JobId=12", f"StartTime={start}"],
    ]
    assert f"starts in {start.removeprefix('now+')} s" in said
    provider.close()


def test_a_delay_that_fails_is_no_failed_requeue(world: SlurmWorld) -> None:
    world.say(update={"status": 1, "stderr": "Job is no longer pending execution for job 12\n"})
    provider = in_grace(world, Requeue(delay=60.0))

    said = provider.settle(ENDED, 10.0)

    assert said.startswith("requeued job 12")
    assert "--requeue-delay has no effect: Job is no longer pending" in said
    provider.close()


# The last word


def test_the_last_question_of_a_quiet_job_does_not_hold_it_up(world: SlurmWorld) -> None:
    world.say(hang=["squeue"])
    provider = world.provider()
    began = time.monotonic()

    assert provider.conclude(60.0) is None
    assert time.monotonic() - began < 20
    provider.close()


def test_an_end_that_follows_a_signal_at_once_is_classified_when_slurm_is_sure(world: SlurmWorld) -> None:
    provider = world.provider()
    provider.on_signal(SIGUSR1)

    notice = provider.conclude(5.0)

    assert notice is not None
    assert (notice.kind, notice.meaning) == (Kind.REQUESTED, Meaning.PREEMPTED)
    assert len(world.calls("squeue")) > 1
    provider.close()


def test_a_training_in_steps_that_died_of_slurms_own_sigterm_was_told(world: SlurmWorld) -> None:
    provider = world.provider()
    world.say(row=row(end=15, preempted=-1))

    notice = provider.conclude(5.0)

    assert notice is not None
    assert notice.already_sent == {SIGTERM}
    provider.close()
