"""What daemon and agents say to each other: nothing gets lost in it, and nothing in it can do harm."""

import json
import signal
from collections.abc import Mapping
from typing import Any

import pytest

from preemptd.config import Settings
from preemptd.escalation import Escalation, Timing, deadline_of
from preemptd.journal import Journal
from preemptd.journal_file import Lines
from preemptd.model import ProcessId
from preemptd.nodes.news import News
from preemptd.nodes.step_tree import Place
from preemptd.nodes.steps import components, srun_command
from preemptd.nodes.wanted import is_wanted
from preemptd.nodes.wire import LONGEST, WireError, decode, encode, encode_short, end_of, notice_lines, order_of
from preemptd.nodes.wire import process_lines as listed
from preemptd.notices import Kind, Level, Meaning, Notice

NOW, SENT, COME = 1000.0, 1004.0, 77.0
"""The clocks of two machines have nothing in common."""
PLACE = Place.of({"SLURM_JOB_ID": "12", "SLURMD_NODENAME": "n1", "SLURM_RESTART_COUNT": "2"}, "12")


def notice(**known: object) -> Notice:
    usual = {"provider": "slurm", "event_id": "e", "kind": Kind.PREEMPT, "level": Level.ACT, "source": "squeue"}
    return Notice(**{**usual, "observed": NOW, **known})  # type: ignore[arg-type]


def sent(escalation: Escalation | None, **more: object) -> dict[str, Any]:
    lists: dict[str, object] = {"notices": notice_lines(escalation, SENT), "linked": []}
    return decode(encode({"life": "boot", "fenced": False, **lists, **more}).strip())


def test_a_deadline_is_the_same_moment_on_every_node() -> None:
    timing = Timing(grace=60.0)
    escalation = Escalation.open(1, notice(remaining=30.0), timing).joined(notice(event_id="f"), SENT)

    first, second = order_of(sent(escalation), COME).notices

    assert deadline_of(first, Timing()) - COME == pytest.approx(NOW + 30 - SENT)
    assert deadline_of(second, Timing()) - COME == pytest.approx(NOW + 60 - SENT)


def test_all_that_matters_of_a_notice_arrives() -> None:
    known = notice(
        kind=Kind.TIME_LIMIT, remaining=9.0, final=True, already_sent=frozenset({15}), meaning=Meaning.UNDECIDED
    )

    (came,) = order_of(sent(Escalation.open(1, known, Timing())), COME).notices

    fields = ("provider", "event_id", "kind", "level", "source", "final", "already_sent", "meaning")
    assert [getattr(came, name) for name in fields] == [getattr(known, name) for name in fields]


def test_processes_arrive() -> None:
    linked = {ProcessId(7, 100), ProcessId(8, 200)}

    order = order_of(sent(None, linked=listed(linked), told=[["boot", 9, 300, "USR1"]]), COME)

    assert order.linked == linked
    assert order.told == (("boot", ProcessId(9, 300), "USR1"),)
    assert order.notices == ()


@pytest.mark.parametrize(
    "line",
    [
        {"notices": 1},
        {"notices": [1]},
        {"notices": [{}]},
        {"linked": [1]},
        {"linked": [["a", "b"]]},
        {"told": [["boot", 1]]},
    ],
    ids=str,
)
def test_what_is_no_order_is_refused(line: dict[str, object]) -> None:
    with pytest.raises(WireError):
        order_of(sent(None, **line), COME)
    with pytest.raises(WireError):
        order_of(line, COME)


@pytest.mark.parametrize("left", [None, "soon", float("nan"), float("inf")])
def test_a_time_that_is_none_is_refused(left: object) -> None:
    line = sent(Escalation.open(1, notice(remaining=5.0), Timing()))
    (one,) = line["notices"]

    with pytest.raises(WireError):
        order_of({**line, "notices": [{**one, "remaining": left}]}, COME)
    with pytest.raises(WireError):
        end_of({"preempted": True, "code": 75, "budget": left})


@pytest.mark.parametrize("text", [b"", b"1", b"[]", b"{", b"slurmstepd: error: x", b"\xff", b"[" * 100_000])
def test_what_is_no_object_is_refused(text: bytes) -> None:
    with pytest.raises(WireError):
        decode(text)


def test_a_line_of_an_agent_fits_into_one_message_of_slurm() -> None:
    line = {"event": "escalated", "node": "n1", "step": "kill", "ms": 1.0, "pids": list(range(10**6, 10**6 + 1000))}
    said = {"event": "warning", "node": "n1", "text": "ä" * 5000}

    assert len(encode_short(line)) <= LONGEST
    assert len(encode_short(said)) <= LONGEST
    assert json.loads(encode_short(said))["text"].startswith("ää")
    assert len(encode_short({"event": "x", "node": "n1", **{f"f{n}": "y" * 50 for n in range(100)}})) <= LONGEST


