"""PID 1 of a cluster's own namespaces: lays out the files, starts and signals daemons on request, reaps everything.

Reads one JSON request a line and answers each. When its standard input ends, because a test is done or pytest was
killed, it ends too; the kernel then kills all that is left in the namespace, whatever it did to hide.
"""

import ctypes
import json
import os
import signal
import socket
import sys

LIBC = ctypes.CDLL(None, use_errno=True)
MS_BIND, MS_REC, MNT_DETACH = 4096, 16384, 2


def mount(source: str, target: str, kind: str | None = None, flags: int = 0, options: str | None = None) -> None:
    arguments = [text.encode() if text is not None else None for text in (source, target, kind)]
    if LIBC.mount(*arguments, flags, options.encode() if options else None) != 0:
        raise OSError(ctypes.get_errno(), f"mount {source} on {target}: {os.strerror(ctypes.get_errno())}")


def bind(source: str, target: str) -> None:
    mount(source, target, flags=MS_BIND | MS_REC)


def closed_on_the_way(path: str) -> str | None:
    """Return the topmost directory on the way to *path*, or *path*, that an ordinary user may not pass."""
    at = "/"
    for part in path.split("/")[1:]:
        at = os.path.join(at, part)
        if not os.path.exists(at):
            return None  # below a cover
        if not os.stat(at).st_mode & 0o001:
            return at
    return None


def show(source: str, target: str) -> None:
    """Let *target*, which need not be there, be what *source* is."""
    if os.path.islink(source):
        os.symlink(os.readlink(source), target)
    elif os.path.isdir(source):
        os.makedirs(target, exist_ok=True)
        bind(source, target)
    elif os.path.isfile(source):
        os.close(os.open(target, os.O_CREAT | os.O_CLOEXEC))
        bind(source, target)


def open_ways(paths: list[str], staging: str) -> None:
    """Make each of *paths* passable for everyone under its own name: what is closed is covered, and rebuilt above."""
    held = []
    for number, path in enumerate(path for path in paths if closed_on_the_way(path)):
        place = os.path.join(staging, str(number))
        os.makedirs(place)
        bind(os.path.realpath(path), place)
        held.append((path, place))
    for path, place in held:
        closed = closed_on_the_way(path)
        if closed:
            mount("tmpfs", closed, "tmpfs", options="mode=0755")
        if os.stat(place).st_mode & 0o001:
            show(place, path)
        else:
            os.makedirs(path, exist_ok=True)
            for entry in os.listdir(place):
                show(os.path.join(place, entry), os.path.join(path, entry))
        LIBC.umount2(place.encode(), MNT_DETACH)


def unreadable(paths: list[str], uid: int) -> list[str]:
    """List those of *paths* that the user may not read."""
    os.setegid(uid)
    os.seteuid(uid)
    closed = [path for path in paths if not os.access(path, os.R_OK, effective_ids=True)]
    os.seteuid(0)
    os.setegid(0)
    return closed


def spawn(argv: list[str], env: dict[str, str], log: str) -> int:
    output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)
    try:
        actions = [
            (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
            (os.POSIX_SPAWN_DUP2, output, 1),
            (os.POSIX_SPAWN_DUP2, output, 2),
        ]
        return os.posix_spawnp(argv[0], argv, env, file_actions=actions, setsigdef=[signal.SIGCHLD], setsid=True)
    finally:
        os.close(output)


def kill(pid: int, signum: int) -> bool:
    try:
        os.kill(pid, signum)
    except ProcessLookupError:
        return False
    return True


def main() -> None:
    layout = json.loads(sys.stdin.readline())
    # Children are reaped by the kernel, also those of daemons that died.
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    socket.sethostname(layout["hostname"])
    os.umask(0o022)
    open_ways(layout["paths"], layout["staging"])
    closed = unreadable(layout["readable"], layout["uid"])
    if closed:
        sys.exit(f"the jobs' user cannot read {', '.join(closed)}: chmod -R go+rX")
    for source, target in layout["files"].items():
        bind(source, target)
    for path in layout["memory"]:
        mount("tmpfs", path, "tmpfs", options="mode=0755")
    print(json.dumps({"ready": True}), flush=True)
    for line in sys.stdin:
        request = json.loads(line)
        if request["do"] == "spawn":
            answer: object = spawn(request["argv"], request["env"], request["log"])
        else:
            answer = kill(request["pid"], request["signal"])
        print(json.dumps(answer), flush=True)


main()
