"""What others are told of us when they ask: `preemptd status`, systemd's watchdog, /healthz."""

from collections.abc import Mapping, Sequence

from preemptd.escalating import Escalating
from preemptd.events import LinkAsked
from preemptd.model import Run
from preemptd.parts import Parts, Supervised, Timers
from preemptd.telling import Telling
from preemptd.watching import Watching

SHOWN = frozenset({"signal", "signal_target", "dry_run", "no_wandb", "state_dir"})
"""Settings that explain who would be told, and where the history is kept."""


class Answering:
    """Runs in the loop's thread: who answers shows that it turns."""

    def __init__(
        self,
        parts: Parts,
        timers: Timers,
        supervision: Supervised,
        watching: Watching,
        telling: Telling,
        escalating: Escalating,
    ) -> None:
        self._parts = parts
        self._timers = timers
        self._supervision = supervision
        self._watching = watching
        self._telling = telling
        self._escalating = escalating
        self._asking: list[int] = []
        self.runs: Sequence[Run] = ()
        self.waiting = ""
        """What a command that has ended waits for; empty: it has not ended, or is not started again."""

    def take(self, event: LinkAsked, *, at_once: bool = False) -> None:
        """Answer a question when the next look at the processes has come, or *at_once*."""
        if event.verb == "notify":
            self._escalating.asked(event.fields)
        self._asking.append(event.peer)
        self.answer_all() if at_once else self._telling.look()

    def answer_all(self) -> None:
        """Answer those who asked since the last look: who would be told is as old as the picture."""
        for peer in self._asking:
            self._parts.link.answer(peer, {"type": "status", **self._status()})
        self._asking.clear()

    def beat(self) -> None:
        """Show that the loop turns, again and again, to whoever wants to know."""
        self._parts.pulse.beat(self._status)
        if self._parts.pulse.interval is not None:
            self._timers.after(self._parts.pulse.interval, self.beat)

    def end(self) -> None:
        """Show it for the last time: our own end takes as long as a scheduler does, and no loop turns meanwhile."""
        self._parts.pulse.beat(lambda: {**self._status(), "ends": True})

    def _status(self) -> Mapping[str, object]:
        return {
            "pid": self._supervision.id.pid,
            "held": self._supervision.held,
            "waiting": self.waiting,
            "targets": self._supervision.targets(),
            "providers": sorted(self._watching.providers),
            "watches": self._watching.status(),
            "runs": [run.run_id for run in self.runs],
            **self._telling.status(),
            **({"would_tell": []} if self.waiting else {}),
            "nodes": self._parts.nodes.present,
            "notices": self._escalating.status(),
            "advice": self._escalating.advice(),
            **self._parts.settings.model_dump(include=set(SHOWN)),
        }
