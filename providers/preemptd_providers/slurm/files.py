"""The watch for signal files of a SLURM job: another way to hear of the one notice."""

import time
from collections.abc import Callable

from preemptd.notices import Kind, Level, Meaning, Notice
from preemptd.provider import Observation, Watch
from preemptd_providers._signal_file import printable
from preemptd_providers._signal_search import FoundFile, SignalSearch
from preemptd_providers.slurm.acks import Acks
from preemptd_providers.slurm.attempt import Attempt
from preemptd_providers.slurm.polling import CLOSED

SOON = 0.25
"""Seconds to the next look while nobody knows what a file means."""


class FileWatch(Watch):
    """Every signal file that may concern this job; and the answers to them."""

    name = "slurm:files"

    def __init__(
        self, search: Callable[[], SignalSearch], attempt: Attempt, acks: Acks, wake: Callable[[], None]
    ) -> None:
        """Make it; *search* returns where to look now, *wake* has the controller asked at once."""
        self._search = search
        self._attempt = attempt
        self._acks = acks
        self._wake = wake
        self._seen: FoundFile | None = None
        self._announced = False
        self._closed = False

    def observe(self) -> Observation:
        if self._closed:
            return Observation.unknown(CLOSED)
        look = self._search().look()
        file = look.files[0] if look.files and not look.files[0].text.cancelled else None
        self._attempt.may_come_back = all(each.text.requeue and not each.text.cancelled for each in look.files)
        notice = self._attempt.filed(file)
        self._answer(file, notice)
        if notice is not None and self._announced:  # others may have heard of it: then it outlives the file
            return Observation.of(notice)
        self._announced = False
        if look.files:
            return Observation.of(self._cancelled(look.files[0]))
        return Observation.unknown("; ".join(look.refused)) if look.refused else Observation.clear()

    def _answer(self, file: FoundFile | None, notice: Notice | None) -> None:
        if file is not self._seen:
            self._seen = file
            self._wake()
        if file is not None:
            self._announced = True
            self._acks.obey(file.place.path)
        if notice is not None and notice.meaning in {Meaning.PREEMPTED, Meaning.UNDECIDED}:
            self._acks.write("noticed")
        undecided = notice is not None and notice.meaning is Meaning.UNDECIDED
        self.interval = SOON if undecided else Watch.interval

    def close(self) -> None:
        self._closed = True

    def _cancelled(self, file: FoundFile) -> Notice:
        """Pass on that somebody cancels the job: it is not to come back, and nobody is told."""
        return Notice(
            provider="slurm",
            event_id=f"{self._attempt.event_id}:cancelled",
            kind=Kind.CANCELLED,
            level=Level.ADVISE,
            source=printable(file.place.path),
            observed=time.monotonic(),
            detail=file.detail,
            meaning=Meaning.STOPPED,
        )
