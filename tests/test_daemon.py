"""Histories of the loop, made by hand: what comes in, in which order, and what becomes of it."""

import time
from collections.abc import Sequence
from signal import Signals

import pytest

from preemptd.events import Inbox, LinkLeft, NoticeArrived
from preemptd.ledger import NoLedger, Record
from preemptd.model import ProcessId
from preemptd.notices import Level
from preemptd.parts import NoMarker
from preemptd.provider import Observation, Options, Provider, Surroundings
from tests.daemon_histories import NO_PID, World, notice, process
from tests.waiting import wait_until


class HungMarker(NoMarker):
    """Every wandb-core is silent."""

    def __init__(self, inbox: Inbox) -> None:
        super().__init__(inbox.put)

    def mark(self, asked: int) -> None:
        pass


class HungLedger(NoLedger):
    """The disk takes nothing and says nothing."""

    def __init__(self, inbox: Inbox) -> None:
        super().__init__(inbox.put)

    def write(self, record: Record) -> int:
        self.record = record
        return 7


class Broken(Provider):
    """A plug-in with a bug wherever it may have one."""

    name = "broken"

    def __init__(self) -> None:
        super().__init__(Options(), Surroundings({}))

    def signals(self) -> frozenset[Signals]:
        return frozenset({Signals.SIGTERM, Signals.SIGHUP})

    def on_signal(self, signum: Signals) -> Observation:
        raise KeyError(signum)

    def child_started(self, pid: int) -> None:
        raise KeyError(pid)

    def close(self) -> None:
        raise KeyError("close")


def listening(world: World, *numbers: int) -> None:
    """Let these processes subscribe, and wait until the daemon has seen them."""
    wait_until(lambda: "released" in world.command.got)
    for number in numbers or (0,):
        world.listens(number)


def told(world: World) -> list[int]:
    return [int(str(line["pid"])) - NO_PID for line in world.wrote("told")]


def test_a_notice_is_told_once_and_explains_the_end() -> None:
    with World() as world:
        listening(world)
        world.arrives(notice())
        wait_until(lambda: world.notices() == [0])
        world.says("saved")
        world.processes = ()
        world.exit(3)
        ending = world.ending()

    assert (ending.outcome.status, ending.told, ending.saved, ending.done) == (3, True, True, False)
    assert ending.spare is not None
    assert 10 < ending.spare <= 20
    assert told(world) == [0]


def test_without_a_notice_nobody_is_told_and_nothing_explains_the_end() -> None:
    with World() as world:
        listening(world)
        world.exit(4)
        ending = world.ending()

    assert (ending.outcome.status, ending.told, ending.spare) == (4, False, None)
    assert world.link.said == []


def test_advice_with_a_date_is_acted_on_when_the_lead_has_come_and_not_before() -> None:
    with World() as world:
        listening(world)
        began = time.monotonic()
        world.arrives(notice(remaining=30.5, level=Level.ADVISE, act_within=30.0))
        wait_until(lambda: world.wrote("advice"))
        assert world.notices() == []
        wait_until(world.notices)
        took = time.monotonic() - began

    assert took >= 0.5
    (advice, acted) = (*world.wrote("advice"), *world.wrote("notice"))
    assert (advice["acted"], advice["remaining"], acted["acted"]) == (False, 30.5, True)
    assert float(str(acted["remaining"])) <= 30.0  # its clock, and what comes after it, begins when it is acted on
    assert told(world) == [0]


@pytest.mark.parametrize("act_within", [30.0, None])
def test_advice_that_is_taken_back_or_has_no_date_is_never_told(act_within: float | None) -> None:
    with World() as world:
        listening(world)
        world.arrives(notice(remaining=30.2, level=Level.ADVISE, act_within=act_within))
        if act_within is not None:
            world.is_revoked()
            wait_until(lambda: world.wrote("revoked"))
        time.sleep(0.4)  # the lead comes in this time
        world.exit()
        ending = world.ending()

    assert ending.told is False
    assert world.notices() == []


def test_a_notice_that_is_revoked_while_the_command_is_held_lets_it_go_and_is_not_told() -> None:
    with World(before=[NoticeArrived("ec2:watch", notice())], providers={"broken": Broken()}) as world:
        wait_until(lambda: any("not started" in str(line["text"]) for line in world.wrote("warning")))
        assert world.command.got == []
        world.is_revoked()
        listening(world)
        world.exit()
        ending = world.ending()

    assert world.command.got == ["released"]
    assert ending.told is False
    assert world.notices() == []


