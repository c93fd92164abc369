"""A training script that imports preemptd and uses W&B: python wandb_inside.py WORK END

Prints ``ready PID RUN_ID`` when it trains, ``told MONOTONIC`` when should_preempt() says so, and ends as END says.
"""

import os
import sys
import threading
import time
from collections.abc import Callable
from multiprocessing.context import ForkProcess, SpawnProcess
from sys import exit as early_exit  # bound before wandb.init() patches the attribute

import wandb

import preemptd


def begin() -> "wandb.Run":
    preemptd.should_preempt()
    run = wandb.init()
    run.log({"loss": 1.0})
    say("ready", os.getpid(), run.id)
    return run


def say(*words: object) -> None:
    os.write(1, " ".join(map(str, words)).encode() + b"\n")  # one write a line: several processes share the pipe


# -- what it does until it is told -------------------------------------------------------------------------------


def polls() -> "wandb.Run":
    run = begin()
    while not preemptd.should_preempt():
        time.sleep(0.01)
    return run


def leaves_at_once() -> "wandb.Run":
    """Ask as fast as it goes, so that the end comes right after the telling."""
    run = begin()
    while not preemptd.should_preempt():
        pass
    return run


def logs() -> "wandb.Run":
    run = begin()
    while not preemptd.should_preempt():
        run.log({"loss": 0.5})
    return run


def sleeps() -> "wandb.Run":
    run = begin()
    time.sleep(60)
    return run


def begins_late() -> "wandb.Run":
    """Begin the run only when it is told."""
    say("waiting", os.getpid())
    while not preemptd.should_preempt():
        time.sleep(0.01)
    run = begin()
    sys.stdin.readline()
    return run


def floods() -> "wandb.Run":
    """Write more than a stopped wandb-core takes, in a thread that blocks then; say when it does."""
    run = begin()
    count = [0]

    def flood() -> None:
        while True:
            run.log({"text": "x" * 100_000})
            count[0] += 1

    sys.stdin.readline()  # wandb-core has been stopped
    threading.Thread(target=flood, daemon=True).start()
    before = -1
    while before != count[0]:
        before = count[0]
        time.sleep(0.5)
    say("stuck")
    while not preemptd.should_preempt():
        time.sleep(0.01)
    say("told", time.monotonic())
    os._exit(0)


def forks() -> "wandb.Run":
    """Train here and in a child made by os.fork."""
    run = begin()
    child = os.fork()
    if child == 0:
        polls().finish()
        os._exit(0)
    while not preemptd.should_preempt():
        time.sleep(0.01)
    os.waitpid(child, 0)
    return run


def in_child() -> None:
    say("told", time.monotonic(), polls().id)


def with_child(process: type[ForkProcess] | type[SpawnProcess]) -> "wandb.Run":
    """Train here and in a child of multiprocessing."""
    run = begin()
    child = process(target=in_child)
    child.start()
    while not preemptd.should_preempt():
        time.sleep(0.01)
    child.join()
    return run


def logs_to(run: "wandb.Run") -> None:
    run.log({"loss": 0.1})
    say("attached", os.getpid(), run.id)
    while not preemptd.should_preempt():
        time.sleep(0.01)


def attaches() -> "wandb.Run":
    """Have a child that logs to our run, hears the notice as well, and ends before us."""
    run = begin()
    child = ForkProcess(target=logs_to, args=(run,))
    child.start()
    child.join()
    run.log({"after": 1.0})
    return run


WORK: dict[str, Callable[[], "wandb.Run"]] = {
    work.__name__: work for work in (polls, leaves_at_once, logs, sleeps, begins_late, floods, forks, attaches)
}
WORK["fork"] = lambda: with_child(ForkProcess)
WORK["spawn"] = lambda: with_child(SpawnProcess)


# -- how it ends -------------------------------------------------------------------------------------------------


def falls_off(_run: "wandb.Run") -> None:
    """Save, return."""


def sys_exit_0(_run: "wandb.Run") -> None:
    sys.exit(0)


def sys_exit_143(_run: "wandb.Run") -> None:
    sys.exit(143)


def early_sys_exit(_run: "wandb.Run") -> None:
    early_exit(143)


def finishes(_run: "wandb.Run") -> None:
    wandb.finish()


def finish_143(run: "wandb.Run") -> None:
    run.finish(exit_code=143)


def with_block(run: "wandb.Run") -> None:
    with run:
        pass


def exception(_run: "wandb.Run") -> None:
    raise RuntimeError("preempted")


def done(_run: "wandb.Run") -> None:
    preemptd.done()


def done_and_finish(run: "wandb.Run") -> None:
    preemptd.done()
    run.finish()


def waits(_run: "wandb.Run") -> None:
    """Go on until a line comes."""
    sys.stdin.readline()


ENDS: dict[str, Callable[["wandb.Run"], None]] = {
    end.__name__: end
    for end in (
        *(falls_off, sys_exit_0, sys_exit_143, early_sys_exit, finishes, finish_143, with_block, exception),
        *(done, done_and_finish, waits),
    )
}


if __name__ == "__main__":
    wandb_run = WORK[sys.argv[1]]()
    say("told", time.monotonic(), wandb_run.id)
    ENDS[sys.argv[2]](wandb_run)
