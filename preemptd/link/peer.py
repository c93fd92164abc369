"""Who is at the other end of a Unix socket, by the kernel's word."""

import errno
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

_SO_PEERPIDFD = 77
"""Not in the socket module before Python 3.14."""


@dataclass(frozen=True, slots=True)
class Peer:
    """The process that connected, as it was then."""

    pid: int
    """0: it lives in another pid namespace that we cannot look into, or our /proc hides it."""
    uid: int
    process: ProcessId
    """With pid 0 a pseudo pid and start 0: it can be told by message, never by signal."""
    origin: tuple[int, int]
    """The same for all connections of one process, as far as the kernel tells."""

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
    process = process_id(pid) if pid else None
    if process is None and (pid == 0 or _is_anothers(pid)):
        return Peer(0, uid, ProcessId(FIRST_PSEUDO_PID + serial, 0), _origin(connection) or (0, serial))
    return Peer(pid, uid, process, (pid, process.start)) if process else None


def _is_anothers(pid: int) -> bool:
    """Say whether *pid* lives, and is another user's: /proc may hide it from us (hidepid, systemd's ProtectProc=)."""
    try:
        os.kill(pid, 0)
    except OSError as error:
        return error.errno == errno.EPERM
    return False


def _origin(connection: socket.socket) -> tuple[int, int] | None:
    """Tell processes apart that have no pid here: by the inodes of their pidfds (Linux 6.9). None: that cannot be."""
    try:
        theirs = connection.getsockopt(socket.SOL_SOCKET, _SO_PEERPIDFD)
    except OSError:
        return None
    try:
        ours = os.pidfd_open(os.getpid())
    except OSError:
        os.close(theirs)
        return None
    numbers = os.fstat(theirs).st_ino, os.fstat(ours).st_ino
    os.close(theirs)
    os.close(ours)
    return None if numbers[0] == numbers[1] else (0, numbers[0])


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
