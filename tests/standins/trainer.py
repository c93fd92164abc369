"""A training run in miniature: says `ready`, notes what reaches it, saves, ends as it is told to.

LOG names a file to which it appends JSON lines; STDOUT gets the same. Usage: trainer.py HOW [SAVE_SECONDS] [EXIT]
HOW: USR1, TERM, both (flag handlers), link (preemptd's client), none (no handler), late (imports for LATE seconds
before it has a handler), faulthandler (USR1 dumps the stacks, TERM saves), many (USR1, again and again: trains on).
"""

import importlib
import json
import os
import signal
import sys
import time

HOW = sys.argv[1]
SAVE = float(sys.argv[2]) if len(sys.argv) > 2 else 0.2
EXIT = int(sys.argv[3]) if len(sys.argv) > 3 else 0
TOLD: list[int] = []


def note(what: str, **more: object) -> None:
    line = json.dumps({"what": what, "pid": os.getpid(), "mono": time.monotonic(), **more})
    print(line, flush=True)
    if "LOG" in os.environ:
        fd = os.open(os.environ["LOG"], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        os.write(fd, line.encode() + b"\n")
        os.close(fd)


def on_signal(signum: int, _: object) -> None:
    if HOW != "many":
        TOLD.append(signum)
    note("signal", name=signal.Signals(signum).name)


def save(step: int) -> str:
    time.sleep(SAVE)
    path = f"{os.environ.get('CHECKPOINTS', '.')}/step-{os.getpid()}.ckpt"
    with open(path + ".tmp", "w") as file:
        file.write(str(step))
    os.rename(path + ".tmp", path)
    note("saved", step=step, path=path)
    return path


def main() -> None:
    if HOW == "late":
        note("importing")
        time.sleep(float(os.environ["LATE"]))
    if HOW == "faulthandler":
        import faulthandler

        faulthandler.register(signal.SIGUSR1)
    for name in {"USR1": ["USR1"], "TERM": ["TERM"], "both": ["USR1", "TERM"], "late": ["USR1"], "many": ["USR1"]}.get(
        HOW, []
    ):
        signal.signal(signal.Signals[f"SIG{name}"], on_signal)
    if HOW == "faulthandler":
        signal.signal(signal.SIGTERM, on_signal)
    link = importlib.import_module("preemptd") if HOW == "link" else None
    note("ready", argv=sys.argv)
    step, last = 0, int(os.environ.get("STEPS", "3000"))
    while step < last and not TOLD and not (link and link.should_preempt()):
        time.sleep(0.02)
        step += 1
    if link and link.should_preempt():
        note("asked", left=link.time_left())
        link.saving()
        link.saved(step, save(step))
    elif TOLD:
        save(step)
    note("exit", code=EXIT)
    sys.exit(EXIT)


main()
