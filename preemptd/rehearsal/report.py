"""What a rehearsal has shown: a pure reading of the journal's lines, for a person to take in at a glance."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from signal import Signals

from preemptd.log import printable
from preemptd.written import Written

Line = Mapping[str, object]

DIED = frozenset(128 + signum for signum in (Signals.SIGABRT, Signals.SIGBUS, Signals.SIGKILL, Signals.SIGSEGV))
"""Exit statuses of a command that did not end by itself, be it while it wrote."""


class Verdict(str, Enum):
    """Whether a real preemption would have cost work."""

    SAVED = "saved"
    LOST = "lost"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class Rehearsal:
    """All that the report is made from."""

    platform: str
    grace: float
    """Seconds that the rehearsed platform gave."""
    lines: Sequence[Line]
    """The journal of this rehearsal."""
    written: Sequence[Written] | None
    """Files that changed since the notice; None: no ``--checkpoint-dir`` was given."""

    def of(self, *events: str) -> list[Line]:
        return [line for line in self.lines if line["event"] in events]

    @property
    def notice(self) -> Line | None:
        """The first notice that was acted on."""
        return next((line for line in self.of("notice") if line["acted"]), None)

    @property
    def advice(self) -> Line | None:
        """The first word of what became that notice, or else of anything, where it came as advice."""
        notice, lines = self.notice, self.of("advice")
        return next((line for line in lines if notice is None or line["event_id"] == notice.get("event_id")), None)

    @property
    def exited(self) -> Line | None:
        return next(iter(self.of("exited")), None)

    @property
    def gives_no_time(self) -> bool:
        """The machine goes with the notice, as with EC2's hibernation: there is no end to come before."""
        return self.notice is not None and number(self.notice["grace"]) <= 0

    @property
    def ended(self) -> str:
        """Say of the command that it has ended, and how soon."""
        if self.notice is None or self.exited is None or not self.gives_no_time:
            return "the command ended in time"
        return f"the command ended {number(self.exited['mono']) - _observed(self.notice):.1f} s after the notice"


def judge(rehearsal: Rehearsal) -> tuple[Verdict, str]:
    """Say what became of the work, and why we say so."""
    notice, exited, told = rehearsal.notice, rehearsal.exited, {line["pid"] for line in rehearsal.of("told")}
    if notice is None and exited is not None and rehearsal.advice is not None:
        return Verdict.UNKNOWN, "the command ended while this was advice, and nobody was told; try a smaller --grace"
    if notice is None or exited is None:
        return Verdict.UNKNOWN, "the command ended before the notice came; try a smaller --after"
    saved = {line["pid"] for line in rehearsal.of("saved") if number(line["mono"]) >= number(notice["mono"])}
    if told and told <= saved:
        return Verdict.SAVED, f"{len(told)} of {len(told)} told processes said that they have saved"
    if any(line["step"] == "kill" for line in rehearsal.of("escalated")):
        left = f"the command still ran when the {rehearsal.grace:.0f} s were over, as the machine would not"
        return Verdict.LOST, left
    return _by_files(rehearsal, exited["status"])


def _by_files(rehearsal: Rehearsal, status: object) -> tuple[Verdict, str]:
    if rehearsal.written is None:
        return Verdict.UNKNOWN, f"{rehearsal.ended}; with --checkpoint-dir DIR we can see what it saved"
    complete = [file for file in rehearsal.written if file.complete]
    if not complete:
        return Verdict.LOST, f"{rehearsal.ended}, but nothing new and complete lies in its --checkpoint-dir"
    if status in DIED:
        return Verdict.UNKNOWN, f"{complete[-1].path} was written, but the command died (status {status}): is it whole?"
    return Verdict.SAVED, f"{complete[-1].path} was written after the notice, and {rehearsal.ended}"


def render(rehearsal: Rehearsal) -> str:
    """Write the report."""
    verdict, why = judge(rehearsal)
    rows = [
        ("rehearsed", [_rehearsed(rehearsal)]),
        ("command", [_command(line) for line in rehearsal.of("started")]),
        ("watched", list(_watched(rehearsal))),
        ("told", [_told(line) for line in rehearsal.of("told")] or ["nobody"]),
        ("left alone", list(_left_alone(rehearsal))),
        ("W&B runs", [_marked(line) for line in rehearsal.of("marked")] or ["none found"]),
        ("timeline", list(_timeline(rehearsal))),
        ("written", _written(rehearsal)),
        ("to spare", [_spare(rehearsal)]),
        ("warnings", [str(line["text"]) for line in rehearsal.of("warning")]),
        ("verdict", [f"{verdict.value.upper()}: {why}"]),
    ]
    text = [
        f"{name if not number else '':11} {printable(entry)}"
        for name, entries in rows
        for number, entry in enumerate(entries)
    ]
    return "\n".join(text)


