"""Whether ``wandb sync`` makes one run of the parts that the attempts of an offline job leave behind."""

import os
import re
from collections.abc import Iterator
from contextlib import suppress

from preemptd.model import Run

JOINS_SINCE = (0, 31)
"""From this wandb on, `wandb sync` puts the parts of a run behind each other; before, each over the one before it."""
_PACKAGE = re.compile(r"wandb-(\d+)\.(\d+)[^/]*\.dist-info")
_LOGGED = re.compile(rb'"core version":"(\d+)\.(\d+)')
_LOG_HEAD = 65536
"""Bytes of ``debug-internal.log``, which begins with the version (the same in wandb 0.19 to 0.31)."""

Version = tuple[int, int]


def is_offline(run: Run) -> bool:
    return os.path.basename(run.directory).startswith("offline-")


def version_of(run: Run) -> Version | None:
    """Find the version of the wandb that writes *run*; None: neither its process nor its log says so any more."""
    return next(_versions(run), None)


def _versions(run: Run) -> Iterator[Version]:
    """Look beside the wandb-core, which is PACKAGES/wandb/bin/wandb-core, then in what it has logged."""
    with suppress(OSError):
        packages = os.readlink(f"/proc/{run.core_pid}/exe").rpartition("/wandb/bin/")[0]
        for name in os.listdir(f"/proc/{run.core_pid}/root{packages}") if packages else ():
            if match := _PACKAGE.fullmatch(name):
                yield int(match[1]), int(match[2])
    for root in (f"/proc/{run.core_pid}/root", ""):
        with suppress(OSError), open(f"{root}{run.directory}/logs/debug-internal.log", "rb", opener=_plain) as file:
            if found := _LOGGED.search(file.read(_LOG_HEAD)):
                yield int(found[1]), int(found[2])


def _plain(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NONBLOCK | os.O_CLOEXEC)  # a FIFO would hold us up
