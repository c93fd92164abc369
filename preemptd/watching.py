"""The providers at work: a poller for each of their watches, the probe when none was certain, what status says."""

import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from signal import Signals
from typing import TypeVar

from preemptd.errors import ProviderError, place_of
from preemptd.events import NoticeArrived, ProvidersProbed, WatchChanged
from preemptd.notices import Notice
from preemptd.parts import Parts
from preemptd.poller import Poller, stop_all
from preemptd.provider import Conclusion, Observation, Provider, Watch
from preemptd.registry import probe_all

T = TypeVar("T")

STOP_WITHIN = 0.2
"""Seconds at the end for watches that hang at a server; their threads die with us anyway."""


class Watching:
    """Owns providers and pollers. Runs in the loop's thread."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts
        self.providers: dict[str, Provider] = dict(parts.providers)
        self._pollers: dict[str, Poller] = {}
        self._provider_of: dict[str, str] = {}
        self._unanswered: set[str] = set()
        self._said_none = False
        self._end_probing: Callable[[], None] = lambda: None
        self._out: set[str] = set()
        """Watches of which an outage was written down, and not its end."""
        self._silent: dict[str, str] = {}
        """Why a provider is used, until its first good answer is written down."""
        self._good: set[str] = set()
        """Watches that have had a good answer."""
        self.outlived: frozenset[str] = frozenset()
        """Events that the platform still announces although the machine has outlived them."""

    def start(self) -> None:
        """Start the watches of those that are certain."""
        for name, provider in self.providers.items():
            self._watch(name, provider, self._parts.reasons.get(name, ""))

    def probe(self) -> None:
        """Ask the network for the others, in threads; `ProvidersProbed` comes within about a second, perhaps again."""
        self._end_probing = probe_all(self._parts.candidates, self._parts.inbox.put)

    def probed(self, event: ProvidersProbed) -> None:
        for provider in self._parts.candidates:
            if provider.name in event.found:
                self.providers[provider.name] = provider
                self._watch(provider.name, provider, event.found[provider.name])
            elif event.last:
                provider.close()
        if not self.providers and not self._said_none:
            self._said_none = True
            self._parts.journal.write(
                "provider",
                provider=None,
                state="none",
                why="no platform found that announces preemptions: only watching over the command (preemptd providers)",
            )

    def _watch(self, name: str, provider: Provider, why: str) -> None:
        none: Sequence[Watch] = ()
        watches = self._guarded(name, provider.watches, none)
        if not watches:
            self._parts.journal.write("provider", provider=name, state="watching", why=why)
        else:
            self._silent[name] = why
        for watch in watches:
            poller = Poller(watch, self._parts.inbox.put)
            self._pollers[watch.name] = poller
            self._unanswered.add(watch.name)
            self._provider_of[watch.name] = name
            poller.start()

    def _guarded(self, name: str, call: Callable[[], T], otherwise: T) -> T:
        try:
            return call()
        except Exception as error:  # noqa: BLE001 - the plug-in border: a bug in one provider costs nobody else
            self._parts.journal.warn(f"provider {name} failed: {error!r} at {place_of(error)}")
            return otherwise

    @property
    def all_answered(self) -> bool:
        """Each watch has said something, be it that it does not know."""
        return not self._unanswered

    def changed(self, event: WatchChanged) -> None:
        """Write down the begin and the end of an outage; the first good answer of a provider says what it watches."""
        self.answered(event.watch)
        if event.why is not None:
            self._out.add(event.watch)
            self._parts.journal.write("provider", provider=event.watch, state="outage", why=event.why)
            return
        name = self._provider_of[event.watch]
        if name in self._silent:
            where = self._guarded(name, self.providers[name].describe, "")
            why = "; ".join(text for text in (self._silent.pop(name), where) if text)
            self._parts.journal.write("provider", provider=name, state="watching", why=why)
        elif event.watch in self._out:
            self._parts.journal.write("provider", provider=event.watch, state="recovered", why=None)
        self._out.discard(event.watch)
        self._good.add(event.watch)

    def answered(self, watch: str) -> None:
        self._unanswered.discard(watch)

    def arrived(self, event: NoticeArrived) -> bool:
        """Take note of a notice; False: the machine has outlived it, and the platform does not say that it is anew."""
        self.answered(event.watch)
        notice = event.notice
        # What a watch sees at its first good look may be old; whatever it says later is news.
        old = event.watch not in self._good and notice.event_id in (self._parts.outlived or ())
        if not old or (notice.deadline is not None and notice.remaining is not None and notice.remaining > 0):
            return True
        self.outlive(notice)
        return False

    def outlive(self, notice: Notice) -> None:
        """Write down that the machine is still here although *notice* is open; nobody is told of it."""
        self._parts.journal.write(
            "outlived", provider=notice.provider, event_id=notice.event_id, kind=str(notice.kind), source=notice.source
        )
        self.outlived |= {notice.event_id}

    def revoked(self, event_id: str) -> None:
        self.outlived -= {event_id}

    def judge_signal(self, signum: Signals) -> Sequence[Notice]:
        """Ask the providers that want to hear *signum* what it means; empty: it is an ordinary signal."""
        notices, none = [], frozenset[Signals]()
        for name, provider in self.providers.items():
            if signum in self._guarded(name, provider.signals, none):
                observation = self._guarded(name, partial(provider.on_signal, signum), Observation.clear())
                notices += [observation.notice] if observation.notice is not None else []
        return notices

    def child_started(self, pid: int) -> None:
        for name, provider in self.providers.items():
            self._guarded(name, partial(provider.child_started, pid), None)

    def relax(self) -> None:
        for name, provider in self.providers.items():
            self._guarded(name, provider.relax, None)

    def status(self) -> Sequence[Mapping[str, object]]:
        """Describe each watch: seconds since its last good answer (None: there was none), and from look to look."""
        now = time.monotonic()
        return [
            {
                "watch": name,
                "state": poller.state.value if poller.state else None,
                "last_good_s": None if poller.last_good is None else round(now - poller.last_good, 1),
                "every_s": poller.every,
            }
            for name, poller in self._pollers.items()
        ]

    def conclude(self, budget: float) -> Sequence[Notice]:
        """Ask each provider, within *budget* seconds, what it was that ended the command."""
        none: Notice | None = None
        words = [self._guarded(name, partial(p.conclude, budget), none) for name, p in self.providers.items()]
        return [notice for notice in words if notice is not None]

    def settle(self, conclusion: Conclusion, budget: float) -> Sequence[str]:
        """Let each provider do its last duty, within *budget* seconds; return what was done."""
        names = self.providers.items()
        done = [
            self._guarded(name, partial(self._settle, provider, conclusion, budget), "") for name, provider in names
        ]
        return [text for text in done if text]

    def _settle(self, provider: Provider, conclusion: Conclusion, budget: float) -> str:
        try:
            return provider.settle(conclusion, budget)
        except ProviderError as error:
            self._parts.journal.warn(str(error))
            return ""

    def stop(self) -> None:
        """End the watches and the probing; the providers live until `close`."""
        self._end_probing()
        stop_all(list(self._pollers.values()), STOP_WITHIN)

    def close(self) -> None:
        """End what is left of the watches, and the providers."""
        self.stop()
        for name, provider in self.providers.items():
            self._guarded(name, provider.close, None)
