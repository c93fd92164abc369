"""What a training script may ask and say; without preemptd around it, every call is a cheap no-op.

    import preemptd

    for step, batch in enumerate(loader):
        train(batch)
        if preemptd.should_preempt():
            save(path)
            preemptd.saved(step, path)
            break
    else:
        preemptd.done()

The first call connects to the daemon named by ``$PREEMPTD_LINK`` (a second at most) and starts one thread that listens.
No call raises or waits after that. A forked child is nobody to the daemon until it makes a call of its own.
"""

import os
from _thread import RLock

TYPE_CHECKING = False
if TYPE_CHECKING:
    from preemptd.link.client import Client, OpenNotice

__version__ = "0.1.0"
__all__ = ["done", "notice", "saved", "saving", "should_preempt", "time_left"]


class _Absent:
    """What stands for the client where no preemptd is around."""

    told = False

    def notice(self) -> None:
        pass

    def time_left(self) -> None:
        pass

    def saving(self) -> None:
        pass

    def saved(self, step: object, path: object) -> None:
        pass

    def done(self) -> None:
        pass

    def forget(self) -> None:
        pass


# One per process, made by the first call; importing this starts nothing.
_client: "Client | _Absent | None" = None
_joining = RLock()  # reentrant: a signal handler may make a call while the first one is under way
_is_importing = False
_watches_forks = False


def should_preempt() -> bool:
    """Say whether this process is to save and leave now. Costs as much as reading an attribute: ask at every step."""
    return (_client or _join()).told


def notice() -> "OpenNotice | None":
    """Return what was announced: event_id, kind, source, deadline (of time.monotonic()), time_left. None: nothing."""
    return (_client or _join()).notice()


def time_left() -> "float | None":
    """Return the seconds until the announced end, 0.0 after it. None: nothing is announced."""
    return (_client or _join()).time_left()


def saving() -> None:
    """Say that a checkpoint is being written."""
    (_client or _join()).saving()


def saved(step: object = None, path: object = None) -> None:
    """Say that a checkpoint is complete: its *step* (whatever int() takes) and *path* (str, bytes or PathLike)."""
    (_client or _join()).saved(step, path)


def done() -> None:
    """Say that training has reached its end: there is nothing to resume."""
    (_client or _join()).done()


def _join() -> "Client | _Absent":
    global _client, _is_importing, _watches_forks  # noqa: PLW0603  # the one place
    with _joining:
        if _client is not None:
            return _client
        path = os.environ.get("PREEMPTD_LINK")
        if not path:
            _client = _Absent()
            return _client
        if _is_importing:  # this is a signal handler, and what it interrupted is the import below
            return _Absent()
        _is_importing = True
        try:
            from preemptd.link.client import started
        finally:
            _is_importing = False
        client = started(path)
        if _client is not None:  # a signal handler's call came in between and was faster
            client.close()
            return _client
        _client = client
        if not _watches_forks:
            os.register_at_fork(after_in_child=_forked)
            _watches_forks = True
        return client


def _forked() -> None:
    """Start afresh in a child: the thread did not come along, and the connection is the parent's."""
    global _client, _joining, _is_importing  # noqa: PLW0603  # see _join
    if _client is not None:
        _client.forget()
    _client = None
    _joining = RLock()
    _is_importing = False
