"""What comes after the telling: SIGTERM to those who stay silent, SIGKILL if it was asked for."""

from collections.abc import Sequence
from signal import Signals

from preemptd import procfs
from preemptd.escalation import Escalation
from preemptd.model import Process, ProcessId
from preemptd.parts import Parts, Timers
from preemptd.procfs import Sent
from preemptd.targets.roll import Roll
from preemptd.targets.selection import Policy, Selection


class Insisting:
    """Acts on those who are on the roll. Runs in the loop's thread."""

    def __init__(self, parts: Parts, timers: Timers, roll: Roll) -> None:
        self._parts = parts
        self._timers = timers
        self._roll = roll
        self.killed = False
        """Something was killed by us."""

    def term(self, processes: Sequence[Process], escalation: Escalation, policy: Policy) -> None:
        """Give SIGTERM, once, to those who were told otherwise, said nothing and are still there.

        Not if the user chose another signal: a TERM handler that raises in the middle of a save would lose it. Nor
        under ``main``, where the command told may be a launcher (srun) that makes a stop of SIGTERM.
        """
        if Signals.SIGTERM not in policy.signals or policy.reach == "main":
            return
        done = []
        for process in self._roll.for_term(processes):
            if Signals.SIGTERM in escalation.already_sent:
                continue
            if procfs.send(process.id, Signals.SIGTERM) is Sent.SENT:
                self._roll.tell(process.id, "TERM", self._timers.now())
                done.append(process.id)
        if done:
            told = ((process, "TERM") for process in done)
            self._parts.ledger.write(self._parts.ledger.record.adding(escalation.event_ids, told))
            self._write("term", escalation, done)

    def kill(self, selection: Selection, escalation: Escalation) -> None:
        """SIGKILL everything of the target but wandb-core, which ends by itself after it has sent what it has."""
        victims = [choice.process.id for choice in (*selection.told, *selection.spared) if not choice.is_core]
        for victim in victims:
            procfs.send(victim, Signals.SIGKILL, only_if_caught=False)
        self.killed = self.killed or bool(victims)
        self._write("kill", escalation, victims)

    def _write(self, step: str, escalation: Escalation, processes: Sequence[ProcessId]) -> None:
        ms = round((self._timers.now() - escalation.began) * 1000, 1)
        self._parts.journal.write("escalated", step=step, ms=ms, pids=[process.pid for process in processes])
