"""What /healthz says: judged by what the loop itself last said, never by the thread that answers."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

BEAT_EVERY = 1.0
"""Seconds from one word of the loop to the next."""
LOOP_WITHIN = 15.0
"""Seconds without one after which the loop hangs."""
STARTS_WITHIN = 60.0
"""Seconds for the first one."""
ENDS_WITHIN = 900.0
"""Seconds after the last one for our own end: a scheduler that hangs is asked for minutes to bring the job back."""
POLLED_WITHIN = 30.0
"""Seconds for a good answer of a watch that asks again and again, or `LOOKS` times its interval if that is more."""
LOOKS = 3
WAITING_WITHIN = 90.0
"""Seconds since the last good answer of a watch that waits at the server, once its wait has failed."""

Status = Mapping[str, object]


@dataclass(frozen=True, slots=True)
class Beat:
    """What the loop said."""

    at: float
    """Monotonic."""
    status: Status


class Heart:
    """A `parts.Pulse`: the loop beats, other threads look."""

    interval: float | None = BEAT_EVERY

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.now = clock
        self.born = clock()
        self.last: Beat | None = None
        """Replaced whole, so that other threads may look without a lock."""

    def beat(self, status: Callable[[], Status]) -> None:
        self.last = Beat(self.now(), status())


@dataclass(frozen=True, slots=True)
class Watched:
    """How one watch does."""

    watch: str
    state: str | None
    """None: it was not asked yet."""
    age: float | None
    """Seconds since its last good answer; None: there was none."""
    within: float | None
    """Seconds in which there must be one; None: it waits at the server, as long as that takes."""
    fresh: bool

    def as_json(self) -> Mapping[str, object]:
        age = None if self.age is None else round(self.age, 1)
        return {
            "watch": self.watch,
            "state": self.state,
            "last_good_s": age,
            "within_s": self.within,
            "ok": self.fresh,
        }


@dataclass(frozen=True, slots=True)
class Health:
    """What there is to say."""

    state: str
    """``ok``, ``starting``, ``no answer``, ``hangs`` or ``ends``."""
    live: bool
    """The process does what it is there for, whatever the platform's servers do."""
    loop: float | None
    """Seconds since the loop's last word; None: there was none."""
    watches: Sequence[Watched] = ()
    notices: int = 0

    @property
    def ready(self) -> bool:
        return self.state == "ok"

    def as_json(self) -> Mapping[str, object]:
        return {
            "state": self.state,
            "loop_s": None if self.loop is None else round(self.loop, 1),
            "watches": [watch.as_json() for watch in self.watches],
            "notices": self.notices,
        }


def judge(heart: Heart) -> Health:
    """Say how we do now."""
    now, last = heart.now(), heart.last
    if last is None:
        late = now - heart.born > STARTS_WITHIN
        return Health("hangs" if late else "starting", not late, None)
    age = now - last.at
    watches = [_watched(entry, age) for entry in entries(last.status, "watches")]
    notices = len(entries(last.status, "notices"))
    if last.status.get("ends"):
        return Health("ends", age <= ENDS_WITHIN, age, watches, notices)
    if age > LOOP_WITHIN:
        return Health("hangs", False, age, watches, notices)
    stale = [watch for watch in watches if not watch.fresh]
    begins = now - heart.born <= POLLED_WITHIN and any(watch.age is None for watch in stale)
    return Health("starting" if begins else "no answer" if stale else "ok", True, age, watches, notices)


def _watched(entry: Status, since: float) -> Watched:
    """Judge a watch by its entry in a status that is *since* seconds old."""
    state, good, every = entry.get("state"), entry.get("last_good_s"), entry.get("every_s")
    age = good + since if isinstance(good, (int, float)) else None
    answers = state in {"clear", "notice"}
    if isinstance(every, (int, float)):
        within: float | None = max(POLLED_WITHIN, LOOKS * every)
    else:
        within = None if answers else WAITING_WITHIN
    fresh = bool(entry.get("secondary")) or (age is not None and (within is None or age <= within))
    return Watched(str(entry.get("watch")), state if isinstance(state, str) else None, age, within, fresh)


def entries(status: Status, name: str) -> Sequence[Status]:
    """List the objects under *name* in a status."""
    found = status.get(name)
    return [entry for entry in found if isinstance(entry, Mapping)] if isinstance(found, (list, tuple)) else []
