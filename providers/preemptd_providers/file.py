"""Signal files: whoever knows of the end (an admin, an Epilog, a shell trap, a spot watcher) says so with `touch`."""

import os
import time
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime, timezone

from pydantic import Field, field_validator

from preemptd.errors import ProviderError
from preemptd.notices import Kind, Level, Notice
from preemptd.provider import Detection, Found, Machine, Observation, Options, Provider, Surroundings, Watch
from preemptd_providers._signal_file import (
    Address,
    Scope,
    SignalFileContent,
    addresses,
    is_for_us,
    parse,
    printable,
    read,
    read_settled,
)

VARIABLE = "PREEMPTD_SIGNAL_DIR"
MACHINE_DIRECTORY = "/run/preemptd-signals"
DEFAULT_GRACE = 30.0
LISTING_INTERVAL = 5.0


class FileOptions(Options):
    """The table ``[providers.file]``."""

    path: str | None = None
    """One exact file to watch besides those in the signal directories."""
    trusted_uids: frozenset[int] = Field(default=frozenset())
    """Users besides root and ourselves whose files are believed (65534 where NFS squashes root)."""

    @field_validator("path")
    @classmethod
    def _absolute(cls, path: str | None) -> str | None:
        if path is not None and (not path.startswith("/") or path.endswith("/") or "\0" in path):
            raise ValueError("must be the absolute path of a file")
        return path


class SignalFile(Provider):
    name = "file"
    options_type = FileOptions
    stands_down_for = frozenset({"slurm"})

    def __init__(self, options: FileOptions, surroundings: Surroundings) -> None:
        super().__init__(options, surroundings)
        self._directories = _directories(surroundings)
        self._addresses = addresses(self._directories, options.path, surroundings)
        self._trusted = options.trusted_uids | {0, os.geteuid()}

    @classmethod
    def detect(cls, machine: Machine) -> Detection | None:
        if machine.environ.get(VARIABLE):
            return Detection(Found.ENVIRONMENT, f"{VARIABLE} is set")
        if os.path.isdir(MACHINE_DIRECTORY):
            return Detection(Found.MACHINE, f"{MACHINE_DIRECTORY} exists")
        return None

    def watches(self) -> Sequence[Watch]:
        return (SignalFileWatch(self._addresses, self._trusted, self.surroundings),)

    def describe(self) -> str:
        names = dict.fromkeys(os.path.basename(a.path) for a in self._addresses if a.scope is not Scope.PATH)
        exact = [address.path for address in self._addresses if address.scope is Scope.PATH]
        where = f"{' or '.join(map(printable, names))} in {' or '.join(map(printable, self._directories))}"
        return ", ".join([*map(printable, exact), where])


def _directories(surroundings: Surroundings) -> tuple[str, ...]:
    named = surroundings.environ.get(VARIABLE)
    return tuple(dict.fromkeys((named, MACHINE_DIRECTORY))) if named else (MACHINE_DIRECTORY,)


@dataclass(frozen=True, slots=True)
class _Judged:
    """A file that was read; *notice* is None when it is not for us."""

    notice: Notice | None
    due: float
    """Unix time of the end, a guess where the file does not say: the most urgent of several files is the notice."""


class SignalFileWatch(Watch):
    """Every signal file that may concern this job, as one source: several files at once are one notice."""

    name = "file:signals"

    def __init__(self, places: tuple[Address, ...], trusted: frozenset[int], surroundings: Surroundings) -> None:
        self._places = places
        self._trusted = trusted
        self._surroundings = surroundings
        self._directories = tuple(dict.fromkeys(os.path.dirname(place.path) for place in places))
        self._next_listing = 0.0
        self._known: dict[tuple[str, tuple[int, int, int]], _Judged] = {}
        self._closed = False

    def observe(self) -> Observation:
        if self._closed:
            return Observation.unknown("the watch is closed")
        self._list_directories()
        present: dict[tuple[str, tuple[int, int, int]], _Judged] = {}
        refused = []
        for place in self._places:
            try:
                content = self._read(place)
            except ProviderError as error:
                refused.append(str(error))
                continue
            if content is not None:
                key = (place.path, content.identity)
                present[key] = self._known.get(key) or self._judge(place, content)
        self._known = present
        return _most_urgent(present.values()) or _without_notice(refused)

    def close(self) -> None:
        self._closed = True

    def _list_directories(self) -> None:
        """Make an NFS client ask its server: it may believe for a minute (acdirmax) that a missing name is missing."""
        now = time.monotonic()
        if now < self._next_listing:
            return
        self._next_listing = now + LISTING_INTERVAL
        for directory in self._directories:
            with suppress(OSError, ValueError):  # one may look up names in a directory that one may not list
                os.listdir(directory)

    def _read(self, place: Address) -> SignalFileContent | None:
        content = read(place.path, self._trusted)
        if content is None or (place.path, content.identity) in self._known:
            return content
        return read_settled(place.path, self._trusted)

    def _judge(self, place: Address, content: SignalFileContent) -> _Judged:
        """Judge the file once and keep that: what remains must not change when somebody sets the clock."""
        text = parse(content.raw)
        grace = self._surroundings.grace if self._surroundings.grace is not None else DEFAULT_GRACE
        due = text.deadline if text.deadline is not None else content.mtime + grace
        if not is_for_us(place, content, text, self._surroundings):
            return _Judged(None, due)
        inode, mtime_ns, size = content.identity
        notice = Notice(
            provider=SignalFile.name,
            event_id=f"file:{printable(os.path.basename(place.path))}:{inode}.{mtime_ns}.{size}",
            # A cancelled job is not to come back: nobody may mark it as preempted and so have it requeued.
            kind=Kind.STOP if text.cancelled else Kind.PREEMPT,
            level=Level.ADVISE if text.cancelled else Level.ACT,
            source=printable(place.path),
            observed=time.monotonic(),
            remaining=None if text.deadline is None else text.deadline - time.time(),
            deadline=None if text.deadline is None else datetime.fromtimestamp(text.deadline, timezone.utc),
            detail=content.raw[:4096].decode(errors="replace"),
        )
        return _Judged(notice, due)


def _most_urgent(files: Iterable[_Judged]) -> Observation | None:
    notices = [(judged.notice.level is Level.ADVISE, judged.due, judged.notice) for judged in files if judged.notice]
    return Observation.of(min(notices, key=lambda entry: entry[:2])[2]) if notices else None


def _without_notice(refused: list[str]) -> Observation:
    """Answer when no file is a notice: one that was refused may have been one, so that this is no CLEAR."""
    return Observation.unknown("; ".join(refused)) if refused else Observation.clear()
