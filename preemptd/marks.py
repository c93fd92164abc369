"""What is asked of the marker, and whether a telling still waits for it."""

from collections.abc import Container

from preemptd.events import MarkingDone
from preemptd.notices import Meaning
from preemptd.parts import Parts


class Marks:
    """Numbers the demands, so that an answer to an early one ends no later wait. Runs in the loop's thread."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts
        self._asked = 0
        self._awaited: int | None = None
        self.done = False
        """The telling need not wait: the marks are made, or have taken too long."""

    @property
    def awaited(self) -> bool:
        """The processes of this escalation have been looked at, and their marks were asked for."""
        return self._awaited is not None

    def clear(self) -> None:
        """Begin anew: another escalation."""
        self.done = False
        self._awaited = None

    def ask(self, meaning: Meaning) -> None:
        """Have every run marked that is known, if the job is to come back."""
        self._asked += 1
        if meaning is Meaning.PREEMPTED:
            self._parts.marker.mark(self._asked)
        else:  # a job that was cancelled is not to come back; whether it was is not known yet
            self._parts.marker.rest()
            self._parts.inbox.put(MarkingDone(self._asked))

    def ask_and_wait(self, meaning: Meaning) -> None:
        """As `ask`; `done` is True again when `hear` gets the answer."""
        self.ask(meaning)
        self.done = False
        self._awaited = self._asked

    def hear(self, asked: int) -> bool:
        """Note an answer; say whether it is the one that is waited for."""
        self.done = self.done or asked == self._awaited
        return asked == self._awaited

    def finish(self, code: int, spared: Container[int]) -> None:
        """Have the runs ended with *code*, but not those of the processes *spared*."""
        self._asked += 1
        self._parts.marker.finish(self._asked, code, spared)
