"""A training that goes on from its checkpoint, and leaves it to wandb to find its run.

Usage: wandb_resume.py CHECKPOINTS [options]. It saves the step when it is told (SIGUSR1), and at step --save-at.
--steps: how many. --die-at: at this step it waits for somebody to kill it. --init: arguments of wandb.init, in JSON.
--save-for: seconds that a save takes. --deaf: told, it notes that and trains on.
--ranks: so many processes begin a run. --code: what it ends with when it was told. --given-step: log() names the step.
--leave-open: it leaves it to wandb to finish the run.
LOG names a file to which it appends JSON lines.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import wandb

TOLD: list[int] = []


def note(what: str, **more: object) -> None:
    line = json.dumps({"what": what, "pid": os.getpid(), "mono": time.monotonic(), **more})
    fd = os.open(os.environ["LOG"], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    os.write(fd, line.encode() + b"\n")
    os.close(fd)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(allow_abbrev=False)
    parser.add_argument("checkpoints", type=Path)
    parser.add_argument("--steps", type=int, default=100_000)
    parser.add_argument("--save-at", type=int)
    parser.add_argument("--die-at", type=int)
    parser.add_argument("--init", type=json.loads, default={})
    parser.add_argument("--save-for", type=float, default=0.0)
    parser.add_argument("--deaf", action="store_true")
    parser.add_argument("--ranks", type=int, default=1)
    parser.add_argument("--code", type=int, default=75)
    parser.add_argument("--given-step", action="store_true")
    parser.add_argument("--leave-open", action="store_true")
    return parser.parse_args()


def save(options: argparse.Namespace, step: int) -> None:
    path = options.checkpoints / "state.json"
    path.with_suffix(".new").write_text(json.dumps({"step": step}))
    path.with_suffix(".new").rename(path)
    note("saved", step=step)


def train(options: argparse.Namespace) -> int:
    options.checkpoints.mkdir(exist_ok=True)
    state = options.checkpoints / "state.json"
    step = json.loads(state.read_text())["step"] if state.exists() else 0
    run = wandb.init(**options.init)
    note("ready", runs=[run.id], resumed=run.resumed, step=step)
    while step < options.steps and not TOLD:
        step += 1
        run.log({"train_step": step}, **({"step": step} if options.given_step else {}))
        note("step", step=step)
        if step == options.save_at:
            save(options, step)
        if step == options.die_at:
            note("dies")
            time.sleep(60)
        time.sleep(0.02)
    if TOLD:
        time.sleep(options.save_for)
        save(options, step)
    if not options.leave_open:
        run.finish(exit_code=options.code if TOLD else 0)
    return options.code if TOLD else 0


def launch(ranks: int) -> int:
    """Be the launcher: ranks that are told each for itself."""
    at = sys.argv.index("--ranks")
    command = [sys.executable, *sys.argv[:at], *sys.argv[at + 2 :]]
    children = [subprocess.Popen(command) for _ in range(ranks)]
    return max(child.wait() for child in children)


def main() -> int:
    options = parse()
    if options.ranks > 1:
        return launch(options.ranks)
    signal.signal(signal.SIGUSR1, lambda *_: note("deaf") if options.deaf else TOLD.append(signal.SIGUSR1))
    return train(options)


if __name__ == "__main__":
    sys.exit(main())
