"""Looks for targets where a test cannot: in a pid namespace of its own, or as another user. Says JSON."""

import json
import os
import resource
import signal
import sys
import time
from contextlib import suppress
from pathlib import Path

from preemptd.procfs import process_id
from preemptd.targets.finding import Finder, Wanted
from preemptd.targets.pinned import Held

NOBODY = 65534


def fork(pid: int | None = None) -> int:
    """Start a process that waits, with just this *pid*: nobody else starts one in this namespace."""
    if pid is not None:
        Path("/proc/sys/kernel/ns_last_pid").write_text(str(pid - 1), encoding="ascii")
    child = os.fork()
    if child == 0:
        signal.pause()
    assert pid in {None, child}
    return child


def end(pid: int) -> None:
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)


def finder(*wanted: Wanted) -> Finder:
    return Finder(wanted, tuple, tuple, lambda _: None, lambda *_: None)


def say(*looks: tuple[Finder, int]) -> None:
    """Say of each Finder whether it finds the process with that pid, and what it says of its first target."""
    seen = []
    for one, pid in looks:
        found = pid in {process.pid for process in one.snapshot()}
        seen.append({"found": found, "status": one.status()[0]})
    print(json.dumps(seen), flush=True)


def ended(path: str) -> None:
    """Look at a process before and after its end."""
    pid = fork()
    Path(path).write_text(str(pid), encoding="ascii")
    looks = [(finder(wanted), pid) for wanted in (Wanted(pid=pid), Wanted(pidfile=path))]
    say(*looks)
    end(pid)
    say(*looks)


def reuse(path: str) -> None:
    """End a process and give its pid to another one, a second later."""
    pid = fork()
    Path(path).write_text(str(pid), encoding="ascii")
    by_pid, by_file = finder(Wanted(pid=pid)), finder(Wanted(pidfile=path))
    say((by_pid, pid), (by_file, pid))
    end(pid)
    time.sleep(1)  # by the tick of a clock the next one has to be younger than the file
    fork(pid)
    say((by_pid, pid), (by_file, pid), (finder(Wanted(pidfile=path)), pid))


def same_tick(_: str) -> None:
    """The same, so fast that both were started in the same tick of the clock."""
    pid = fork()
    end(pid)
    for _try in range(1000):
        fork(pid)
        before = process_id(pid)
        by_pid = finder(Wanted(pid=pid))
        end(pid)
        fork(pid)
        if process_id(pid) == before:
            say((by_pid, pid))
            return
        end(pid)
        by_pid.close()


def exhausted(_: str) -> None:
    """Look while no descriptor is left, and again when there are."""
    pid = fork()
    by_pid = finder(Wanted(pid=pid))
    process = process_id(pid)
    assert process is not None
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (0, limits[1]))
    held = Held(process)
    with suppress(OSError):
        by_pid.snapshot()
    lived = held.lives()
    resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    found = pid in {process.pid for process in by_pid.snapshot()}
    print(json.dumps([{"found": found, "held": lived}]), flush=True)
    end(pid)
    found = pid in {process.pid for process in by_pid.snapshot()}
    print(json.dumps([{"found": found, "held": held.lives()}]), flush=True)


def hidden(unit: str) -> None:
    """Look for what /proc does not show to the user that we become."""
    os.setgroups([])
    os.setresgid(NOBODY, NOBODY, NOBODY)
    os.setresuid(NOBODY, NOBODY, NOBODY)
    say((finder(Wanted(unit=unit)), 0), (finder(Wanted(match=unit)), 0), (finder(Wanted(pid=1 + 1)), 0))


if __name__ == "__main__":
    {"ended": ended, "reuse": reuse, "same_tick": same_tick, "hidden": hidden, "exhausted": exhausted}[sys.argv[1]](
        sys.argv[2]
    )
