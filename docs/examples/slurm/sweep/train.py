"""One run of the sweep: saves after each epoch, ends when SIGUSR1 comes, and goes on from its last epoch.

Nothing here knows of preemptd or of SLURM.
"""

import argparse
import json
import random
import signal
import sys
import time
from pathlib import Path

import wandb


def save(path, state):
    """Whole or not at all: another name first, then the real one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    new = path.with_suffix(".new")
    new.write_text(json.dumps(state))
    new.rename(path)


def train_epoch(state, rate):
    """Gradient descent on x * x; the sleep stands for the rest of the work."""
    for _ in range(10):
        state["x"] -= rate * 0.01 * 2 * state["x"]
    time.sleep(1)
    state["epoch"] += 1


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--rate", type=float, default=0.1)
    parser.add_argument("--epochs", type=int, default=60)
    args = parser.parse_args()

    told = []
    signal.signal(signal.SIGUSR1, lambda *_: told.append(True))  # a handler only takes note: the loop looks at it

    run = wandb.init(config=vars(args))
    path = Path("checkpoints") / run.id / "state.json"  # by the run's id: the next job that has it may be another one
    state = json.loads(path.read_text()) if path.exists() else {"epoch": 0, "x": random.uniform(-3, 3)}
    print(f"run {run.id}, rate {args.rate}: begins after epoch {state['epoch']}", flush=True)

    while state["epoch"] < args.epochs and not told:
        train_epoch(state, args.rate)
        run.log({"loss": state["x"] ** 2}, step=state["epoch"])
        save(path, state)
    print(f"run {run.id}: saved after epoch {state['epoch']}", flush=True)
    if told:
        run.finish(exit_code=75)  # not 0: W&B gives the run back to its sweep only then
        sys.exit(75)


if __name__ == "__main__":
    main()
