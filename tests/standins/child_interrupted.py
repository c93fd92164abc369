"""A command that counts the SIGINTs it gets, on the terminal; SIGQUIT ends it, saying how many there were."""

import os
import signal
import sys

counts = {signal.SIGINT: 0, signal.SIGQUIT: 0}


def count(signum: int, _: object) -> None:
    counts[signal.Signals(signum)] += 1
    if signum == signal.SIGINT:
        os.write(1, f"int-{counts[signal.SIGINT]}.\n".encode())
    else:
        os.write(1, f"total-{counts[signal.SIGINT]}.\n".encode())
        sys.exit(0)


for signum in counts:
    signal.signal(signum, count)
os.write(1, b"ready.\n")
while True:
    signal.pause()
