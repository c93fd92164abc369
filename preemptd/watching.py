"""The providers at work: a poller for each of their watches, the probe when none was certain, what status says."""

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from enum import Enum
from functools import partial
from signal import Signals
from typing import TypeVar

from preemptd.errors import ProviderError, place_of
from preemptd.events import NoticeArrived, ProvidersProbed, WatchChanged
from preemptd.notices import Level, Notice
from preemptd.parts import Parts
from preemptd.poller import Poller, stop_all
from preemptd.provider import Conclusion, Observation, Provider, Watch
from preemptd.registry import probe_all

T = TypeVar("T")

STOP_WITHIN = 0.2
"""Seconds at the end for watches that hang at a server; their threads die with us anyway."""
SHORTEST_SETTLE = 5.0
"""Seconds for a provider's last duty, whatever those before it took."""
LATE_ANSWER = 2.0
"""Seconds for one that uses all of its time, and then says that it was not enough."""


class Turn(Enum):
    """When a provider's last duty comes."""

    FIRST = "first"
    """It needs time of its own."""
    THEN = "then"
    LAST = "last"
    """It may end this machine."""


BEFORE_THE_END = (Turn.FIRST, Turn.THEN)


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
        self._secondary: set[str] = set()
        """Watches whose silence is no outage."""
        self._silent: dict[str, str] = {}
        """Why a provider is used, until its first good answer is written down."""
        self._good: set[str] = set()
        """Watches that have had a good answer."""
        self._settled: set[str] = set()
        """Providers that have done their last duty."""
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
            (self._secondary if watch.secondary else self._unanswered).add(watch.name)
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
        if event.watch in self._secondary:
            self._good |= {event.watch} if event.why is None else set()
            return
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

    def arrived(self, event: NoticeArrived) -> Notice | None:
        """Take note of a notice, and return it: acted on if it is advice and the user wants that (``--act-on``).

        None: the machine has outlived it, and the platform does not say that it is anew.
        """
        self.answered(event.watch)
        notice = event.notice
        if str(notice.kind) in self._parts.settings.act_on:
            notice = replace(notice, level=Level.ACT)
        # What a watch sees at its first good look may be old; whatever it says later is news.
        old = event.watch not in self._good and notice.event_id in (self._parts.outlived or ())
        if not old or (notice.deadline is not None and notice.remaining is not None and notice.remaining > 0):
            return notice
        self.outlive(notice)
        return None

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
                "secondary": name in self._secondary,
            }
            for name, poller in self._pollers.items()
        ]

    def conclude(self, budget: float) -> Sequence[Notice]:
        """Ask those who may know, all within *budget* seconds, what it was that ended the command."""
        asked = {
            name: partial(provider.conclude, budget)
            for name, provider in self.providers.items()
            if type(provider).conclude is not Provider.conclude
        }
        return self._at_once(asked, budget)

    def settle(self, conclusion: Conclusion, budget: float, turns: Sequence[Turn] = BEFORE_THE_END) -> Sequence[str]:
        """Let each provider do its last duty, all within *budget* seconds; return what was done.

        They come one turn after the other, each provider once.
        """
        ends, done = time.monotonic() + budget, []
        for turn in turns:
            left = max(min(SHORTEST_SETTLE, budget), ends - time.monotonic())
            asked = {
                name: partial(self._settle, provider, conclusion, left)
                for name, provider in self.providers.items()
                if name not in self._settled
                and type(provider).settle is not Provider.settle
                and _turn(provider) is turn
            }
            self._settled |= asked.keys()
            done += [text for text in self._at_once(asked, left) if text]
        return done

    def _at_once(self, calls: Mapping[str, Callable[[], T | None]], within: float) -> Sequence[T]:
        """Make *calls*, by provider, in threads: one that hangs takes nobody's time. Return what they say in time."""
        answers: dict[str, T] = {}

        def call(name: str) -> None:
            none: T | None = None
            answer = self._guarded(name, calls[name], none)
            if answer is not None:
                answers[name] = answer

        threads = {
            name: threading.Thread(target=call, args=(name,), name=f"last act of {name}", daemon=True) for name in calls
        }
        ends = time.monotonic() + within + LATE_ANSWER
        for name, thread in threads.items():
            try:
                thread.start()
            except RuntimeError:  # noqa: PERF203  # no more threads here: one after the other
                call(name)
        for name, thread in threads.items():
            if thread.ident is not None:
                thread.join(max(0.0, ends - time.monotonic()))
            if thread.is_alive():
                self._parts.journal.warn(f"provider {name} is not done after {within:g} s: it is waited for no longer")
        return [answers[name] for name in calls if name in answers]

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


def _turn(provider: Provider) -> Turn:
    if provider.settles_last:
        return Turn.LAST
    return Turn.FIRST if provider.settles_within > 0 else Turn.THEN
