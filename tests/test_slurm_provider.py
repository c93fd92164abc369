import signal
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest

from preemptd.errors import ConfigError
from preemptd.events import Event, NoticeArrived, NoticeRevoked, WatchChanged
from preemptd.notices import Kind, Level, Meaning
from preemptd.poller import Poller
from preemptd.provider import State, Surroundings, Watch
from preemptd.registry import options_for
from preemptd_providers.slurm.canary import CanaryWatch
from preemptd_providers.slurm.pace import Pace
from preemptd_providers.slurm.polling import JobWatch, NodeWatch
from preemptd_providers.slurm.provider import Slurm, SlurmOptions
from tests.slurm_world import JOB, NODE, SlurmWorld, row
from tests.waiting import wait_until

DOWN = {"status": 1, "stderr": "slurm_load_jobs error: Unable to contact slurm controller (connect failure)\n"}


@pytest.fixture
def world(tmp_path: Path) -> SlurmWorld:
    return SlurmWorld(tmp_path)


def names(provider: Slurm) -> list[str]:
    watches = [watch.name for watch in provider.watches()]
    provider.close()
    return watches


def watch_of(provider: Slurm, kind: type[Watch]) -> Watch:
    return next(watch for watch in provider.watches() if isinstance(watch, kind))


# What it watches, and where


def test_in_a_batch_script_it_has_all_four_ears(world: SlurmWorld) -> None:
    provider = world.provider(SlurmOptions())

    assert provider.signals() == {signal.SIGUSR1, signal.SIGUSR2, signal.SIGTERM}
    assert names(provider) == ["slurm:job", "slurm:files", "slurm:canary", "slurm:node"]
    assert world.warnings == []


def test_a_step_hears_its_own_signals_and_needs_no_canary(world: SlurmWorld) -> None:
    assert "slurm:canary" not in names(world.provider(SlurmOptions(), SLURM_STEP_ID="0"))


def test_the_last_question_comes_first_and_the_canary_ends_in_what_time_is_left(world: SlurmWorld) -> None:
    provider = world.provider(SlurmOptions())
    canary = watch_of(provider, CanaryWatch)
    assert canary.observe().state is State.CLEAR  # it listens
    step = Path(f"/proc/{world.calls('srun')[0]['pid']}")
    world.say(hang=["squeue"])
    provider.on_signal(signal.SIGUSR1)

    concluding = threading.Thread(target=provider.conclude, args=(4.0,), daemon=True)
    concluding.start()
    wait_until(lambda: world.calls("squeue"))

    assert step.exists()
    concluding.join(30)
    assert not step.exists()
    provider.close()


def test_the_canary_can_be_done_without(world: SlurmWorld, tmp_path: Path) -> None:
    elsewhere = tmp_path / "without srun"
    elsewhere.mkdir()
    without = SlurmWorld(elsewhere, "squeue", "scontrol")

    assert "slurm:canary" not in names(world.provider(SlurmOptions(canary=False)))
    assert "slurm:canary" not in names(without.provider(SlurmOptions(), PATH=str(without.bin)))


def test_the_shell_of_an_salloc_is_on_no_node_and_hears_no_signals_of_slurm(world: SlurmWorld) -> None:
    provider = world.provider(SlurmOptions(), SLURMD_NODENAME="")

    assert provider.signals() == frozenset()
    assert provider.on_signal(signal.SIGTERM).state is State.CLEAR
    assert names(provider) == ["slurm:job", "slurm:files"]


def test_in_a_container_without_slurm_signals_and_files_are_left_and_that_is_said_once(world: SlurmWorld) -> None:
    provider = world.provider(SlurmOptions(), PATH="/nowhere")

    notice = provider.on_signal(signal.SIGUSR1).notice

    assert notice is not None
    assert notice.meaning is Meaning.PREEMPTED
    assert names(provider) == ["slurm:files"]
    (said,) = world.warnings
    assert "only signals and signal files" in said
    assert provider.conclude(5.0) is None


def test_named_where_there_is_no_job_it_reads_files_and_says_so() -> None:
    provider = Slurm(SlurmOptions(), Surroundings({}))

    assert provider.describe() == "no SLURM job: SLURM_JOB_ID is not set"
    assert provider.signals() == frozenset()
    assert names(provider) == ["slurm:files"]


