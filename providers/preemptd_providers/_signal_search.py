"""Looks for signal files that concern this job, and judges each of them once."""

import os
import time
from contextlib import suppress
from dataclasses import dataclass, replace

from pydantic import Field, field_validator

from preemptd.errors import ProviderError
from preemptd.provider import Options, Surroundings
from preemptd_providers._signal_file import (
    Address,
    Scope,
    SignalFileContent,
    SignalText,
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


class SignalFileOptions(Options):
    """What a provider that reads signal files lets its user set."""

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


@dataclass(frozen=True, slots=True)
class FoundFile:
    """A file that is meant for this attempt."""

    place: Address
    content: SignalFileContent
    text: SignalText
    due: float
    """Unix time of the end, a guess where the file does not say: the most urgent of several files comes first."""
    observed: float
    """time.monotonic() when it was first seen."""
    remaining: float | None
    """Seconds left at *observed*; None: the file does not say."""

    @property
    def detail(self) -> str:
        return self.content.raw[:4096].decode(errors="replace")


@dataclass(frozen=True, slots=True)
class Look:
    """What one look at all places found."""

    files: tuple[FoundFile, ...]
    """The most urgent one first; what says that the job was cancelled comes last."""
    refused: tuple[str, ...]
    """What was there but must not be believed, or may be there but cannot be read."""


@dataclass(frozen=True, slots=True)
class _Judged:
    file: FoundFile | None
    """None: it is not for us."""


class SignalSearch:
    """Every place where a signal file for this job may lie."""

    def __init__(self, options: SignalFileOptions, surroundings: Surroundings) -> None:
        self._surroundings = surroundings
        self._clock = _clock()
        self._trusted = options.trusted_uids | {0, os.geteuid()}
        self.directories = _directories(surroundings)
        self.places = addresses(self.directories, options.path, surroundings)
        self._listed = tuple(dict.fromkeys(os.path.dirname(place.path) for place in self.places))
        self._next_listing = 0.0
        self._known: dict[tuple[str, tuple[int, int, int]], _Judged] = {}

    def look(self) -> Look:
        self._list_directories()
        present: dict[tuple[str, tuple[int, int, int]], _Judged] = {}
        refused = []
        for place in self.places:
            try:
                content = self._read(place)
            except ProviderError as error:
                refused.append(str(error))
                continue
            if content is not None:
                key = (place.path, content.identity)
                present[key] = self._known.get(key) or self._judge(place, content)
        self._known = present
        files = sorted(
            (judged.file for judged in present.values() if judged.file),
            key=lambda file: (file.text.cancelled, file.due),
        )
        return Look(tuple(files), tuple(refused))

    def describe(self) -> str:
        names = dict.fromkeys(os.path.basename(place.path) for place in self.places if place.scope is not Scope.PATH)
        exact = [place.path for place in self.places if place.scope is Scope.PATH]
        where = f"{' or '.join(map(printable, names))} in {' or '.join(map(printable, self.directories))}"
        return ", ".join([*map(printable, exact), where])

    def _list_directories(self) -> None:
        """Make an NFS client ask its server: it may believe for a minute (acdirmax) that a missing name is missing."""
        now = time.monotonic()
        if now < self._next_listing:
            return
        self._next_listing = now + LISTING_INTERVAL
        for directory in self._listed:
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
        # Behind a clock that was set back, files have earlier times than what happened before.
        started = self._surroundings.started + min(0.0, _clock() - self._clock)
        if not is_for_us(place, content, text, replace(self._surroundings, started=started)):
            return _Judged(None)
        grace = self._surroundings.grace if self._surroundings.grace is not None else DEFAULT_GRACE
        due = text.deadline if text.deadline is not None else content.mtime + grace
        remaining = None if text.deadline is None else text.deadline - time.time()
        return _Judged(FoundFile(place, content, text, due, time.monotonic(), remaining))


def _clock() -> float:
    """Return what changes only when somebody sets the clock."""
    return time.time() - time.monotonic()


def _directories(surroundings: Surroundings) -> tuple[str, ...]:
    named = surroundings.environ.get(VARIABLE)
    return tuple(dict.fromkeys((named, MACHINE_DIRECTORY))) if named else (MACHINE_DIRECTORY,)
