"""When an announcement was first seen on this machine: some platforms say that the end is near, and not since when."""

import contextlib
import os
from typing import Protocol


class Sightings(Protocol):
    """What outlives one provider object: the next command, on the same machine, asks again."""

    def since(self, event_id: str, now: float, within: float) -> float:
        """Return when *event_id* was first seen, *now* if it was not.

        Args:
            event_id: that of the notice; a plain name.
            now: monotonic time, which the answer is in, too.
            within: Seconds for which an announcement can stand; what is older was another one.
        """
        ...

    def forget(self, event_id: str) -> None:
        """Take note that it is announced no more."""
        ...


class NoSightings:
    """Where nothing is to be left behind: each sight is the first."""

    def since(self, event_id: str, now: float, within: float) -> float:  # noqa: ARG002
        return now

    def forget(self, event_id: str) -> None:
        pass


class SightingFiles:
    """One file an event, with the boot it belongs to: monotonic time begins anew with each."""

    def __init__(self, directory: str, boot: str) -> None:
        """Keep them below *directory*, which is made when there is something to keep.

        Args:
            directory: that of the state.
            boot: `procfs.boot_id`; empty: it is not known, and nothing is kept.
        """
        self._directory = directory
        self._boot = boot

    def since(self, event_id: str, now: float, within: float) -> float:
        with contextlib.suppress(OSError, ValueError):
            with open(self._path(event_id), encoding="ascii") as file:
                boot, seen = file.read(256).split()
            if boot == self._boot and 0 <= now - float(seen) <= within:
                return float(seen)
        self._keep(event_id, now)
        return now

    def forget(self, event_id: str) -> None:
        with contextlib.suppress(OSError):
            os.unlink(self._path(event_id))

    def _keep(self, event_id: str, now: float) -> None:
        if not self._boot:
            return
        part = f"{self._path(event_id)}.{os.getpid()}"
        with contextlib.suppress(OSError):  # a disk that is full: it is as if nobody had seen it
            os.makedirs(self._directory, exist_ok=True)
            with open(part, "w", encoding="ascii") as file:
                file.write(f"{self._boot} {now:.3f}\n")
            os.replace(part, self._path(event_id))

    def _path(self, event_id: str) -> str:
        return os.path.join(self._directory, f"seen-{event_id}")