@pytest.mark.parametrize(
    ("environ", "ours"),
    [
        ({"SLURM_JOB_ID": "12", "SLURMD_NODENAME": "n1", "SLURM_RESTART_COUNT": "2"}, True),
        ({"SLURM_JOB_ID": "12"}, True),
        ({}, True),
        ({"SLURM_JOB_ID": "13", "SLURMD_NODENAME": "n1"}, False),
        ({"SLURM_JOB_ID": "12", "SLURMD_NODENAME": "n2"}, False),
        ({"SLURM_JOB_ID": "12", "SLURM_RESTART_COUNT": "1"}, False),
        ({"SLURM_JOB_ID": "12", "PREEMPTD_OWN_COMMAND": "1"}, False),
    ],
    ids=str,
)
def test_a_task_is_ours_unless_it_says_otherwise(environ: dict[str, str], ours: bool) -> None:
    assert PLACE.has(environ) is ours


@pytest.mark.parametrize(
    ("environ", "wanted"),
    [
        ({}, False),
        ({"SLURM_JOB_ID": "12"}, True),
        ({"SLURM_JOB_ID": "12", "SLURM_STEP_ID": "0"}, False),
        ({"SLURM_JOB_ID": "12", "SLURM_STEP_ID": str(2**32 - 5)}, True),
    ],
    ids=["no job", "batch script", "srun", "batch step"],
)
def test_only_the_batch_script_speaks_for_the_job(environ: dict[str, str], wanted: bool) -> None:
    assert is_wanted(environ) is wanted


def test_each_component_of_a_heterogeneous_job_gets_a_step_of_its_own() -> None:
    environ = {
        "SLURM_JOB_ID": "5",
        "SLURM_JOB_NUM_NODES": "1",
        "SLURM_HET_SIZE": "2",
        "SLURM_JOB_ID_HET_GROUP_0": "5",
        "SLURM_JOB_NUM_NODES_HET_GROUP_0": "1",
        "SLURM_JOB_ID_HET_GROUP_1": "6",
        "SLURM_JOB_NUM_NODES_HET_GROUP_1": "3",
    }

    (_, one), (component, nodes) = components(environ)

    assert (one, component, nodes) == (1, "6", 3)
    command = srun_command(1, component, nodes, Settings(), "/usr/bin/srun")
    assert {"--het-group=1", "--nodes=3", "--overlap"} <= set(command)
    assert decode(command[-1].encode())["component"] == "6"


class Heard:
    """News of one agent, and what it made of the journal."""

    def __init__(self) -> None:
        self._journal, self._lines = Journal(), Lines()
        self._journal.add(self._lines)
        self.news = News(self._journal)
        self.news.take(0, {"event": "hello", "node": "n1", "life": self.news.life})

    def lines(self) -> list[Mapping[str, object]]:
        self._journal.close()
        return list(self._lines.lines)


TOLD = {"pid": 5, "start": 6, "how": "USR1", "event_id": "e", "ms": 1.0, "command": "x", "dry_run": False}


def test_what_an_agent_reports_is_in_the_journal_with_its_node() -> None:
    heard = Heard()

    heard.news.take(0, {"event": "told", "node": "n1", "t": 1, "mono": 2, **TOLD})

    (line,) = heard.lines()
    assert (line["event"], line["node"], line["pid"]) == ("told", "n1", 5)
    assert heard.news.told_here == {ProcessId(5, 6)}


def test_lines_that_lack_something_or_come_from_nobody_are_none() -> None:
    heard = Heard()

    heard.news.take(0, {"event": "told", "node": "n1", "pid": 5})
    heard.news.take(0, {"event": "told", "node": "n2", **TOLD})
    heard.news.take(1, {"event": "told", "node": "n1", **TOLD})
    heard.news.take(0, {"event": "settled", "node": "n1", "status": 0})
    heard.news.take(0, {})

    assert heard.lines() == []
    assert heard.news.told == {}


def test_a_step_in_which_nobody_came_is_missed_and_that_is_said_once() -> None:
    heard = Heard()

    heard.news.take(0, {"event": "gone"})
    heard.news.take(1, {"event": "complaint", "text": "srun: error: no"})
    heard.news.take(1, {"event": "gone"})
    heard.news.take(1, {"event": "gone"})

    (line,) = heard.lines()
    assert "srun: error: no" in str(line["text"])


def test_a_signal_that_slurm_sends_to_the_steps_is_noted() -> None:
    heard = Heard()
    before = heard.news.heard_at

    heard.news.take(0, {"event": "heard", "node": "n1", "signal": signal.SIGTERM.name})

    assert before == float("-inf") < heard.news.heard_at
