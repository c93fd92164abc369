"""Signal files: whoever knows of the end (an admin, an Epilog, a shell trap, a spot watcher) says so with `touch`."""

import os
from collections.abc import Sequence
from datetime import datetime, timezone

from preemptd.notices import Kind, Level, Notice
from preemptd.provider import Detection, Found, Machine, Observation, Provider, Surroundings, Watch
from preemptd_providers._signal_file import printable
from preemptd_providers._signal_search import (
    MACHINE_DIRECTORY,
    VARIABLE,
    FoundFile,
    SignalFileOptions,
    SignalSearch,
)

__all__ = ["MACHINE_DIRECTORY", "VARIABLE", "FileOptions", "SignalFile", "SignalFileWatch"]


class FileOptions(SignalFileOptions):
    """The table ``[providers.file]``."""


class SignalFile(Provider):
    name = "file"
    options_type = FileOptions
    stands_down_for = frozenset({"slurm"})

    def __init__(self, options: FileOptions, surroundings: Surroundings) -> None:
        super().__init__(options, surroundings)
        self._search = SignalSearch(options, surroundings)

    @classmethod
    def detect(cls, machine: Machine) -> Detection | None:
        if machine.environ.get(VARIABLE):
            return Detection(Found.ENVIRONMENT, f"{VARIABLE} is set")
        if os.path.isdir(MACHINE_DIRECTORY):
            return Detection(Found.MACHINE, f"{MACHINE_DIRECTORY} exists")
        return None

    def watches(self) -> Sequence[Watch]:
        return (SignalFileWatch(self._search),)

    def describe(self) -> str:
        return self._search.describe()


class SignalFileWatch(Watch):
    """Every signal file that may concern this job, as one source: several files at once are one notice."""

    name = "file:signals"

    def __init__(self, search: SignalSearch) -> None:
        self._search = search
        self._announced: tuple[FoundFile, Notice] | None = None
        self._closed = False

    def observe(self) -> Observation:
        if self._closed:
            return Observation.unknown("the watch is closed")
        look = self._search.look()
        if look.files:
            return Observation.of(self._notice(look.files[0]))
        # One that was refused may have been a notice, so that this is no CLEAR.
        return Observation.unknown("; ".join(look.refused)) if look.refused else Observation.clear()

    def close(self) -> None:
        self._closed = True

    def _notice(self, file: FoundFile) -> Notice:
        if self._announced is None or self._announced[0] is not file:
            self._announced = file, notice_of(file)
        return self._announced[1]


def notice_of(file: FoundFile) -> Notice:
    inode, mtime_ns, size = file.content.identity
    text = file.text
    return Notice(
        provider=SignalFile.name,
        event_id=f"file:{printable(os.path.basename(file.place.path))}:{inode}.{mtime_ns}.{size}",
        # A cancelled job is not to come back: nobody may mark it as preempted and so have it requeued.
        kind=Kind.STOP if text.cancelled else Kind.PREEMPT,
        level=Level.ADVISE if text.cancelled else Level.ACT,
        source=printable(file.place.path),
        observed=file.observed,
        remaining=file.remaining,
        deadline=None if text.deadline is None else datetime.fromtimestamp(text.deadline, timezone.utc),
        detail=file.detail,
    )