@pytest.mark.parametrize("interval", [4.9, 0, -1, float("nan"), "soon", 3601])
def test_a_poll_that_would_burden_the_controller_or_miss_everything_is_refused(interval: object) -> None:
    with pytest.raises(ConfigError, match=r"\[providers\.slurm\] poll_interval"):
        options_for(Slurm, {"poll_interval": interval})


def test_it_says_where_it_looks(world: SlurmWorld) -> None:
    provider = world.provider()

    assert provider.describe().startswith("job 12: squeue each 30 s, signals, 12.preempt or ")
    provider.close()


# Signals


def test_a_signal_is_told_at_once_though_the_controller_hangs(world: SlurmWorld) -> None:
    world.say(hang=["squeue"])
    provider = world.provider()
    watch = watch_of(provider, JobWatch)
    looking = threading.Thread(target=watch.observe, daemon=True)
    looking.start()
    wait_until(lambda: world.calls("squeue"))
    began = time.monotonic()

    notice = provider.on_signal(signal.SIGUSR1).notice

    assert time.monotonic() - began < 1
    assert notice is not None
    assert (notice.meaning, notice.level) == (Meaning.UNDECIDED, Level.ACT)
    watch.close()
    looking.join(20)
    assert not looking.is_alive()
    provider.close()


def test_a_signal_has_the_controller_asked_at_once(world: SlurmWorld) -> None:
    provider = world.provider()
    events: list[Event] = []
    poller = Poller(watch_of(provider, JobWatch), events.append)
    poller.start()
    wait_until(lambda: events)
    world.say(row=row(end=15, preempted=-1))

    provider.on_signal(signal.SIGUSR1)  # the next look by itself would come in 24 s at the earliest

    wait_until(lambda: any(isinstance(event, NoticeArrived) for event in events), 20)
    (arrived,) = [event for event in events if isinstance(event, NoticeArrived)]
    assert (arrived.notice.kind, arrived.notice.meaning) == (Kind.PREEMPT, Meaning.PREEMPTED)
    assert arrived.notice.already_sent == frozenset()
    poller.stop()
    provider.close()


def test_through_the_poller_an_undecided_notice_is_decided_and_taken_back_when_slurm_does(world: SlurmWorld) -> None:
    provider = world.provider()
    events: list[Event] = []
    poller = Poller(JobWatch(provider._attempt, world.controller(), Pace(0.1), lambda _: True), events.append)
    provider.on_signal(signal.SIGUSR1)
    poller.start()

    wait_until(lambda: sum(isinstance(event, NoticeArrived) for event in events) == 2)
    provider._attempt._heard.clear()
    wait_until(lambda: isinstance(events[-1], NoticeRevoked))

    arrived = [event.notice for event in events if isinstance(event, NoticeArrived)]
    assert [notice.meaning for notice in arrived] == [Meaning.UNDECIDED, Meaning.PREEMPTED]
    assert len({notice.event_id for notice in arrived}) == 1
    poller.stop()
    provider.close()


# The poll


def test_the_grace_is_seen_without_any_signal(world: SlurmWorld) -> None:
    provider = world.provider()
    watch = JobWatch(provider._attempt, world.controller(), Pace(0.05), lambda _: True)
    before = watch.observe().state
    world.say(row=row(end=15, preempted=-1))

    notice = watch.observe().notice

    assert before is State.CLEAR
    assert notice is not None
    assert (notice.kind, notice.source) == (Kind.PREEMPT, "squeue")
    assert notice.remaining == pytest.approx(15, abs=10)
    provider.close()


def test_an_outage_is_said_once_and_ends_and_is_asked_about_ever_more_rarely(world: SlurmWorld) -> None:
    world.say(squeue=DOWN)
    provider = world.provider()
    events: list[Event] = []
    poller = Poller(JobWatch(provider._attempt, world.controller(), Pace(0.05), lambda _: True), events.append)
    poller.start()
    wait_until(lambda: len(world.calls("squeue")) == 2)
    world.say(squeue=None)
    wait_until(lambda: len(events) == 2, 30)
    poller.stop()

    assert all(isinstance(event, WatchChanged) for event in events)
    whys = [event.why for event in events if isinstance(event, WatchChanged)]
    assert "Unable to contact slurm controller" in str(whys[0])
    assert whys[1] is None
    provider.close()


