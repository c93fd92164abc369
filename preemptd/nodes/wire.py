"""What the daemon and its agents on the nodes say to each other: JSON lines through the pipes of one srun.

srun gives our lines to all agents. Theirs come back mixed, whole as long as they fit into one of SLURM's messages.
"""

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from preemptd.escalation import Escalation, deadline_of
from preemptd.model import ProcessId
from preemptd.notices import Kind, Level, Meaning, Notice

LONGEST = 1000
"""Bytes of an agent's line: srun's messages hold 1,024, and those of several nodes come in between."""
LONGEST_ORDER = 2**20
MOST_LINKED = 1000

Line = Mapping[str, object]


class WireError(Exception):
    """A line is none that we know."""


@dataclass(frozen=True, slots=True)
class Order:
    """All that an agent has to know: a newer one replaces an older one."""

    life: str = ""
    """procfs.machine_life() of the daemon: where it is the same, pids of both mean the same process."""
    notices: tuple[Notice, ...] = ()
    fenced: bool = False
    """The job runs elsewhere already: what is here is to be killed."""
    linked: frozenset[ProcessId] = frozenset()
    """Who is told by the daemon itself, over its socket."""
    told: tuple[tuple[str, ProcessId, str], ...] = ()
    """(machine life, process, how) of those whom an agent that died has told of these notices."""

    @property
    def event_ids(self) -> frozenset[str]:
        return frozenset(notice.event_id for notice in self.notices)


@dataclass(frozen=True, slots=True)
class End:
    """The command has ended: see to the W&B runs, and go."""

    preempted: bool
    code: int
    budget: float
    """Seconds."""


def encode(line: Line) -> bytes:
    return json.dumps(line, separators=(",", ":"), default=str).encode() + b"\n"


def encode_short(line: Line) -> bytes:
    """Make a line of at most `LONGEST` bytes, by cutting its texts."""
    for longest in (LONGEST, 300, 100, 10):
        text = encode({name: _cut(value, longest) for name, value in line.items()})
        if len(text) <= LONGEST:
            return text
    return encode({name: line[name] for name in ("event", "node") if name in line})


def _cut(value: object, longest: int) -> object:
    if isinstance(value, str):
        return value[:longest]
    return value[:longest] if isinstance(value, list) else value


def decode(text: bytes) -> dict[str, Any]:
    """Read a line.

    Raises:
        WireError: it is no JSON object.
    """
    try:
        line = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise WireError(str(error)) from error
    if not isinstance(line, dict):
        raise WireError("no object")
    return line


# -- the daemon's lines --------------------------------------------------------------------------------------------


def notice_lines(escalation: Escalation | None, now: float) -> list[Line]:
    """Put the open notices into words; what is left of the time is counted from *now*, the moment of sending."""
    if escalation is None:
        return []
    return [
        {
            "provider": notice.provider,
            "event_id": notice.event_id,
            "kind": str(notice.kind),
            "source": notice.source[:200],
            "remaining": round(deadline_of(notice, escalation.timing) - now, 3),
            "final": notice.final,
            "already_sent": sorted(notice.already_sent),
            "meaning": str(notice.meaning),
        }
        for notice in escalation.notices
    ]


def process_lines(processes: Iterable[ProcessId]) -> list[list[int]]:
    return [[process.pid, process.start] for process in sorted(processes, key=lambda one: one.pid)][:MOST_LINKED]


def order_of(line: Mapping[str, Any], now: float) -> Order:
    """Read an order that has come at monotonic *now*.

    Raises:
        WireError: it is none.
    """
    try:
        return Order(
            life=str(line["life"]),
            notices=tuple(_notice(each, now) for each in _list(line["notices"])),
            fenced=bool(line["fenced"]),
            linked=frozenset(ProcessId(int(pid), int(start)) for pid, start in _list(line["linked"])),
            told=tuple(
                (str(life), ProcessId(int(pid), int(start)), str(how))
                for life, pid, start, how in _list(line.get("told", []))
            ),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise WireError(f"{type(error).__name__}: {error}") from error


def end_of(line: Mapping[str, Any]) -> End:
    """Read the last order.

    Raises:
        WireError: it is none.
    """
    try:
        return End(bool(line["preempted"]), int(line["code"]), _seconds(line["budget"]))
    except (KeyError, TypeError, ValueError) as error:
        raise WireError(f"{type(error).__name__}: {error}") from error


def _notice(line: Mapping[str, Any], now: float) -> Notice:
    return Notice(
        provider=str(line["provider"]),
        event_id=str(line["event_id"]),
        kind=Kind(line["kind"]),
        level=Level.ACT,
        source=str(line["source"]),
        observed=now,
        remaining=_seconds(line["remaining"]),
        final=bool(line["final"]),
        already_sent=frozenset(int(number) for number in _list(line["already_sent"])),
        meaning=Meaning(line["meaning"]),
    )


def _list(value: object) -> list[Any]:
    if not isinstance(value, list):
        raise TypeError("not a list")
    return value


def _seconds(value: object) -> float:
    if not isinstance(value, int | float) or not math.isfinite(value):
        raise TypeError(f"{value!r} is no number of seconds")
    return float(value)