def _rehearsed(rehearsal: Rehearsal) -> str:
    if rehearsal.gives_no_time:
        return (
            f"{rehearsal.platform}: the machine goes with the notice; the rehearsal ends {rehearsal.grace:.0f} s later"
        )
    if rehearsal.advice is None:
        return f"{rehearsal.platform}: {rehearsal.grace:.0f} s from the notice to the end of the machine"
    ahead = f"{rehearsal.platform}: {rehearsal.grace:.0f} s from the announcement to the end of the machine"
    return f"{ahead}, {number(rehearsal.notice['grace']):.0f} s from the notice" if rehearsal.notice else ahead


def _command(line: Line) -> str:
    return f"{line['command']} (pid {line['pid']})"


def _watched(rehearsal: Rehearsal) -> Iterator[str]:
    for line in rehearsal.of("provider"):
        if line["state"] == "watching":
            yield f"{line['provider']} ({line['why']})"


def _told(line: Line) -> str:
    how = "over the link" if line["how"] == "link" else f"by SIG{line['how']}"
    return f"pid {line['pid']} {how} after {number(line['ms']):.1f} ms: {str(line['command'])[:60]}"


def _left_alone(rehearsal: Rehearsal) -> Iterator[str]:
    told = {line["pid"] for line in rehearsal.of("told")}
    last = {line["pid"]: line for line in rehearsal.of("spared") if line["pid"] not in told}
    for line in list(last.values())[:20]:
        yield f"pid {line['pid']}: {line['why']}"
    if len(last) > 20:
        yield f"and {len(last) - 20} more (--journal FILE has them all)"


def _marked(line: Line) -> str:
    if line["ok"]:
        return f"{line['run_id']} marked preempting after {number(line['ms']):.1f} ms"
    return f"{line['run_id']} NOT marked: {line['why']}"


def _timeline(rehearsal: Rehearsal) -> Iterator[str]:
    """Show what happened since the announcement, in the order of time."""
    announced = [line for line in (rehearsal.advice, rehearsal.notice) if line is not None]
    if not announced:
        return
    words = {
        "marked": lambda line: f"run {line['run_id']} marked preempting" if line["ok"] else "",
        "told": lambda line: f"pid {line['pid']} told",
        "seen": lambda line: f"pid {line['pid']} has seen it",
        "saving": lambda line: f"pid {line['pid']} is saving",
        "saved": lambda line: f"pid {line['pid']} has saved{_step(line)}",
        "done": lambda line: f"pid {line['pid']} says that it is done",
        "undone": lambda line: f"pid {line['pid']} says that it trains again",
        "escalated": lambda line: f"{line['step']} to {line['pids']}",
        "exited": lambda line: f"the command ended with status {line['status']}",
        "settled": lambda line: f"preemptd ends with status {line['status']}",
    }
    zero = _observed(announced[0])
    happened = [
        (_observed(line), f"{line['event']}: {line['kind']} in {max(0.0, number(line['grace'])):.0f} s")
        for line in announced
    ]
    happened += [
        (number(line["mono"]), text)
        for line in rehearsal.lines
        if str(line["event"]) in words and number(line["mono"]) >= zero and (text := words[str(line["event"])](line))
    ]
    for mono, text in sorted(happened, key=lambda entry: entry[0]):
        yield f"+{mono - zero:.3f} s  {text}"


def _observed(line: Line) -> float:
    """Return the monotonic time at which the platform's word had come: a notice is written down after the telling."""
    return number(line["mono"]) - number(line.get("ms")) / 1000


def _step(line: Line) -> str:
    return "" if line["step"] is None else f" step {line['step']}"


def _written(rehearsal: Rehearsal) -> list[str]:
    if rehearsal.written is None:
        return ["not looked at (no --checkpoint-dir)"]
    entries = [
        f"{file.path}, {file.size:,} bytes{'' if file.complete else ' (not complete)'}" for file in rehearsal.written
    ]
    return entries[-10:] or ["nothing since the notice"]


def _spare(rehearsal: Rehearsal) -> str:
    spare = rehearsal.exited and rehearsal.exited["spare"]
    if rehearsal.gives_no_time and rehearsal.exited is not None:
        return f"none is given: {rehearsal.ended}"
    if not isinstance(spare, (int, float)):
        return "no notice was open when the command ended"
    return f"{spare:.1f} s" if spare > 0 else f"none: the command outlived the deadline by {-spare:.1f} s"


def number(value: object) -> float:
    return float(value) if isinstance(value, (int, float)) else 0.0
