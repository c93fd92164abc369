"""Has descendants of all kinds, as its argument says; prints their pids and "ready", and ends when stdin does.

Its descendants hold a pipe of it and end with it.
"""

import ctypes
import os
import sys
import threading
from collections.abc import Callable

PR_SET_CHILD_SUBREAPER, PR_SET_NAME = 36, 15
UNTIL_I_END, KEPT_OPEN = os.pipe()


def wait_and_end() -> None:
    os.close(KEPT_OPEN)
    os.read(UNTIL_I_END, 1)
    os._exit(0)


def fork(child: Callable[[], None]) -> int:
    pid = os.fork()
    if pid == 0:
        child()
        os._exit(0)
    return pid


def prctl(option: int, value: int | bytes) -> None:
    ctypes.CDLL(None).prctl(option, value, 0, 0, 0)


def orphan(setsid: bool = True) -> int:
    """Fork twice; the child in the middle ends at once, as daemons do it."""
    out, into = os.pipe()

    def middle() -> None:
        def bottom() -> None:
            if setsid:
                os.setsid()
            os.write(into, str(os.getpid()).encode())
            os.close(into)
            wait_and_end()

        fork(bottom)

    pid = fork(middle)
    os.close(into)
    orphaned = int(os.read(out, 20))
    os.close(out)
    os.waitpid(pid, 0)
    return orphaned


def nested(names: list[bytes]) -> None:
    prctl(PR_SET_NAME, names[0])
    if names[1:]:
        fork(lambda: nested(names[1:]))
    wait_and_end()


def threaded() -> list[int]:
    pids: list[int] = []
    release = threading.Event()

    def thread() -> None:
        pids.append(fork(wait_and_end))
        forked.set()
        release.wait()

    forked = threading.Event()
    threading.Thread(target=thread, daemon=True).start()
    forked.wait()
    return pids


def leaderless() -> list[int]:
    """Start a group whose leader ends, with a member and a child of that member in a session of its own."""
    out, into = os.pipe()

    def leader() -> None:
        os.setsid()

        def member() -> None:
            def far() -> None:
                os.setsid()
                os.write(into, f"{os.getpid()} ".encode())
                wait_and_end()

            os.write(into, f"{os.getpid()} ".encode())
            fork(far)
            wait_and_end()

        fork(member)

    pid = fork(leader)
    os.waitpid(pid, 0)
    text = b""
    while text.count(b" ") < 2:
        text += os.read(out, 20)
    return [pid, *map(int, text.split())]


def main(kind: str, *names: str) -> None:
    pids: list[int] = []
    if kind == "orphans":
        prctl(PR_SET_CHILD_SUBREAPER, 1)
        pids = [orphan() for _ in range(3)]
    elif kind == "storm":
        prctl(PR_SET_CHILD_SUBREAPER, 1)
        print("ready", flush=True)
        pids = [orphan() for _ in range(100)]
    elif kind == "nested":
        pids = [fork(lambda: nested([name.encode("latin-1") for name in names]))]
    elif kind == "thread":
        pids = threaded()
    elif kind == "zombie":
        pids = [fork(lambda: None)]
        os.waitid(os.P_PID, pids[0], os.WEXITED | os.WNOWAIT)
    elif kind == "group":
        pids = leaderless()
    print("ready", *pids, flush=True)
    sys.stdin.read()


if __name__ == "__main__":
    main(*sys.argv[1:])
