"""No more threads can be started (`ulimit -u` counts them): each part does without, and says so where it matters."""

import threading
import time
from collections.abc import Iterator

import pytest

from preemptd.events import Event, LinkJoined, LinkSaid, ProvidersProbed
from preemptd.journal import Journal, Line
from preemptd.journal_file import Lines
from preemptd.model import Run
from preemptd.poller import Poller
from preemptd.provider import Observation, Watch
from preemptd.registry import probe_all
from preemptd.runs.mending import Mender, Policy, Repair
from preemptd.runs.roster import Roster
from preemptd.runs.run_settings import RunSettings
from preemptd.targets.reachability import Seen, warn_in_thread
from preemptd.targets.selection import Selection
from tests.linking import line_of, notice, script, serving
from tests.waiting import wait_until

RUN = Run("abc", 1, 1, "")


def refuse(_: threading.Thread) -> None:
    raise RuntimeError("can't start new thread")


@pytest.fixture
def refused() -> Iterator[pytest.MonkeyPatch]:
    """Until its `undo`, the kernel has none; tests/lab/test_faults_processes.py has a kernel that really has none."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(threading.Thread, "start", refuse)
        yield patch


def nothing() -> None:
    """Nobody waits for what was looked at."""


def test_what_the_journal_has_not_written_yet_is_written_at_its_end(
    refused: pytest.MonkeyPatch,  # noqa: ARG001  # in force
) -> None:
    journal, kept = Journal(), Lines()
    journal.add(kept)
    journal.write("told")
    journal.close()

    assert [line["event"] for line in kept.lines] == ["told"]


def test_sinks_for_which_there_is_no_thread_share_that_of_the_first(refused: pytest.MonkeyPatch) -> None:
    started: list[threading.Thread] = []
    refused.undo()
    start = threading.Thread.start

    def start_one(thread: threading.Thread) -> None:
        if started:
            refuse(thread)
        started.append(thread)
        start(thread)

    refused.setattr(threading.Thread, "start", start_one)
    journal, kept = Journal(), [Lines(), Lines(), Lines()]
    for sink in kept:
        journal.add(sink)
    journal.write("notice")
    journal.start()
    journal.write("told")
    journal.close()

    assert len(started) == 1
    assert [[line["event"] for line in sink.lines] for sink in kept] == [["notice", "told"]] * 3


class Failing:
    """A sink that would start a thread for each line."""

    def write(self, line: Line) -> None:  # noqa: ARG002  # the signature of a sink
        raise RuntimeError("can't start new thread")

    def close(self) -> None:
        pass


def test_a_sink_that_fails_is_named_once_and_the_others_get_every_line() -> None:
    journal, kept = Journal(), Lines()
    journal.add(Failing())
    journal.add(kept)
    journal.start()
    journal.write("notice")
    journal.write("told")
    journal.close()

    assert sorted(str(line["event"]) for line in kept.lines) == ["notice", "told", "warning"]
    assert "Failing failed: can't start new thread" in str([line.get("text") for line in kept.lines])


def test_the_owners_of_runs_are_looked_at_as_soon_as_there_are_threads_again(refused: pytest.MonkeyPatch) -> None:
    roster, looked = Roster(), threading.Event()
    roster.see([RUN], True, looked.set)
    roster.marked(RUN, RunSettings(project="project"))
    assert not roster.looking

    refused.undo()
    roster.see([RUN], True, looked.set)

    assert looked.wait(20)
    (entry,) = roster.entries()
    assert (entry.marked, entry.settings.project) == (True, "project")


def test_runs_that_cannot_be_mended_for_want_of_a_thread_are_named(refused: pytest.MonkeyPatch) -> None:
    roster, looked, repairs = Roster(), threading.Event(), list[Repair]()
    refused.undo()
    roster.see([RUN], True, looked.set)
    assert looked.wait(20)
    refused.setattr(threading.Thread, "start", refuse)
    mender = Mender(roster, repairs.append)
    mender.start(Policy(75, time.monotonic()), 5.0)

    assert mender.wait()
    assert [(repair.run_id, repair.ok, repair.why) for repair in repairs] == [
        ("abc", False, "no more threads can be started")
    ]


def test_a_probe_that_cannot_be_made_finds_nothing(refused: pytest.MonkeyPatch) -> None:  # noqa: ARG001  # in force
    events: list[Event] = []
    probe_all([], events.append)

    assert events == [ProvidersProbed({})]


def test_a_trainer_without_a_thread_for_the_link_hears_when_it_asks() -> None:
    code = """
import sys, threading, time
def refuse(_): raise RuntimeError("can't start new thread")
start, threading.Thread.start = threading.Thread.start, refuse
import preemptd
print(preemptd.should_preempt(), flush=True)
while not preemptd.should_preempt(): time.sleep(0.01)
print(preemptd.notice().event_id, flush=True)
threading.Thread.start = start
while preemptd.should_preempt(): time.sleep(0.01)
print(threading.active_count(), flush=True)
"""
    with serving() as (server, events), script(code, server.path) as trainer:
        assert line_of(trainer) == "False"
        process = events.wait_for(LinkJoined)[-1].process
        wait_until(lambda: server.tell(process, notice()))
        assert line_of(trainer) == "e1"
        wait_until(lambda: "seen" in [event.verb for event in events.of(LinkSaid)])
        server.announce({"type": "revoked", "event_id": "e1"})

        assert int(line_of(trainer)) >= 2


class Still(Watch):
    name = "stand:key"

    def observe(self) -> Observation:
        return Observation.clear()


def test_a_watch_is_left_to_itself_that_cannot_be_closed_in_a_thread(refused: pytest.MonkeyPatch) -> None:
    refused.undo()
    events: list[Event] = []
    poller = Poller(Still(), events.append)
    poller.start()
    wait_until(lambda: poller.state)
    refused.setattr(threading.Thread, "start", refuse)
    poller.stop()

    assert not poller._thread.is_alive()


def test_the_way_to_the_telling_does_not_end_at_a_warning(
    refused: pytest.MonkeyPatch,  # noqa: ARG001  # in force
) -> None:
    said: list[str] = []
    warn_in_thread(Selection((), ()), (), Seen(anybody_listens=False), said.append)

    assert said == []