@pytest.mark.parametrize("signum", [Signals.SIGTERM, Signals.SIGINT])
def test_a_stop_while_the_command_is_held_ends_us_without_it(signum: Signals) -> None:
    with World(before=[NoticeArrived("ec2:watch", notice())], providers={"broken": Broken()}) as world:
        wait_until(lambda: world.wrote("warning"))
        world.signal(signum)
        ending = world.ending()

    assert ending.outcome.status == 128 + signum
    assert world.command.got == ["abandoned"]


def test_the_first_sigterm_while_they_save_is_the_machines_and_the_second_somebodys_wish() -> None:
    with World() as world:
        listening(world)
        world.arrives(notice())
        wait_until(lambda: told(world) == [0])
        world.signal(Signals.SIGTERM)
        world.says("saving")
        wait_until(lambda: world.wrote("saving"))
        assert Signals.SIGTERM not in world.command.got
        world.signal(Signals.SIGTERM)
        wait_until(lambda: Signals.SIGTERM in world.command.got)

    assert world.command.got.count(Signals.SIGTERM) == 1


def test_a_sigterm_with_a_notice_open_of_which_nobody_was_told_is_passed_on() -> None:
    with World() as world:
        wait_until(lambda: "released" in world.command.got)
        world.arrives(notice())
        wait_until(lambda: world.wrote("notice"))
        world.signal(Signals.SIGTERM)
        wait_until(lambda: Signals.SIGTERM in world.command.got)

    assert told(world) == []


def test_a_second_notice_joins_and_those_who_know_hear_of_the_tighter_end_only() -> None:
    with World() as world:
        listening(world)
        world.arrives(notice(remaining=60.0))
        wait_until(lambda: told(world) == [0])
        world.arrives(notice("gce:preempted", remaining=10.0))
        wait_until(lambda: float(str(world.link.said[-1][1]["remaining"])) <= 10)
        world.arrives(notice("gce:maintenance", remaining=50.0))
        wait_until(lambda: len(world.wrote("notice")) == 3)
        world.processes = ()
        world.exit()
        ending = world.ending()

    assert told(world) == [0]
    assert ending.spare is not None
    assert ending.spare <= 10


def test_of_two_notices_one_revoked_leaves_the_other_and_both_revoked_still_explain_the_end() -> None:
    with World() as world:
        listening(world)
        world.arrives(notice())
        wait_until(lambda: told(world) == [0])
        world.arrives(notice("gce:preempted"))
        world.is_revoked()
        wait_until(lambda: len(world.link.announced) == 1)
        world.is_revoked("gce:preempted")
        wait_until(lambda: len(world.link.announced) == 2)
        world.exit(1)
        ending = world.ending()

    assert told(world) == [0]
    assert (ending.told, ending.spare) == (True, None)


def test_after_a_revocation_the_same_event_is_news() -> None:
    with World() as world:
        listening(world)
        for turn in (1, 2, 3):
            world.arrives(notice())
            wait_until(lambda: len(told(world)) == turn)  # noqa: B023  # called before the next turn
            world.is_revoked()
            wait_until(lambda: len(world.wrote("revoked")) == turn)  # noqa: B023

    assert told(world) == [0, 0, 0]


def test_a_told_process_that_puts_its_handler_away_on_its_way_out_is_not_called_spared() -> None:
    with World() as world:
        listening(world)
        world.arrives(notice())
        wait_until(lambda: told(world) == [0])
        world.inbox.put(LinkLeft(ProcessId(NO_PID, 1)))
        time.sleep(0.5)  # two scans

    assert world.wrote("spared") == []


def test_we_stay_while_a_told_process_outlives_the_command_and_go_when_it_has_gone() -> None:
    with World(process(0), process(1)) as world:
        listening(world, 1)
        world.arrives(notice())
        wait_until(lambda: told(world) == [1])
        world.processes = (process(1),)
        world.exit()
        time.sleep(0.5)  # two scans
        assert world.runs
        world.processes = (process(1, state="Z"),)
        ending = world.ending()

    assert ending.told is True


