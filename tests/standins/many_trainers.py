"""Many trainings at once: many_trainers.py COUNT LOG. Each catches SIGUSR1, and notes `PID MONOTONIC` when it comes.

Prints their pids, one a line, when all of them listen; ends them when its input ends. They are no clones of one
another: each runs a program of its own, and none is a child of another.
"""

import os
import subprocess
import sys

TRAINING = """
import os, signal, sys, time
def told(*_):
    fd = os.open(sys.argv[1], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    os.write(fd, b"%d %f\\n" % (os.getpid(), time.monotonic()))
signal.signal(signal.SIGUSR1, told)
os.write(1, b"%d\\n" % os.getpid())
while True:
    signal.pause()
"""


def main(count: int, log: str) -> None:
    command = [sys.executable, "-S", "-E", "-c", TRAINING, log]
    trainings = [subprocess.Popen(command, stdout=subprocess.PIPE) for _ in range(count)]
    for training in trainings:
        assert training.stdout is not None
        os.write(1, training.stdout.readline())
    sys.stdin.read()
    for training in trainings:
        training.kill()
    os._exit(0)


main(int(sys.argv[1]), sys.argv[2])
