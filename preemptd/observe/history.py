"""What became of each notice, in one entry: made from the journal's lines as they come."""

import re
from collections.abc import Callable, Mapping, Sequence

from preemptd.journal import Line

Entry = Mapping[str, object]

VERSION = 1
LONGEST_COMMAND = 200
MOST = 1e15
SOONER = 0.5
"""Seconds by which the end of another notice must come before that of the first, to be the one that is named."""
_OF_A_NOTICE = ("event_id", "provider", "kind", "source")
REQUEUED = re.compile(r"(^|; )requeued job ")


class Story:
    """Follows one journal. An entry is returned whenever there is something in it that must not be lost.

    The later one of the same ``id`` holds. One entry tells of all the notices that were open at the same time, by the
    name of the one that ends first.
    """

    def __init__(self, by: Entry) -> None:
        """Begin; *by* says whose journal it is."""
        self._by = by
        self._job: Entry = {}
        self._entry: dict[str, object] | None = None
        self._open: set[str] = set()
        self._not_acted: Line | None = None
        """A notice that came when the command had ended: only then it is known whether it is what ended it."""
        self._revoked: dict[str, object] | None = None
        """The last entry, if it ended by that: who was told may leave all the same."""
        self._ended: Entry | None = None
        """The last entry, if the command ended with it."""
        self._take: Mapping[str, Callable[[Line], Entry | None]] = {
            "started": self._started,
            "notice": self._notice,
            "told": self._told,
            "marked": self._marked,
            "saved": self._saved,
            "repaired": self._repaired,
            "exited": self._exited,
            "revoked": self._revocation,
            "settled": self._settled,
            "restarted": self._restarted,
            "stopped": lambda line: self._close("stopped", why=line.get("why")),
        }

    def take(self, line: Line) -> Entry | None:
        take = self._take.get(str(line.get("event")))
        return None if take is None else take(line)

    def close(self) -> Entry | None:
        """Return what is open at the end of the journal."""
        return self._close(None)

    # -- the lines -------------------------------------------------------------------------------------------------

    def _started(self, line: Line) -> Entry | None:
        left = self._close(None)
        self._revoked = self._not_acted = None
        self._job = {name: line.get(name) for name in ("job_id", "attempt")}
        self._job = {**self._job, "command": str(line.get("command"))[:LONGEST_COMMAND]}
        return left

    def _notice(self, line: Line) -> Entry | None:
        if self._entry is None:
            if not line.get("acted"):
                self._not_acted = line
                return None
            self._begin(line)
        entry = self._entry or {}
        self._open.add(str(line.get("event_id")))
        entry["notices"] = len(self._open)
        after = number(line.get("t")) - number(entry["t"])
        grace = round(after + number(line.get("grace")), 1)
        sooner = bool(line.get("acted")) and grace < number(entry["grace"]) - SOONER
        if sooner or line.get("event_id") == entry["event_id"]:  # it may come again, when more is known
            entry.update({name: line.get(name) for name in _OF_A_NOTICE}, grace=grace)
        return dict(entry)

    def _begin(self, line: Line) -> None:
        self._revoked = self._not_acted = None
        self._open = set()
        self._entry = {
            "v": VERSION,
            "id": f"{self._by.get('pid', 0)}.{line.get('t')}",
            "t": line.get("t"),
            **{name: line.get(name) for name in (*_OF_A_NOTICE, "grace")},
            **self._job,
            "notices": 1,
            **dict.fromkeys(("marked", "not_marked", "told", "saved", "mended", "not_mended"), 0),
            **dict.fromkeys(("mark_s", "tell_s", "save_s", "spare_s", "own_status", "status"), None),
            "preempted": None,
            "requeued": None,
            "restarted": None,
            "end": None,
            "why": None,
            "by": dict(self._by),
        }

    def _told(self, line: Line) -> Entry | None:
        if self._entry is None or line.get("dry_run"):
            return None
        self._later("tell_s", line)
        return self._one_more("told")

    def _marked(self, line: Line) -> None:
        if self._entry is not None:
            self._one_more("marked" if line.get("ok") else "not_marked")
            if line.get("ok"):
                self._later("mark_s", line)

    def _saved(self, line: Line) -> Entry | None:
        if self._entry is None or line.get("ms") is None:  # a checkpoint that nobody asked for
            return None
        self._later("save_s", line)
        entry = self._one_more("saved")
        return entry if number(entry["saved"]) >= number(entry["told"]) else None

    def _repaired(self, line: Line) -> None:
        if self._entry is not None and not (line.get("ok") and line.get("how") == "nothing"):
            self._one_more("mended" if line.get("ok") else "not_mended")

    def _exited(self, line: Line) -> None:
        entry = self._entry or self._revoked
        if entry is not None:
            entry.update(spare_s=line.get("spare"), own_status=line.get("status"))

    def _revocation(self, line: Line) -> Entry | None:
        self._open.discard(str(line.get("event_id")))
        if self._entry is None or self._open:
            return None
        self._revoked = self._entry
        return self._close("revoked")

    def _settled(self, line: Line) -> Entry | None:
        if self._entry is None and line.get("preempted"):
            if self._revoked is not None:
                self._entry = self._revoked
            elif self._not_acted is not None:
                self._begin(self._not_acted)
        why = line.get("why")
        self._ended = self._close(
            "settled",
            status=line.get("status"),
            preempted=line.get("preempted"),
            requeued=REQUEUED.search(str(why)) is not None,
            why=why,
        )
        return self._ended

    def _restarted(self, line: Line) -> Entry | None:
        entry, self._ended = self._ended, None
        if entry is None:
            return None
        again = f"started again ({line.get('number')} of {line.get('of')}): {line.get('why')}"
        return {**entry, "restarted": line.get("number"), "why": f"{entry.get('why')}; {again}"}

    # -- the entry -------------------------------------------------------------------------------------------------

    def _one_more(self, name: str) -> Entry:
        entry = self._entry if self._entry is not None else {}
        entry[name] = int(number(entry.get(name))) + 1
        return dict(entry)

    def _later(self, name: str, line: Line) -> None:
        """Keep the seconds to the last one of its kind."""
        if self._entry is not None:
            self._entry[name] = max(number(self._entry[name]), round(number(line.get("ms")) / 1000, 4))

    def _close(self, end: str | None, **more: object) -> Entry | None:
        entry, self._entry = self._entry, None
        if entry is not None:
            entry.update(more, end=end)
            return dict(entry)
        return None


def last_of_each(entries: Sequence[Entry]) -> list[Entry]:
    """Keep the last word on each notice, in the order of time."""
    last = {str(entry.get("id")): entry for entry in entries}
    return sorted(last.values(), key=lambda entry: number(entry.get("t")))


def number(value: object) -> float:
    """Return what is no number, or none that counts anything, as 0: a file may hold what it likes."""
    return float(value) if isinstance(value, int | float) and abs(value) < MOST else 0.0