def test_we_do_not_stay_longer_than_the_notice_says() -> None:
    with World(process(0), process(1)) as world:
        listening(world, 1)
        world.arrives(notice(remaining=1.0))
        wait_until(lambda: told(world) == [1])
        world.exit()
        ending = world.ending()
        still_there = world.processes

    assert still_there
    assert ending.spare is not None
    assert ending.spare <= 0


def test_a_bug_of_ours_is_said_and_the_loop_goes_on() -> None:
    with World() as world:
        listening(world)
        world.link.failures = 1
        world.arrives(notice())
        wait_until(lambda: told(world) == [0])
        world.processes = ()
        world.exit(5)
        ending = world.ending()

    texts = [str(line["text"]) for line in world.wrote("warning")]
    assert any("internal error, please report it: KeyError('a bug') at " in text for text in texts)
    assert (ending.outcome.status, ending.told) == (5, True)


def test_a_bug_of_a_plug_in_is_said_and_its_signal_is_an_ordinary_one() -> None:
    with World(providers={"broken": Broken()}) as world:
        wait_until(lambda: "released" in world.command.got)
        world.signal(Signals.SIGTERM)
        wait_until(lambda: Signals.SIGTERM in world.command.got)
        world.exit(143)
        ending = world.ending()

    texts = [str(line["text"]) for line in world.wrote("warning")]
    assert len([text for text in texts if text.startswith("provider broken failed: KeyError(")]) == 3
    assert ending.outcome.status == 143
    assert ending.told is False


@pytest.mark.parametrize("hangs", ["wandb-core", "the disk", "/proc", "all of them"])
def test_whatever_hangs_they_are_told_when_its_quarter_of_a_second_is_over(hangs: str) -> None:
    marker = HungMarker if hangs in {"wandb-core", "all of them"} else None
    ledger = HungLedger if hangs in {"the disk", "all of them"} else None
    with World(marker=marker, ledger=ledger) as world:
        listening(world)
        world.inbox.put(NoticeArrived("ec2:watch", notice("ec2:first")))  # its scan shows who listens
        wait_until(lambda: world.notices() == [0])
        world.is_revoked("ec2:first")
        wait_until(lambda: world.wrote("revoked"))
        if hangs in {"/proc", "all of them"}:
            world.scanning.clear()
        began = time.monotonic()
        world.arrives(notice())
        wait_until(lambda: len(told(world)) == 2)
        took = time.monotonic() - began

    assert 0.2 < took < 2.5


def test_what_is_told_comes_after_the_marks() -> None:
    order: list[str] = []

    class Slow(NoMarker):
        def mark(self, asked: int) -> None:
            time.sleep(0.05)
            order.append("marked")
            super().mark(asked)

    with World(marker=lambda inbox: Slow(inbox.put)) as world:
        listening(world)
        world.arrives(notice())
        wait_until(world.notices)
        order.append("told")

    assert order[0] == "marked"
    assert order.count("told") == 1


def test_an_hour_old_deadline_is_written_down_and_not_acted_on() -> None:
    with World() as world:
        listening(world)
        world.arrives(notice(remaining=-3600.0))
        wait_until(lambda: world.wrote("notice"))
        world.exit()
        ending = world.ending()

    assert world.notices() == []
    assert ending.told is False


def test_a_storm_of_notices_revocations_and_signals_ends_in_order() -> None:
    with World(process(0), process(1)) as world:
        listening(world, 0, 1)
        for turn in range(300):
            world.arrives(notice(f"ec2:{turn % 7}", remaining=20.0 + turn % 3))
            world.signal((Signals.SIGCHLD, Signals.SIGWINCH, Signals.SIGCONT, Signals.SIGUSR2)[turn % 4])
            world.is_revoked(f"ec2:{turn % 5}")
        wait_until(lambda: len(world.wrote("revoked")) == 300)
        world.processes = ()
        world.exit(0)
        ending = world.ending()

    assert ending.outcome.status == 0
    assert "internal error" not in str(world.wrote("warning"))
    assert _repeated(world.wrote("told")) == []


def _repeated(lines: Sequence[object]) -> list[object]:
    """List who was told of the same event twice in the same second."""
    said = [str({key: line[key] for key in ("pid", "event_id", "ms")}) for line in lines if isinstance(line, dict)]
    return [line for line in said if said.count(line) > 1]
