"""The rehearsal's report is a pure reading of the journal: lines in, words out."""

import pytest

from preemptd.rehearsal.report import Line, Rehearsal, Verdict, judge, render
from preemptd.written import Written

START = {"event": "started", "t": 99.0, "mono": 9.0, "pid": 7, "command": "python train.py"}
WATCHING = {
    "event": "provider",
    "t": 99.1,
    "mono": 9.1,
    "provider": "ec2",
    "state": "watching",
    "why": "http://127.0.0.1:1",
}
NOTICE = {"event": "notice", "t": 100.0, "mono": 10.0, "acted": True, "kind": "terminate", "grace": 20.0}
MARKED = {"event": "marked", "t": 100.0, "mono": 10.004, "run_id": "r1", "ok": True, "why": None, "ms": 4.0}
SPARED = {"event": "spared", "t": 100.0, "mono": 10.004, "pid": 9, "why": "DataLoader worker"}
TOLD = {"event": "told", "t": 100.0, "mono": 10.005, "pid": 7, "how": "USR1", "ms": 5.0, "command": "python train.py"}
SAVED = {"event": "saved", "t": 101.0, "mono": 11.0, "pid": 7, "step": 12, "path": "x"}
KILL = {"event": "escalated", "t": 120.0, "mono": 30.0, "step": "kill", "pids": [7]}
EXITED = {"event": "exited", "t": 101.1, "mono": 11.1, "pid": 7, "status": 0, "spare": 18.9}
SETTLED = {"event": "settled", "t": 101.1, "mono": 11.1, "status": 75}
FILE = Written("step-12.pt", 1425, 101.0)
PART = Written("step-13.pt.tmp", 10, 101.0)


def rehearsal(*lines: Line, written: list[Written] | None = None) -> Rehearsal:
    return Rehearsal("ec2", 20.0, [START, WATCHING, *lines], written)


@pytest.mark.parametrize(
    ("lines", "written", "verdict"),
    [
        ([EXITED, SETTLED], None, Verdict.UNKNOWN),
        ([EXITED, SETTLED], [FILE], Verdict.UNKNOWN),
        ([NOTICE], None, Verdict.UNKNOWN),
        ([{**NOTICE, "acted": False}, EXITED], [FILE], Verdict.UNKNOWN),
        ([NOTICE, TOLD, SAVED, EXITED], None, Verdict.SAVED),
        ([NOTICE, TOLD, SAVED, KILL, EXITED], None, Verdict.SAVED),
        ([NOTICE, TOLD, EXITED], [FILE], Verdict.SAVED),
        ([NOTICE, TOLD, EXITED], [PART], Verdict.LOST),
        ([NOTICE, TOLD, EXITED], [], Verdict.LOST),
        ([NOTICE, TOLD, EXITED], None, Verdict.UNKNOWN),
        ([NOTICE, TOLD, KILL, EXITED], [FILE], Verdict.LOST),
        ([NOTICE, KILL, EXITED], None, Verdict.LOST),
        ([NOTICE, TOLD, {**TOLD, "pid": 8}, SAVED, EXITED], None, Verdict.UNKNOWN),
        ([NOTICE, TOLD, {**SAVED, "pid": 8}, EXITED], None, Verdict.UNKNOWN),
        ([{**SAVED, "mono": 9.5}, NOTICE, TOLD, EXITED], None, Verdict.UNKNOWN),
    ],
)
def test_the_verdict(lines: list[Line], written: list[Written] | None, verdict: Verdict) -> None:
    assert judge(rehearsal(*lines, written=written))[0] is verdict


def test_the_report() -> None:
    text = render(rehearsal(NOTICE, MARKED, SPARED, TOLD, SAVED, EXITED, SETTLED, written=[FILE, PART]))

    assert text.splitlines() == [
        "rehearsed   ec2: 20 s from the notice to the end of the machine",
        "command     python train.py (pid 7)",
        "watched     ec2 (http://127.0.0.1:1)",
        "told        pid 7 by SIGUSR1 after 5.0 ms: python train.py",
        "left alone  pid 9: DataLoader worker",
        "W&B runs    r1 marked preempting after 4.0 ms",
        "timeline    +0.000 s  notice: terminate in 20 s",
        "            +0.004 s  run r1 marked preempting",
        "            +0.005 s  pid 7 told",
        "            +1.000 s  pid 7 has saved step 12",
        "            +1.100 s  the command ended with status 0",
        "            +1.100 s  preemptd ends with status 75",
        "written     step-12.pt, 1,425 bytes",
        "            step-13.pt.tmp, 10 bytes (not complete)",
        "to spare    18.9 s",
        "verdict     SAVED: 1 of 1 told processes said that they have saved",
    ]


