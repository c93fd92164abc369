"""What /proc/PID/status says of a process besides its signals: whose it is, and in which pid namespace."""

import re
from dataclasses import dataclass

_CAP_KILL = 1 << 5
_LINE = re.compile(r"^(\w+):[ \t]*(.*)$", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Standing:
    thread_of: int
    """Pid of the process that it is a thread of; its own for a process."""
    parent: int
    uids: tuple[int, ...]
    """Real, effective, saved; empty: not said."""
    pid_inside: int | None
    """Its pid in the innermost pid namespace that it lives in; None: it lives in ours."""
    shows_signals: bool
    """False: this kernel has no lines about signals (gVisor)."""
    may_signal_all: bool
    """It has CAP_KILL."""

    def may_signal(self, other: "Standing") -> bool:
        """Say whether the kernel lets a process like this one signal *other*, by the rule of kill(2)."""
        if self.may_signal_all or not self.uids or not other.uids:
            return True
        return bool({self.uids[0], self.uids[1]} & {other.uids[0], other.uids[2]})


def parse(text: str) -> Standing:
    fields = dict(_LINE.findall(text))
    inside = _numbers(fields.get("NSpid", ""))
    return Standing(
        thread_of=_first(fields.get("Tgid", "")),
        parent=_first(fields.get("PPid", "")),
        uids=_numbers(fields.get("Uid", ""))[:3],
        pid_inside=inside[-1] if len(inside) > 1 else None,
        shows_signals="SigCgt" in fields,
        may_signal_all=bool(int(fields.get("CapEff") or "0", 16) & _CAP_KILL),
    )


def read(pid: int) -> Standing | None:
    """Read it; None: there is no such process, or it may not be looked at."""
    try:
        with open(f"/proc/{pid}/status", encoding="utf-8", errors="replace") as file:
            return parse(file.read())
    except OSError:
        return None


def ancestors(pid: int) -> list[int]:
    """List parent, grandparent and so on, as far up as this pid namespace goes."""
    found: list[int] = []
    standing = read(pid)
    while standing is not None and standing.parent > 0 and standing.parent not in found:
        found.append(standing.parent)
        standing = read(standing.parent)
    return found


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(int(word) for word in text.split() if word.isdecimal())


def _first(text: str) -> int:
    return next(iter(_numbers(text)), 0)
