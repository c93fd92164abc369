"""Helpers with known return codes run beside a storm of orphans that are reaped; says how many went wrong."""

import os
import subprocess
import threading
import time

from preemptd.targets.reaping import Helpers, become_subreaper

ROUNDS = 60
THREADS = 3
ORPHANS = 'for i in 1 2 3 4 5; do (sh -c "exit 0" &); done'


def run_helpers(helpers: Helpers, number: int, wrong: list[int]) -> None:
    for turn in range(ROUNDS):
        code = 1 + (turn + number) % 100
        helper = helpers.popen(["sh", "-c", f"{ORPHANS}; exit {code}"])
        if helper.wait() != code:
            wrong.append(code)
        helpers.release(helper)


def children() -> str:
    return "".join(open(f"/proc/self/task/{t}/children").read() for t in os.listdir("/proc/self/task"))


def main() -> None:
    become_subreaper()
    helpers, wrong = Helpers(), list[int]()
    # A plug-in's own subprocess, which is registered nowhere, ends while nobody waits for it.
    foreign = subprocess.Popen(["sh", "-c", "exit 9"])
    threads = [threading.Thread(target=run_helpers, args=(helpers, n, wrong)) for n in range(THREADS)]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        helpers.reap_orphans(but_not=0)
        time.sleep(0.0005)
    if foreign.wait() != 9:
        wrong.append(9)
    end = time.monotonic() + 10
    while children() and time.monotonic() < end:
        helpers.reap_orphans(but_not=0)
        time.sleep(0.01)
    print(f"wrong {len(wrong)}, orphans left {len(children().split())}")


main()
