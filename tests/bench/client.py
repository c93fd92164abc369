"""Figures of `should_preempt()`: what a step of a training pays for asking."""

import os
import re
import subprocess
import sys
from pathlib import Path

from tests.linking import notice, serving

MARK = "client"

ASKS = """
import contextlib, sys, timeit
import preemptd
class Flag: pass
flag = Flag(); flag.told = False
def read(): return flag.told
def ns(ask):
    number = int(sys.argv[1])
    return min(timeit.repeat(ask, number=number, repeat=9)) / number * 1e9
preemptd.saved(0)
if sys.argv[2] == "in a thread":
    import threading
    def thread(): print(ns(read), ns(preemptd.should_preempt))
    worker = threading.Thread(target=thread); worker.start(); worker.join()
else:
    preemptd.should_preempt()
    with preemptd.defer() if sys.argv[2] == "inside defer()" else contextlib.nullcontext():
        while sys.argv[2] == "told" and not preemptd.should_preempt(): pass
        print(ns(read), ns(preemptd.should_preempt))
"""
CASES = (
    ("no daemon: SIGUSR1 and SIGTERM are caught", "caught", False),
    ("no daemon, in a thread, the main thread has not asked", "in a thread", False),
    ("with a daemon", "quiet", True),
    ("with a daemon, inside `defer()`", "inside defer()", True),
    ("with a daemon, a notice is open", "told", True),
)


def figures(preemptd: Path, *, quick: bool) -> str:
    python, number = preemptd.parent / "python", 10_000 if quick else 300_000
    rows = []
    for name, how, with_daemon in CASES:
        read, ask = measured(python, number, how, with_daemon=with_daemon)
        rows.append(f"| {name} | {ask:.0f} | {ask / read:.1f} |")
        print(rows[-1], file=sys.stderr)
    imports = import_us(python, 3 if quick else 20)
    return "\n".join(
        [
            "| `should_preempt()` | ns | : a function that reads an attribute |",
            "|---|---|---|",
            *rows,
            "",
            f"`import preemptd`: {imports:.0f} µs.",
        ]
    )


def measured(python: Path, number: int, how: str, *, with_daemon: bool) -> tuple[float, float]:
    """Return the nanoseconds of a function that reads an attribute, and of `should_preempt()`."""
    with serving() as (server, _):
        if how == "told":
            server.announce(notice(remaining=3600.0))
        environment = {**os.environ, "PREEMPTD_LINK": server.path if with_daemon else ""}
        done = subprocess.run(
            [python, "-I", "-c", ASKS, str(number), how], env=environment, check=True, capture_output=True, text=True
        )
    read, ask = map(float, done.stdout.split())
    return read, ask


def import_us(python: Path, times: int) -> float:
    """Return the microseconds of the fastest of *times* imports, each in an interpreter of its own."""
    command = [str(python), "-I", "-X", "importtime", "-c", "import preemptd"]
    errors = (subprocess.run(command, check=True, capture_output=True, text=True).stderr for _ in range(times))
    return min(float(re.findall(r"\|\s+(\d+) \| preemptd$", error, re.MULTILINE)[0]) for error in errors)