def test_the_settings_are_looked_at_after_the_first_answer_and_then_no_more(world: SlurmWorld) -> None:
    world.say(job=JOB.replace("Requeue=1", "Requeue=0"))
    provider = world.provider(SlurmOptions())
    watch = watch_of(provider, JobWatch)
    watch.observe()
    before = len(world.calls("scontrol"))
    for _ in range(2):
        provider._pace.wake()
        watch.observe()

    assert before == 0
    assert [call["arguments"][1] for call in world.calls("scontrol")] == ["config", "job"]  # type: ignore[index]
    assert world.warnings == ["job 12 will not be requeued: add `#SBATCH --requeue` to its script"]
    assert provider._attempt.kill_wait == 7.0
    provider.close()


def test_a_closed_watch_asks_nobody(world: SlurmWorld) -> None:
    provider = world.provider()
    watch = watch_of(provider, JobWatch)
    watch.close()
    watch.close()

    assert watch.observe().state is State.UNKNOWN
    assert world.calls("squeue") == []
    provider.close()


# Nodes


@pytest.mark.parametrize(
    ("state", "word"),
    [("ALLOCATED+DRAIN", "is being drained"), ("MIXED+REBOOT_REQUESTED", "is to be rebooted")],
)
def test_a_node_that_leaves_is_advice(world: SlurmWorld, state: str, word: str) -> None:
    world.say(node=NODE.format(state, "kernel update"))
    watch = NodeWatch("n1", world.controller(), Pace(0.05))

    notice = watch.observe().notice

    assert notice is not None
    assert (notice.level, notice.kind) == (Level.ADVISE, Kind.MAINTENANCE)
    assert notice.source == f"node n1 {word}: kernel update"
    world.say(node=NODE.format("ALLOCATED", "(null)"))
    assert watch.observe().state is State.CLEAR


def test_a_node_that_slurm_does_not_describe_is_unknown(world: SlurmWorld) -> None:
    world.say(node="Node n1 not found\n")
    watch = NodeWatch("n1", world.controller(), Pace(0.05))

    assert watch.observe().state is State.UNKNOWN
    watch.close()
    assert watch.observe().state is State.UNKNOWN


# Pace


def test_the_first_look_comes_at_once_and_the_next_after_the_interval_with_jitter() -> None:
    pace = Pace(0.3)
    began = time.monotonic()
    pace.wait()
    first = time.monotonic()
    pace.succeeded()
    pace.wait()

    assert first - began < 0.2
    assert time.monotonic() - first >= 0.3 * 0.8 - 0.01
    pace.close()


def test_waking_it_cuts_a_long_wait_short_also_before_it_begins() -> None:
    pace = Pace(3600.0)
    pace.succeeded()
    pace.wake()
    assert pace.wait()
    threading.Timer(0.05, pace.wake).start()
    began = time.monotonic()

    assert pace.wait()
    assert time.monotonic() - began < 20
    pace.close()


def test_failures_double_the_pause_up_to_five_minutes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("random.uniform", lambda low, high: (low + high) / 2)
    pace = Pace(30.0)
    pauses = []
    for _ in range(2000):
        pace.failed()
        pauses.append(round(pace._next - time.monotonic()))

    assert pauses[:5] == [1, 2, 4, 8, 16]
    assert max(pauses) == 300
    pace.succeeded()
    pace.failed()
    assert round(pace._next - time.monotonic()) == 1
    pace.close()


def test_a_closed_one_never_waits_and_may_be_woken_and_closed_again() -> None:
    pace = Pace(3600.0)
    pace.succeeded()
    threading.Timer(0.05, pace.close).start()

    assert not pace.wait()
    pace.wake()
    pace.close()
    assert not pace.wait()


def test_surroundings_of_no_daemon_start_nothing(world: SlurmWorld) -> None:
    provider = Slurm(SlurmOptions(), replace(world.surroundings(), commands=None))

    assert names(provider) == ["slurm:files"]
    assert provider.conclude(1.0) is None
    assert world.calls("squeue") == []
