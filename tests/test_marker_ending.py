"""The exit records that the marker sends at the last moment, to a stand-in for wandb-core."""

import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from preemptd.events import Event, MarkingDone, RunEnded, RunMarked, RunsFound
from preemptd.model import Run
from preemptd.runs.marker import Marker
from preemptd.runs.roster import Roster
from preemptd.runs.run_settings import RunSettings
from tests.standins.wandb_core_process import CoreStandIn, core_stand_ins
from tests.waiting import wait_until

MARK_AND_END = [{"preempting": "abc"}, {"exit": "abc", "code": "4b"}, {"attach": "abc", "request_id": "marked"}]


class Ending:
    """A marker, what it has put, and the roster that it shows the runs to."""

    def __init__(self) -> None:
        self.events: list[Event] = []
        self.on_done: Callable[[], object] = lambda: None
        self.roster = Roster()
        self.marker = Marker(self._put, self.roster)
        self.marker.start()

    def _put(self, event: Event) -> None:
        if isinstance(event, MarkingDone):
            self.on_done()
        self.events.append(event)

    def know(self, core: CoreStandIn) -> None:
        self.marker.look([core.process()])
        wait_until(lambda: any(isinstance(event, RunsFound) for event in self.events))

    def mark(self, asked: int) -> None:
        self.marker.mark(asked)
        wait_until(lambda: MarkingDone(asked) in self.events)

    def finish(self, asked: int, spared: tuple[int, ...] = ()) -> None:
        self.marker.finish(asked, 75, spared)
        wait_until(lambda: MarkingDone(asked) in self.events)

    def ended(self) -> list[tuple[str, int, str, str | None]]:
        return [(e.run.run_id, e.code, e.how, e.why) for e in self.events if isinstance(e, RunEnded)]

    def marked(self) -> list[str]:
        return [event.run.run_id for event in self.events if isinstance(event, RunMarked) and not event.why]


@pytest.fixture
def ending() -> Iterator[Ending]:
    ending = Ending()
    yield ending
    ending.marker.stop()
    ending.roster.close()


@pytest.fixture
def core(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[CoreStandIn]:
    with core_stand_ins(tmp_path / "cores", getattr(request, "param", "good")) as cores:
        cores[0].order("open abc")
        yield cores[0]


def mode(words: str) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("core", [words], indirect=True)


def test_a_marked_run_is_marked_again_and_ended_over_one_connection(core: CoreStandIn, ending: Ending) -> None:
    ending.know(core)
    ending.mark(1)
    wait_until(lambda: len(core.frames) >= 3)  # we read them later than the marker reads the answers
    ending.finish(2)
    wait_until(lambda: len(core.frames) >= 4 + len(MARK_AND_END))

    assert ending.ended() == [("abc", 75, "delivered", None)]
    assert core.frames[3:] == [{"attach": "abc", "request_id": "attach"}, *MARK_AND_END]
    assert ending.marked() == ["abc"]


def test_a_run_that_was_not_marked_yet_is_marked_by_its_end(core: CoreStandIn, ending: Ending) -> None:
    ending.know(core)
    ending.finish(1)

    assert (ending.marked(), ending.ended()) == (["abc"], [("abc", 75, "delivered", None)])


def test_a_run_is_ended_once(core: CoreStandIn, ending: Ending) -> None:
    ending.know(core)
    ending.finish(1)
    ending.finish(2)
    wait_until(lambda: any("exit" in frame for frame in core.frames))

    assert sum("exit" in frame for frame in core.frames) == 1


@mode("uploads")
def test_a_core_that_never_says_that_all_is_uploaded_holds_nobody_up(core: CoreStandIn, ending: Ending) -> None:
    ending.know(core)
    ending.finish(1)

    assert ending.ended() == [("abc", 75, "taken", None)]


def test_the_run_of_a_process_that_is_spared_is_only_marked(core: CoreStandIn, ending: Ending) -> None:
    ending.know(core)
    ending.finish(1, (os.getpid(),))

    assert (ending.marked(), ending.ended()) == (["abc"], [])
    assert not any("exit" in frame for frame in core.frames)


@mode("silent")
def test_a_core_that_ends_without_an_answer_is_named(core: CoreStandIn, ending: Ending) -> None:
    ending.know(core)
    ending.marker.finish(1, 75)
    wait_until(lambda: any("attach" in frame for frame in core.frames))
    core.kill()
    wait_until(ending.ended)

    assert ending.ended() == [("abc", 75, "", "its wandb-core has ended")]


def test_after_the_escalation_a_run_is_only_marked(core: CoreStandIn, ending: Ending) -> None:
    ending.know(core)
    ending.finish(1)
    ending.marker.rest()
    ending.mark(2)
    wait_until(lambda: any("exit" in frame for frame in core.frames))

    assert len(ending.ended()) == 1
    assert sum("exit" in frame for frame in core.frames) == 1


def test_the_roster_notes_what_closes_and_who_had_it(core: CoreStandIn, ending: Ending) -> None:
    ending.know(core)
    ending.mark(1)
    wait_until(lambda: ending.roster.entries()[0].owner)
    core.order("close abc")
    wait_until(lambda: ending.roster.entries()[0].closed is not None)

    (entry,) = ending.roster.entries()
    assert (entry.run.run_id, entry.marked) == ("abc", True)
    assert entry.owner is not None
    assert entry.owner.process.pid == os.getpid()


def test_the_roster_forgets_runs_that_closed_long_before_a_notice() -> None:
    roster, run = Roster(kept=0.0), Run("abc", 1, 1, "")
    looked = threading.Event()
    roster.see([run], False, looked.set)
    roster.see([], False, looked.set)
    roster.see([], True, looked.set)
    kept = roster.entries()
    roster.see([], False, looked.set)

    assert looked.wait(20)
    assert [entry.run for entry in kept] == [run]
    assert roster.entries() == ()


def test_nobody_is_told_before_the_owner_of_a_new_run_was_looked_at(core: CoreStandIn, ending: Ending) -> None:
    """Who is told may be gone a millisecond later, and its run could not be mended."""
    ending.marker.look([core.process()])
    known: list[bool] = []
    ending.on_done = lambda: known.append(ending.roster.entries()[0].owner is not None)
    ending.mark(1)

    assert known == [True]


def test_what_a_run_has_answered_is_kept_if_it_was_marked_before_the_roster_knew_it() -> None:
    roster, run, settings = Roster(), Run("abc", 1, 1, ""), RunSettings(project="project")
    looked = threading.Event()
    roster.marked(run, settings)
    roster.see([run], True, looked.set)

    (entry,) = roster.entries()
    assert looked.wait(20)
    assert (entry.marked, entry.settings) == (True, settings)
