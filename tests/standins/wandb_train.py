"""An ordinary training script that uses W&B and knows nothing of preemptd. Options: --runs N, --hold-gil S, --late.

Prints ``ready PID RUN_ID...`` when it trains. SIGUSR1 prints ``told MONOTONIC`` and sets a flag; it then finishes with
exit code 143 and ends. --late: the run begins only when a line comes on standard input.
"""

import argparse
import ctypes
import os
import signal
import subprocess
import sys
import time

import wandb

TOLD: list[float] = []


def on_signal(_signum: int, _frame: object) -> None:
    TOLD.append(time.monotonic())


def hold_gil(seconds: str) -> None:
    """Sit in one C call that keeps the GIL and that no signal ends, as a long call of a C extension does."""
    signal.siginterrupt(signal.SIGUSR1, False)
    with subprocess.Popen(["sleep", seconds], stdout=subprocess.PIPE) as sleep:
        assert sleep.stdout is not None
        ctypes.PyDLL(None).read(sleep.stdout.fileno(), ctypes.create_string_buffer(1), 1)


def main() -> None:
    parser = argparse.ArgumentParser(allow_abbrev=False)
    parser.add_argument("--runs", type=int, default=1)
    parser.add_argument("--hold-gil", default="")
    parser.add_argument("--late", action="store_true")
    options = parser.parse_args()
    signal.signal(signal.SIGUSR1, on_signal)
    if options.late:
        print("waiting", os.getpid(), flush=True)
        sys.stdin.readline()
    runs = [wandb.init(reinit="create_new" if options.runs > 1 else None) for _ in range(options.runs)]
    for run in runs:
        run.log({"loss": 1.0})
    print("ready", os.getpid(), *(run.id for run in runs), flush=True)
    if options.hold_gil:
        hold_gil(options.hold_gil)
    while not TOLD:
        for run in runs:
            run.log({"loss": 0.5})
        time.sleep(0.05)
    print("told", TOLD[0], flush=True)
    for run in runs:
        run.finish(exit_code=143)


if __name__ == "__main__":
    main()
