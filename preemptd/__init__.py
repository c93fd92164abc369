"""What a training script may ask and say; standard library only, and nothing happens at import.

    import preemptd

    for step, batch in enumerate(loader):
        train(batch)
        if preemptd.should_preempt():
            save(path)
            preemptd.saved(step, path)
            break
    else:
        preemptd.done()

With ``$PREEMPTD_LINK`` the first call connects to the daemon (a second at most) and starts one thread that listens.
Without it the first of `should_preempt`, `notice`, `time_left` and `on_notice` in the main thread catches SIGUSR1 and
SIGTERM; handlers that were there are called as well. No call raises, and none but `notify` waits after that. A forked
child is nobody, and catches nothing, until it makes a call of its own.
"""

import os
from _thread import RLock

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractContextManager

    from preemptd.link.alone import Alone
    from preemptd.link.client import Client, OpenNotice

__version__ = "0.1.0"
__all__ = [
    "advice",
    "defer",
    "done",
    "notice",
    "notify",
    "on_notice",
    "saved",
    "saving",
    "should_preempt",
    "time_left",
    "undone",
]

LONGEST_NOTICE = 30 * 86400.0
LONGEST_REASON = 512


class _Absent:
    """What stands for the client in a signal handler that has interrupted the making of it."""

    told = False

    def __init__(self) -> None:
        self.early: list[Callable[[OpenNotice], object]] = []
        """What wants to be called at a notice when there is a client."""

    def listens(self) -> bool:
        return False

    def notice(self) -> None:
        pass

    def time_left(self) -> None:
        pass

    def advice(self) -> None:
        pass

    def defer(self) -> "AbstractContextManager[None]":
        from contextlib import nullcontext

        return nullcontext()

    def on_notice(self, callback: "Callable[[OpenNotice], object]") -> "Callable[[], None]":
        self.early.append(callback)
        return lambda: None

    def notify(self, deadline_s: "float | None", reason: str) -> bool:  # noqa: ARG002 - a null object
        return False

    def saving(self) -> None:
        pass

    def saved(self, step: object, path: object) -> None:
        pass

    def done(self) -> None:
        pass

    def undone(self) -> None:
        pass


# One per process, made by the first call; importing this starts nothing.
_client: "Client | Alone | None" = None
_asked: "Client | Alone | None" = None
"""The same, from when it listens."""
_absent = _Absent()
_joining = RLock()  # reentrant: a signal handler may make a call while the first one is under way
_is_importing = False
_watches_forks = False


def should_preempt() -> bool:
    """Say whether this process is to save and leave now. Costs as much as reading an attribute: ask at every step.

    Inside `defer` it stays what it was. Never raises.
    """
    return (_asked or _ask()).told


def notice() -> "OpenNotice | None":
    """Return what was announced: event_id, kind, source, deadline (of time.monotonic()), time_left. None: nothing."""
    return (_asked or _ask()).notice()


def time_left() -> "float | None":
    """Return the seconds until the announced end, 0.0 after it.

    None: nothing is announced, or nobody knows when (a signal that came without a daemon).
    """
    return (_asked or _ask()).time_left()


def advice() -> "OpenNotice | None":
    """Return what may become a notice (a maintenance in an hour), the earliest of them: no reason to stop.

    None: nothing is advised; what was has been taken back, or is a notice by now. Without a daemon always None.
    """
    return (_client or _join()).advice()


def on_notice(callback: "Callable[[OpenNotice], object]") -> "Callable[[], None]":
    """Have *callback* called once for each notice, in a thread of the client's own; at once for one that is open.

    Callbacks run one after the other; one that raises is printed as a warning. Inside `defer` they wait. One that was
    registered twice is called twice. In a forked child nobody is called.

    Returns:
        A function that takes this registration off again; it does not wait for a call that is under way.
    """
    return (_asked or _ask()).on_notice(callback)


def defer() -> "AbstractContextManager[None]":
    """Return a context manager for what must not be disturbed: inside of it `should_preempt` stays what it was.

    Callbacks wait until it is left. It nests, and holds for the whole process, not for one thread. `notice` and
    `time_left` go on telling the truth; keep it short, the end does not wait.
    """
    return (_client or _join()).defer()


def notify(deadline_s: "float | None" = None, reason: str = "") -> bool:
    """Say that this job is about to be preempted, as if the platform had: for who has heard it from elsewhere.

    The daemon tells and marks as for any notice; without one this process alone is told, and marks its own W&B runs.
    Waits for the daemon's answer, a second at most. Never raises.

    Args:
        deadline_s: seconds from now to the end; None: nobody knows (the daemon counts with ``--grace``).
        reason: for people, 512 characters at most: the source of the notice.

    Returns:
        True: it was taken. False: there is a daemon that did not take it, and only this process was told.
    """
    return (_client or _join()).notify(_seconds(deadline_s), str(reason)[:LONGEST_REASON])


def saving() -> None:
    """Say that a checkpoint is being written."""
    (_client or _join()).saving()


def saved(step: object = None, path: object = None) -> None:
    """Say that a checkpoint is complete: its *step* (whatever int() takes) and *path* (str, bytes or PathLike)."""
    (_client or _join()).saved(step, path)


def done() -> None:
    """Say that training has reached its end: there is nothing to resume."""
    (_client or _join()).done()


def undone() -> None:
    """Take `done` back: another training begins in this process. Without a `done` before it nothing is said."""
    (_client or _join()).undone()


def _seconds(seconds: "float | None") -> "float | None":
    try:
        number = float("nan" if seconds is None else seconds)
    except (TypeError, ValueError, OverflowError):
        return None
    return min(max(0.0, number), LONGEST_NOTICE) if number == number else None  # noqa: PLR0124  # NaN is not


def _ask() -> "Client | Alone | _Absent":
    """Return the client, and have it listen if that is possible here."""
    global _asked  # noqa: PLW0603  # see _join
    client = _client or _join()
    if client.listens() and client is _client:
        _asked = _client
    return client


def _join() -> "Client | Alone | _Absent":
    global _client, _is_importing, _watches_forks  # noqa: PLW0603  # the one place
    with _joining:
        if _client is not None:
            return _client
        if _is_importing:  # this is a signal handler, and what it interrupted is the import below
            return _absent
        _is_importing = True
        try:
            make = _maker()
        finally:
            _is_importing = False
        client = make()
        if _client is not None:  # a signal handler's call came in between and was faster
            client.close()
            return _client
        _client = client
        while _absent.early:
            client.on_notice(_absent.early.pop(0))
        if not _watches_forks:
            os.register_at_fork(before=_forking, after_in_parent=_fork_over, after_in_child=_forked)
            _watches_forks = True
        return client


def _maker() -> "Callable[[], Client | Alone]":
    path = os.environ.get("PREEMPTD_LINK")
    if not path:
        from preemptd.link.alone import Alone

        return Alone
    from preemptd.link.client import started

    return lambda: started(path)


def _forking() -> None:
    if _client is not None:
        _client.forking()


def _fork_over() -> None:
    if _client is not None:
        _client.forked()


def _forked() -> None:
    """Start afresh in a child: the thread did not come along, and the connection is the parent's."""
    global _asked, _client, _joining, _is_importing  # noqa: PLW0603  # see _join
    if _client is not None:
        _client.forget()
    _client = _asked = None
    _joining = RLock()
    _is_importing = False
