"""Who is at the other end of a Unix socket, by the kernel's word."""

import os
import socket
import struct
from dataclasses import dataclass

from preemptd.model import ProcessId
from preemptd.procfs import parent, process_id

FIRST_PSEUDO_PID = 2**30
"""Above PID_MAX_LIMIT (2**22): no kernel has such a process, so a signal sent there by mistake reaches nobody.

A negative number would not do: kill(-n) is a signal to a whole process group.
"""


@dataclass(frozen=True, slots=True)
class Peer:
    """The process that connected, as it was then."""

    pid: int
    """0: it lives in another pid namespace that we cannot look into."""
    uid: int
    process: ProcessId
    """With pid 0 a pseudo pid and start 0: it can be told by message, never by signal."""

    def owns(self, pid: int) -> bool:
        """Say whether *pid* is the peer's own, as we see it or as its own pid namespace does."""
        return self.pid in (0, pid) or _innermost_pid(self.pid) == pid


def credentials(connection: socket.socket) -> tuple[int, int]:
    """Return pid and uid of the other end."""
    pid, uid, _ = struct.unpack("3i", connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
    return pid, uid & 0xFFFFFFFF


def identify(connection: socket.socket, serial: int) -> Peer | None:
    """Name the other end; *serial* keeps those apart that have no pid here. None: it has gone already."""
    pid, uid = credentials(connection)
    if pid == 0:
        return Peer(0, uid, ProcessId(FIRST_PSEUDO_PID + serial, 0))
    process = process_id(pid)
    return Peer(pid, uid, process) if process else None


def is_ancestor(pid: int) -> bool:
    """Say whether *pid* is our parent, its parent, and so on."""
    above = os.getppid()
    while above > 1 and above != pid:
        above = parent(above)
    return above == pid and pid > 0


def _innermost_pid(pid: int) -> int | None:
    try:
        with open(f"/proc/{pid}/status", "rb") as status:
            for line in status:
                if line.startswith(b"NSpid:"):
                    return int(line.split()[-1])
    except OSError:
        pass
    return None
