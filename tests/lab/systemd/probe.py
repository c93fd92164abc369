"""Runs in the sandbox of a unit, and writes down what it may do. Usage: probe.py OUT"""

import ctypes
import errno
import json
import os
import signal
import socket
import sys
from collections.abc import Callable
from functools import partial

CLONE_NEWNS = 0x00020000


def tried(do: Callable[[], object], well: str) -> str:
    try:
        do()
    except TimeoutError:
        return "timeout"
    except OSError as error:
        return errno.errorcode.get(error.errno or 0, str(error))
    return well


def write(path: str) -> None:
    with open(path, "w") as file:
        file.write("x")


def connect(address: str) -> None:
    """Whoever refuses has been reached."""
    try:
        socket.create_connection((address, 9), timeout=0.7).close()
    except ConnectionRefusedError:
        return


def unshare() -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(CLONE_NEWNS) != 0:
        raise OSError(ctypes.get_errno(), "unshare")


def bobs() -> int:
    return next(
        int(name) for name in os.listdir("/proc") if name.isdecimal() and os.stat(f"/proc/{name}").st_uid == 5002
    )


def capabilities() -> str:
    with open("/proc/self/status") as file:
        return next(line.split()[1] for line in file if line.startswith("CapEff"))


def main() -> None:
    found = {f"write {path}": tried(partial(write, path), "written") for path in ("/etc/x", "/srv/alice/x")}
    found["list homes"] = tried(lambda: os.listdir(os.path.expanduser("~root")), "seen")
    for address in ("127.0.0.1", "169.254.169.254", "10.9.9.9"):
        found[f"connect {address}"] = tried(partial(connect, address), "reached")
    found["capabilities"] = capabilities()
    found["signal to bob"] = tried(lambda: os.kill(bobs(), signal.SIGCONT), "allowed")
    packet = (socket.AF_PACKET, socket.SOCK_RAW)
    found["packet socket"] = tried(lambda: socket.socket(*packet), "made")
    found["unshare"] = tried(unshare, "done")
    with open(sys.argv[1], "w") as file:
        file.write(json.dumps(found) + "\n")


main()
