"""Whether ``wandb sync`` makes one run of the parts that the attempts of an offline job leave behind."""

import os
import re
from contextlib import suppress

from preemptd.model import Run

JOINS_SINCE = (0, 31)
"""From this wandb on, `wandb sync` puts the parts of a run behind each other; before, each over the one before it."""
_VERSION = re.compile(r"wandb-(\d+)\.(\d+)[^/]*\.dist-info")


def is_lost_by_sync(run: Run) -> bool:
    """Say whether a second part with the same id would take the first one's place on the server."""
    if not os.path.basename(run.directory).startswith("offline-"):
        return False
    version = _version(run.core_pid)
    return version is None or version < JOINS_SINCE


def _version(core_pid: int) -> tuple[int, int] | None:
    """Read the version from beside the wandb-core, which is PACKAGES/wandb/bin/wandb-core."""
    with suppress(OSError):
        packages = os.readlink(f"/proc/{core_pid}/exe").rpartition("/wandb/bin/")[0]
        for name in os.listdir(f"/proc/{core_pid}/root{packages}") if packages else ():
            if match := _VERSION.fullmatch(name):
                return int(match[1]), int(match[2])
    return None
