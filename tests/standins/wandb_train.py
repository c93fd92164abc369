"""An ordinary training script that uses W&B and knows nothing of preemptd.

Prints ``ready PID RUN_ID...`` when it trains. The signal prints ``told MONOTONIC`` and sets a flag; the script then
finishes its runs with exit code 143 and ends. LOG names a file to which it appends JSON lines, one for each thing that
happens, with the time of the monotonic clock. Options: --runs N; --hold-gil S; --late: the run begins only when a line
comes on standard input; --begin-when PATH: when that file exists; --listen-when PATH: it has no handler before its runs
have begun and that file exists; --signal NAME; --save S: it trains on so long after the signal; --steps N: it ends by
itself after N steps; --forks N: the runs belong to N forked processes; --finished: a run has begun and ended before;
--burst N: it logs so many rows at once; --code N: what it ends with when it was told, 143 if not said; --finish-when
PATH: its runs end by themselves when that file exists, and it goes on; --end-when PATH: whatever it was told, it trains
on until that file exists, and ends by itself.
Under torchrun only rank 0 has a run.
"""

import argparse
import ctypes
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence

import wandb

TOLD: list[float] = []


def note(what: str, **more: object) -> None:
    if "LOG" in os.environ:
        line = json.dumps({"what": what, "pid": os.getpid(), "mono": time.monotonic(), **more})
        fd = os.open(os.environ["LOG"], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        os.write(fd, line.encode() + b"\n")
        os.close(fd)


def on_signal(signum: int, _frame: object) -> None:
    TOLD.append(time.monotonic())
    note("signal", name=signal.Signals(signum).name)


def hold_gil(seconds: str) -> None:
    """Sit in one C call that keeps the GIL and that no signal ends, as a long call of a C extension does."""
    signal.siginterrupt(signal.SIGUSR1, False)
    with subprocess.Popen(["sleep", seconds], stdout=subprocess.PIPE) as sleep:
        assert sleep.stdout is not None
        note("holding")
        ctypes.PyDLL(None).read(sleep.stdout.fileno(), ctypes.create_string_buffer(1), 1)


def wait_for(path: str) -> None:
    while path and not os.path.exists(path):
        time.sleep(0.01)


def wait_for_start(options: argparse.Namespace) -> None:
    if options.late or options.begin_when:
        print("waiting", os.getpid(), flush=True)
        note("waiting")
    if options.late:
        sys.stdin.readline()
    wait_for(options.begin_when)


def begin(count: int) -> list["wandb.Run"]:
    runs = [wandb.init(reinit="create_new" if count > 1 else None) for _ in range(count)]
    for run in runs:
        run.log({"loss": 1.0})
    return runs


def begin_in_forks(count: int) -> list[int]:
    """Return the pipes whose closing ends the runs."""
    ends: list[int] = []
    for _ in range(count):
        theirs, ours = os.pipe()
        if os.fork() == 0:
            for end in (ours, *ends):
                os.close(end)
            (run,) = begin(1)
            note("run", run=run.id)
            os.read(theirs, 1)
            run.finish(exit_code=143)
            os._exit(0)
        os.close(theirs)
        ends.append(ours)
    return ends


def burst(runs: Sequence["wandb.Run"], count: int) -> None:
    for row in range(count):
        for run in runs:
            run.log({"row": row})
    note("burst")


def train(runs: Sequence["wandb.Run"], options: argparse.Namespace) -> None:
    step = 0
    finished = False
    while not is_over(options, step):
        if options.finish_when and os.path.exists(options.finish_when) and not finished:
            finished = True
            for run in runs:
                run.finish()
            note("finished")
        for run in () if finished else runs:
            run.log({"loss": 0.5})
        time.sleep(0.05)
        step += 1
    if TOLD and not options.end_when:
        print("told", TOLD[0], flush=True)
        time.sleep(options.save)
        note("saved")


def is_over(options: argparse.Namespace, step: int) -> bool:
    if options.end_when:
        return os.path.exists(options.end_when)
    return bool(TOLD) or (options.steps is not None and step >= options.steps)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(allow_abbrev=False)
    parser.add_argument("--runs", type=int, default=1)
    parser.add_argument("--hold-gil", default="")
    parser.add_argument("--late", action="store_true")
    parser.add_argument("--begin-when", default="")
    parser.add_argument("--listen-when", default="")
    parser.add_argument("--signal", default="USR1")
    parser.add_argument("--save", type=float, default=0.0)
    parser.add_argument("--steps", type=int)
    parser.add_argument("--finished", action="store_true")
    parser.add_argument("--forks", type=int, default=0)
    parser.add_argument("--burst", type=int, default=0)
    parser.add_argument("--code", type=int, default=143)
    parser.add_argument("--finish-when", default="")
    parser.add_argument("--end-when", default="")
    return parser.parse_args()


def main() -> None:
    options = parse()
    ends = begin_in_forks(options.forks)
    if not options.listen_when:
        signal.signal(signal.Signals[f"SIG{options.signal}"], on_signal)
    wait_for_start(options)
    owner = not options.forks and os.environ.get("RANK", "0") == "0"
    if options.finished:
        begin(1)[0].finish()
    runs = begin(options.runs) if owner else []
    note("began")
    wait_for(options.listen_when)
    signal.signal(signal.Signals[f"SIG{options.signal}"], on_signal)
    print("ready", os.getpid(), *(run.id for run in runs), flush=True)
    note("ready", runs=[run.id for run in runs])
    if options.burst:
        burst(runs, options.burst)
    if options.hold_gil:
        hold_gil(options.hold_gil)
    train(runs, options)
    for run in runs:
        run.finish(exit_code=options.code if TOLD and not options.end_when else 0)
    for end in ends:
        os.close(end)
    for _ in ends:
        os.wait()
    note("exit", code=0)


if __name__ == "__main__":
    main()
