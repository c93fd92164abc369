"""The loop's natural pattern: it signals its child, whose reaction comes back as a signal, while threads are busy.

SIGTERM, exit, SIGCHLD is that pattern, and so is a forwarded signal that is answered. Usage: loop_rounds.py ROUNDS
PATIENCE [queue]. Prints JSON: how many rounds were stuck for PATIENCE seconds, how many answers came twice, and how
long the rounds took. ``queue`` shows what a queue.SimpleQueue that handlers put into makes of it.
"""

import json
import os
import queue
import signal
import sys
import threading
import time
from collections.abc import Callable

from preemptd.events import Inbox, SignalArrived

Get = Callable[[float], object]
ECHO = "import os, signal\nsignal.pthread_sigmask(0, {10})\nprint(flush=True)\nwhile 1:\n"
ECHO += "    signal.sigwait({10}); os.kill(os.getppid(), 12)"


def echo() -> int:
    """Start a child that answers each SIGUSR1 by SIGUSR2, and return its pid when it does."""
    ready, said = os.pipe2(0)
    arguments = [sys.executable, "-I", "-S", "-c", ECHO]
    pid = os.posix_spawn(sys.executable, arguments, os.environ, file_actions=[(os.POSIX_SPAWN_DUP2, said, 1)])
    os.close(said)
    assert os.read(ready, 1)
    os.close(ready)
    return pid


def inbox() -> Get:
    one = Inbox()
    one.catch(frozenset({signal.SIGUSR2}))
    return one.get


def simple_queue() -> Get:
    one: queue.SimpleQueue[object] = queue.SimpleQueue()
    signal.signal(signal.SIGUSR2, lambda signum, _: one.put(SignalArrived(signal.Signals(signum))))

    def get(timeout: float) -> object:
        try:
            return one.get(timeout=timeout)
        except queue.Empty:
            return None

    return get


def keep_busy() -> None:
    while True:
        sum(range(2000))
        time.sleep(0.0007)


def main() -> None:
    rounds, patience = int(sys.argv[1]), float(sys.argv[2])
    get = simple_queue() if sys.argv[3:] else inbox()
    child = echo()
    for _ in range(3):
        threading.Thread(target=keep_busy, daemon=True).start()
    stuck, took = 0, []
    for _ in range(rounds):
        began = time.monotonic()
        os.kill(child, signal.SIGUSR1)
        while (answer := get(patience)) is None:
            stuck += 1
        assert answer == SignalArrived(signal.SIGUSR2)
        took.append(time.monotonic() - began)
    twice = sum(get(0) is not None for _ in range(10))
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    took.sort()
    slowest = {"p50_us": took[rounds // 2] * 1e6, "p99_us": took[rounds * 99 // 100] * 1e6, "max_ms": took[-1] * 1e3}
    print(json.dumps({"rounds": len(took), "stuck": stuck, "twice": twice, **slowest}))


main()
