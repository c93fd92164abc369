"""SIGTERM while a notice is open: the end that was announced, or somebody's wish."""

from preemptd.escalating import Escalating
from preemptd.escalation import Step
from preemptd.notices import Meaning
from preemptd.telling import Telling


class FirstTerm:
    """Takes the first SIGTERM in an escalation for the machine's end: who saves goes on. A second one is a wish."""

    def __init__(self, escalating: Escalating, telling: Telling) -> None:
        self._escalating = escalating
        self._telling = telling
        self._taken_in = 0
        """Number of the escalation."""

    def take(self) -> bool:
        """Say whether it is the first one; those who said nothing get it then."""
        escalation = self._escalating.current
        if escalation is None or self._taken_in == escalation.number:
            return False
        self._taken_in = escalation.number
        self._telling.insist(Step.TERM)
        return True

    def was_announced(self) -> bool:
        """Take one that a provider calls a wish, if another provider has announced the end of the machine."""
        return self._escalating.meaning is Meaning.PREEMPTED and self.take()
