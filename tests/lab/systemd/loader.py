"""A training with two workers, as a DataLoader has them. Usage: loader.py LOG SAVE_SECONDS [stays]

It saves at the first SIGUSR1 or SIGTERM (who *stays*: at SIGTERM), and ends. A worker that dies costs it the save:
torch raises "DataLoader worker exited unexpectedly" in the main process, whatever that does at the moment.
"""

import json
import os
import signal
import sys
import time

LOG, SAVE, STAYS = sys.argv[1], float(sys.argv[2]), "stays" in sys.argv[3:]
told: list[str] = []
workers: list[int] = []


def note(what: str, **more: object) -> None:
    fd = os.open(LOG, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
    line = {"what": what, "pid": os.getpid(), "mono": time.monotonic(), **more}
    os.write(fd, json.dumps(line).encode() + b"\n")
    os.fsync(fd)
    os.close(fd)


def on_signal(signum: int, _: object) -> None:
    told.append(signal.Signals(signum).name)
    note("signal", name=told[-1])


def on_death(*_: object) -> None:
    note("lost", why="a worker exited unexpectedly")
    os._exit(1)


def start_worker() -> int:
    pid = os.fork()
    if pid == 0:
        for signum in (signal.SIGUSR1, signal.SIGTERM, signal.SIGCHLD):
            signal.signal(signum, signal.SIG_DFL)
        main = os.getppid()
        while os.getppid() == main:
            time.sleep(0.05)
        os._exit(0)
    return pid


def main() -> None:
    workers.extend(start_worker() for _ in range(2))
    for signum in (signal.SIGUSR1, signal.SIGTERM):
        signal.signal(signum, on_signal)
    signal.signal(signal.SIGCHLD, on_death)
    note("ready", workers=workers, attempt=os.environ.get("PREEMPTD_ATTEMPT"))
    while not told or (STAYS and "SIGTERM" not in told):
        time.sleep(0.02)
    end = time.monotonic() + SAVE
    while time.monotonic() < end:  # a signal's handler must not cut the save short
        time.sleep(0.02)
    note("saved", told=told)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    for pid in workers:
        os.kill(pid, signal.SIGKILL)


main()
