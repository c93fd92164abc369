"""Told once and in time, in histories that once went wrong; real processes where the kernel has a say."""

import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from signal import Signals

import pytest

from preemptd.escalation import Escalation, Killing, Step, Timing
from preemptd.events import Inbox, LinkJoined
from preemptd.ledger import NoLedger, Record
from preemptd.model import Process
from preemptd.parts import NoMarker
from preemptd.procfs import Tree
from tests.daemon_histories import World, notice, process
from tests.test_daemon import HungMarker, listening, told
from tests.waiting import wait_until

CATCHER = """
import os, signal, sys, time
if len(sys.argv) > 1:
    os.setresuid(*[int(sys.argv[1])] * 3)
signal.signal(signal.SIGUSR1, lambda *_: None)
print("ready", flush=True)
while True:
    time.sleep(1)
"""


class Kept(NoLedger):
    """Keeps its page where the test sees it."""

    def __init__(self) -> None:
        self.record = Record()

    def __call__(self, inbox: Inbox) -> "Kept":
        self._put = inbox.put
        return self

    @property
    def event_ids(self) -> list[str]:
        return [telling.event_id for telling in self.record.told]


@pytest.fixture
def catcher() -> Iterator[Process]:
    """A process that catches SIGUSR1."""
    with subprocess.Popen([sys.executable, "-c", CATCHER], stdout=subprocess.PIPE) as started:
        assert started.stdout is not None
        started.stdout.readline()
        yield next(found for found in Tree(os.getpid(), include_root=False).snapshot() if found.pid == started.pid)
        started.kill()


def test_who_was_told_is_still_on_record_when_the_notice_that_told_him_is_revoked_and_another_is_open() -> None:
    ledger = Kept()
    with World(ledger=ledger) as world:
        listening(world)
        world.arrives(notice())
        wait_until(lambda: told(world) == [0])
        world.arrives(notice("gce:preempted"))
        wait_until(lambda: ledger.event_ids == ["ec2:terminate", "gce:preempted"])
        world.is_revoked()
        wait_until(lambda: ledger.event_ids == ["gce:preempted"])
        world.is_revoked("gce:preempted")
        wait_until(lambda: ledger.event_ids == [])

    assert told(world) == [0]


def test_a_dry_run_leaves_no_record_of_a_telling_that_never_was() -> None:
    ledger = Kept()
    with World(ledger=ledger, dry_run=True) as world:
        listening(world)
        world.arrives(notice())
        wait_until(lambda: told(world) == [0])

    assert ledger.record.told == ()


def test_a_dry_run_shows_each_escalation() -> None:
    with World(dry_run=True) as world:
        listening(world)
        world.arrives(notice())
        wait_until(lambda: told(world) == [0])
        world.is_revoked()
        wait_until(lambda: world.wrote("revoked"))
        world.arrives(notice())
        wait_until(lambda: told(world) == [0, 0])

    assert world.notices() == []


def test_a_silent_subscriber_outside_of_the_tree_is_told_over_the_link_once() -> None:
    with World() as world:
        listening(world, 7)
        world.arrives(notice(remaining=2.0))
        wait_until(lambda: told(world) == [7])
        time.sleep(0.7)  # two scans after the 0.2 s in which it should have said that it has seen it

    assert told(world) == [7]


def test_who_was_told_by_signal_and_then_asks_over_the_link_hears_of_the_notice(catcher: Process) -> None:
    with World(catcher) as world:
        wait_until(lambda: "released" in world.command.got)
        world.arrives(notice())
        wait_until(lambda: world.wrote("told"))
        world.inbox.put(LinkJoined(catcher.id, "trainer"))
        wait_until(world.notices)

    assert [line["how"] for line in world.wrote("told")] == ["USR1"]


