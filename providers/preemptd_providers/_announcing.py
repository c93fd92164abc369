"""What `http` and `exec` have in common: the user says what it is that is announced."""

from datetime import datetime, timezone
from typing import Literal

from preemptd.discretion import discreet
from preemptd.notices import Kind, Level, Notice
from preemptd.provider import Options, Surroundings
from preemptd_providers._deadline_text import End, end_of

FURTHEST_SECONDS = 30 * 86400.0  # a time further away is a mistake: less time is the safe thing to count with
SHOWN = 60
"""Characters of a text that cannot be read."""


class Announcing(Options):
    kind: Literal["preempt", "terminate", "stop", "hibernate", "maintenance", "rebalance", "migrate", "freeze"] = (
        "preempt"
    )
    level: Literal["act", "advise"] = "act"


class Announcer:
    """Makes the notices of one watch, for one thread."""

    def __init__(self, provider: str, wishes: Announcing, surroundings: Surroundings, usual: float | None) -> None:
        """Make it; *usual*: seconds that are left where no time can be read, None: ``--grace``."""
        self._provider = provider
        self._kind = Kind(wishes.kind)
        self._level = Level(wishes.level)
        self._lead = surroundings.lead
        self._usual = usual if self._level is Level.ACT else None
        self._warn = surroundings.warn
        self._has_warned = False

    def notice(self, source: str, observed: float, end: End, detail: str) -> Notice:
        """Make it; *end* is what `end` has returned."""
        return Notice(
            provider=self._provider,
            event_id=f"{self._provider}:{self._kind}",
            kind=self._kind,
            level=self._level,
            source=source,
            observed=observed,
            remaining=end.left,
            deadline=end.moment,
            act_within=self._lead if self._level is Level.ADVISE else None,
            detail=detail,
        )

    def end(self, text: str, now: datetime, zone: timezone) -> End:
        """Read the end from *text*, which may be empty.

        Says once what cannot be read: else a wrong format would show itself by a training that had too little time.
        """
        end = end_of(text, now, zone)
        if end is None and text:
            self._complain(text, "neither a time nor a number of seconds")
        if end is not None and end.left is not None and self._level is Level.ACT and end.left > FURTHEST_SECONDS:
            self._complain(text, f"more than {FURTHEST_SECONDS / 86400:.0f} days away")
            end = None
        return End(self._usual, None) if end is None else end

    def _complain(self, text: str, why: str) -> None:
        if self._has_warned:
            return
        self._has_warned = True
        shown = discreet(text[: 10 * SHOWN])[:SHOWN]
        self._warn(f"provider {self._provider}: {shown!r} is {why}: {self._instead()}")

    def _instead(self) -> str:
        if self._level is Level.ADVISE:
            return "the advice has no date"
        return "--grace counts" if self._usual is None else f"{self._usual:g} s are counted with"
