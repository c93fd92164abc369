"""A training that goes on at its checkpoint: restarted.py HOW LAST. Start number LAST ends by itself, with 0.

Those before it train until they are told. LOG and CHECKPOINTS as in trainer.py; beside LOG it holds alone.lock, and
notes `second` if another copy does.
HOW: saves; futile (told, it leaves without a checkpoint, with status 9); done (told, it says that it was about to end).
"""

import fcntl
import importlib
import json
import os
import signal
import sys
import time

HOW, LAST = sys.argv[1], int(sys.argv[2])
STEPS = 10
"""Of the last start."""
DIRECTORY = os.environ["CHECKPOINTS"]
CHECKPOINT = f"{DIRECTORY}/last.ckpt"
TOLD: list[int] = []


def note(what: str, **more: object) -> None:
    line = json.dumps({"what": what, "pid": os.getpid(), "mono": time.monotonic(), **more})
    fd = os.open(os.environ["LOG"], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    os.write(fd, line.encode() + b"\n")
    os.close(fd)


def starts() -> int:
    """Count the starts, this one included."""
    with open(f"{os.path.dirname(os.environ['LOG'])}/starts", "a") as file:
        file.write(".")
        return file.tell()


def restored() -> int:
    try:
        with open(CHECKPOINT) as file:
            return int(file.read())
    except FileNotFoundError:
        return 0


def save(step: int) -> None:
    with open(f"{CHECKPOINT}.tmp", "w") as file:
        file.write(str(step))
    os.rename(f"{CHECKPOINT}.tmp", CHECKPOINT)
    note("saved", step=step)


def main() -> int:
    client = importlib.import_module("preemptd") if HOW == "done" else None
    if client is None:  # else it is told over the link alone
        signal.signal(signal.SIGUSR1, lambda signum, _: TOLD.append(signum))
    with open(f"{os.path.dirname(os.environ['LOG'])}/alone.lock", "w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            note("second")
        step, last = restored(), starts() >= LAST
        end = step + STEPS
        names = ("PREEMPTD_ATTEMPT", "PREEMPTD_RESUMED", "PREEMPTD_RESTART", "WANDB_RUN_ID")
        note("ready", step=step, argv=sys.argv[1:], **{name: os.environ.get(name) for name in names})
        while (step < end or not last) and not TOLD and not (client and client.should_preempt()):
            time.sleep(0.02)
            step += 1
        if client and client.should_preempt():
            client.done()
        elif TOLD and HOW == "saves":
            save(step)
        note("exit", step=step)
    return 9 if TOLD and HOW == "futile" else 0


sys.exit(main())