def test_the_report_of_a_rehearsal_that_went_wrong() -> None:
    unmarked = {**MARKED, "ok": False, "why": "its wandb-core is stopped"}
    warning = {"event": "warning", "t": 100.0, "mono": 10.0, "text": "nothing in this job handles SIGUSR1"}
    late = {**EXITED, "spare": -0.2, "status": 137, "mono": 30.2}
    text = render(rehearsal(NOTICE, warning, unmarked, KILL, late, written=[]))

    assert text.splitlines()[3:] == [
        "told        nobody",
        "W&B runs    r1 NOT marked: its wandb-core is stopped",
        "timeline    +0.000 s  notice: terminate in 20 s",
        "            +20.000 s  kill to [7]",
        "            +20.200 s  the command ended with status 137",
        "written     nothing since the notice",
        "to spare    none: the command outlived the deadline by 0.2 s",
        "warnings    nothing in this job handles SIGUSR1",
        "verdict     LOST: the command still ran when the 20 s were over, as the machine would not",
    ]


def test_the_report_of_a_machine_that_goes_with_the_notice() -> None:
    notice = {**NOTICE, "kind": "hibernate", "grace": 0.0}
    text = render(rehearsal(notice, TOLD, {**EXITED, "spare": -0.3, "mono": 10.3}, written=[FILE]))
    lines = text.splitlines()

    assert lines[0] == "rehearsed   ec2: the machine goes with the notice; the rehearsal ends 20 s later"
    assert "to spare    none is given: the command ended 0.3 s after the notice" in lines
    assert lines[-1] == (
        "verdict     SAVED: step-12.pt was written after the notice, and the command ended 0.3 s after the notice"
    )


def test_the_report_of_advice_that_becomes_a_notice_counts_from_the_announcement() -> None:
    early = {"provider": "ec2", "kind": "maintenance", "event_id": "ec2:scheduled", "ms": 1.0}
    other = {**early, "event": "advice", "t": 88.0, "mono": -2.0, "event_id": "ec2:rebalance", "grace": 30.0}
    advice = {**early, "event": "advice", "t": 90.0, "mono": 0.001, "grace": 25.0}
    notice = {**NOTICE, **early, "mono": 10.006, "ms": 6.0, "grace": 15.0}
    text = render(rehearsal(other, advice, notice, TOLD, SAVED, EXITED, SETTLED))

    assert text.splitlines()[0] == (
        "rehearsed   ec2: 20 s from the announcement to the end of the machine, 15 s from the notice"
    )
    assert "timeline    +0.000 s  advice: maintenance in 25 s\n" in text
    assert "            +10.000 s  notice: maintenance in 15 s\n            +10.005 s  pid 7 told\n" in text


def test_a_command_that_ends_while_it_is_advice_was_told_of_nothing() -> None:
    advice = {
        "event": "advice",
        "t": 90.0,
        "mono": 5.0,
        "ms": 1.0,
        "event_id": "x",
        "kind": "maintenance",
        "grace": 20.0,
    }
    lines = render(rehearsal(advice, {**EXITED, "spare": None}, SETTLED)).splitlines()

    assert lines[0] == "rehearsed   ec2: 20 s from the announcement to the end of the machine"
    assert lines[-1] == (
        "verdict     UNKNOWN: the command ended while this was advice, and nobody was told; try a smaller --grace"
    )


def test_a_rehearsal_without_a_notice_says_what_to_do() -> None:
    text = render(rehearsal({**EXITED, "spare": None}, SETTLED))

    assert "to spare    no notice was open when the command ended" in text
    assert text.splitlines()[-1] == (
        "verdict     UNKNOWN: the command ended before the notice came; try a smaller --after"
    )


def test_a_process_that_was_spared_first_and_told_later_is_not_left_alone() -> None:
    text = render(rehearsal(NOTICE, {**SPARED, "pid": 7, "why": "imports"}, TOLD, EXITED))

    assert "left alone" not in text


def test_many_that_were_left_alone_are_counted() -> None:
    many = [{**SPARED, "pid": pid} for pid in range(100, 130)]
    text = render(rehearsal(NOTICE, *many, TOLD, EXITED))

    assert "and 10 more (--journal FILE has them all)" in text
    assert text.count("DataLoader worker") == 20


def test_a_command_of_several_lines_takes_one_line_of_the_report() -> None:
    text = render(Rehearsal("ec2", 20.0, [{**START, "command": "python -c a\nb"}], None))

    assert "command     python -c a\\nb (pid 7)" in text.splitlines()
