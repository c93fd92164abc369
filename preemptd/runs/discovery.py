"""Finds, through /proc alone, the wandb-cores of a target, the socket of each, and the runs that it has open."""

import errno
import logging
import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from preemptd.model import Process, Run
from preemptd.procfs import process_id
from preemptd.runs.core_socket import Address, CoreError

# The transaction log is open from init to finish; the directory is run-DATE_TIME-ID, and the run's id is in both names.
_OPEN_LOG = re.compile(r"(?P<directory>.*)/run-(?P<id>[^/]+)\.wandb(?: \(deleted\))?")
# debug-internal.log stays open after finish (seen with 0.19.11 to 0.31.0): it names runs that may have ended.
_DEBUG_LOG = re.compile(r"(?P<directory>.*/(?:offline-)?run-\d{8}_\d{6}-(?P<id>[^/]+))/logs/debug-internal\.log.*")
_UNIX_LISTENING = "00010000"  # __SO_ACCEPTCON
_TCP_LISTENING = "0A"

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class OpenRuns:
    """What a wandb-core's open files say."""

    certain: frozenset[Run] = frozenset()
    """Its transaction log is open."""
    possible: frozenset[Run] = frozenset()
    """Only its debug log is open: it has ended, or it writes no transaction log (``x_skip_transaction_log``)."""


class Core:
    """One wandb-core, as far as it is known; its address never changes, so that a later look costs one listing."""

    def __init__(self, process: Process) -> None:
        self.process = process
        self.address: Address | None = None
        self.out_of_reach: str | None = None
        """Why nobody can speak to it; None: no such reason is known."""
        self.certain: frozenset[Run] = frozenset()
        self.possible: frozenset[Run] = frozenset()
        self._ended: set[Run] = set()

    def lives(self) -> bool:
        return process_id(self.process.pid) == self.process.id

    def look(self) -> None:
        """Look again. Raises ProcessLookupError when it has ended."""
        try:
            if self.address is None and self.out_of_reach is None:
                self._find_address()
            runs = open_runs(self.process)
        except OSError as error:
            if not self.lives():
                raise ProcessLookupError from None
            self._complain(error)
            return
        self._ended = (self._ended | self.certain) - runs.certain
        self.certain, self.possible = runs.certain, runs.possible - self._ended

    def _find_address(self) -> None:
        try:
            self.address = listening_address(self.process.pid)
        except CoreError as error:
            self.out_of_reach = str(error)

    def _complain(self, error: OSError) -> None:
        """Name it once when it belongs to somebody else; anything else (no descriptors left) may pass."""
        if isinstance(error, PermissionError) and self.out_of_reach is None:
            self.out_of_reach = f"its wandb-core may not be looked into: {error.strerror}"
            log.warning("wandb-core %d: its runs are not marked, it belongs to another user", self.process.pid)


def is_core(process: Process) -> bool:
    """Say whether *process* is a wandb-core, or the Python service of wandb 0.17.

    The command-line interface of 0.19 still asks for that service, and its agent hands the wish on to the training.
    """
    if process.state in "ZX":
        return False
    program = os.path.basename(process.cmdline[0]) if process.cmdline else process.comm
    return program == "wandb-core" or any(name.startswith("wandb-service(") for name in (program, process.comm))


def cores(processes: Iterable[Process]) -> list[Process]:
    """Pick the wandb-cores; a core's own child is left out: it is a copy that has not become its program yet."""
    found = [process for process in processes if is_core(process)]
    pids = {process.pid for process in found}
    return [process for process in found if process.ppid not in pids]


def open_runs(core: Process) -> OpenRuns:
    """List the runs that *core* has open. Raises OSError."""
    certain, possible = {}, {}
    for target in _open_files(core.pid):
        if match := _OPEN_LOG.fullmatch(target):
            certain[match["id"]] = Run(match["id"], core.pid, core.ppid, match["directory"])
        elif match := _DEBUG_LOG.fullmatch(target):
            possible[match["id"]] = Run(match["id"], core.pid, core.ppid, match["directory"])
    return OpenRuns(
        frozenset(certain.values()), frozenset(run for run_id, run in possible.items() if run_id not in certain)
    )


def listening_address(pid: int) -> Address | None:
    """Find the socket that process *pid* listens on; None: not yet. Raises OSError; CoreError: not within our reach.

    wandb 0.17 to 0.19 listen on a port of 127.0.0.1, later ones on a Unix socket. The latter is reached through the
    process's own root directory, so that it may live in another mount namespace (a container).
    """
    inodes = {name[len("socket:[") : -1] for name in _open_files(pid) if name.startswith("socket:[")}
    for line in _lines(f"/proc/{pid}/net/unix"):
        words = line.split(maxsplit=7)
        if len(words) == 8 and words[3] == _UNIX_LISTENING and words[6] in inodes:
            path = words[7]
            return f"/proc/{pid}/root{path}" if path.startswith("/") else f"/proc/{pid}/cwd/{path}"
    for line in _lines(f"/proc/{pid}/net/tcp"):
        words = line.split()
        if len(words) > 9 and words[3] == _TCP_LISTENING and words[9] in inodes:
            if not _shares_our_network(pid):
                raise CoreError("its wandb-core listens on a port of another network namespace")
            return "127.0.0.1", int(words[1].rpartition(":")[2], 16)
    return None


def _open_files(pid: int) -> Iterator[str]:
    """Yield what the descriptors of *pid* lead to. Raises OSError, also when there are none: it is about to end."""
    directory = f"/proc/{pid}/fd"
    names = os.listdir(directory)
    targets = [_target(f"{directory}/{name}") for name in names]
    yield from (target for target in targets if target is not None)
    # A process that ends in the middle of this loses all of them at once: its runs have not closed one by one.
    if not names or (None in targets and not os.listdir(directory)):
        raise ProcessLookupError(errno.ESRCH, "it has no open files", directory)


def _target(descriptor: str) -> str | None:
    """Read where it leads to; None: it was closed since it was listed."""
    try:
        return os.readlink(descriptor)
    except FileNotFoundError:
        return None


def _lines(path: str) -> list[str]:
    with open(path, encoding="utf-8", errors="surrogateescape") as table:
        return table.read().split("\n")[1:]


def _shares_our_network(pid: int) -> bool:
    """Say whether a port of *pid* is the same port for us; in another network namespace it is somebody else's."""
    return os.stat(f"/proc/{pid}/ns/net").st_ino == os.stat("/proc/self/ns/net").st_ino