def test_done_that_was_said_just_before_the_notice_counts() -> None:
    with World() as world:
        listening(world)
        world.says("done")
        wait_until(lambda: world.wrote("done"))
        world.arrives(notice())
        wait_until(lambda: told(world) == [0])
        world.processes = ()
        world.exit(0)
        ending = world.ending()

    assert ending.done is True


def test_done_that_was_taken_back_before_the_notice_does_not_count() -> None:
    with World() as world:
        listening(world)
        world.says("done")
        world.says("undone")
        wait_until(lambda: world.wrote("undone"))
        world.arrives(notice())
        wait_until(lambda: told(world) == [0])
        world.processes = ()
        world.exit(0)
        ending = world.ending()

    assert (ending.done, ending.done_pids) == (False, frozenset())


def test_done_that_is_taken_back_while_the_notice_is_open_changes_what_runs_are_to_report() -> None:
    with World() as world:
        listening(world)
        world.arrives(notice())
        wait_until(lambda: told(world) == [0])
        world.says("done")
        world.says("undone")
        wait_until(lambda: world.wrote("undone"))
        world.processes = ()
        world.exit(0)
        ending = world.ending()

    assert ending.done is False
    wishes = [message["wandb"] for _, message in world.link.said if message["type"] == "notice"]
    assert wishes == [{"code": 75}, {"code": None}, {"code": 75}]


def test_done_of_a_process_that_was_not_told_says_nothing_of_those_that_were() -> None:
    with World() as world:
        listening(world)
        world.says("done", 1)
        wait_until(lambda: world.wrote("done"))
        world.arrives(notice())
        wait_until(lambda: told(world) == [0])
        world.processes = ()
        world.exit(1)
        ending = world.ending()

    assert ending.done is False


def test_a_hibernation_is_told_and_not_killed_at_the_same_instant() -> None:
    for killing in Killing:
        escalation = Escalation.open(1, notice(remaining=0.0, final=True), Timing(kill=killing))

        assert escalation.due(escalation.began) == (Step.DEADLINE,)


def test_a_sigterm_between_notice_and_telling_waits_for_the_telling() -> None:
    with World(marker=HungMarker) as world:
        listening(world)
        world.arrives(notice())
        wait_until(lambda: world.wrote("notice"))
        world.signal(Signals.SIGTERM)
        wait_until(lambda: told(world) == [0])
        world.says("saving")
        wait_until(lambda: world.wrote("saving"))
        time.sleep(0.2)  # it waits no longer

    assert Signals.SIGTERM not in world.command.got


def test_a_stop_when_the_command_has_ended_does_not_wait_for_those_who_still_save() -> None:
    with World(process(0), process(1)) as world:
        listening(world, 1)
        world.arrives(notice(remaining=600.0))
        wait_until(lambda: told(world) == [1])
        world.processes = (process(1),)
        world.exit()
        world.signal(Signals.SIGTERM)  # the machine's, that was announced
        time.sleep(0.3)
        assert world.runs
        world.signal(Signals.SIGTERM)
        ending = world.ending()

    assert ending.told is True


def test_a_bug_in_one_look_is_not_the_end_of_looking() -> None:
    class Buggy(NoMarker):
        fails = False
        looks = 0

        def look(self, processes: Sequence[Process]) -> None:  # noqa: ARG002  # a null object with a bug
            self.looks += 1
            if self.fails:
                self.fails = False
                raise KeyError("a bug")

    made: list[Buggy] = []

    def make(inbox: Inbox) -> Buggy:
        made.append(Buggy(inbox.put))
        return made[0]

    with World(marker=make) as world:
        wait_until(lambda: "released" in world.command.got)
        made[0].fails = True
        world.arrives(notice())
        wait_until(lambda: world.wrote("warning"))
        looks = made[0].looks
        wait_until(lambda: made[0].looks > looks + 2, 3.0)  # every 200 ms; without a notice, every 5 s

    assert len([line for line in world.wrote("warning") if "internal error" in str(line["text"])]) == 1
