"""One run of a sweep: saves when SIGUSR1 comes, and goes on from there on whichever machine the run is given next.

Nothing here knows of preemptd; sweep.yaml starts it under `preemptd watch`.
"""

import argparse
import json
import os
import random
import signal
import sys
from pathlib import Path

import wandb


def save(path, state):
    """Whole or not at all: another name first, then the real one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    new = path.with_suffix(".new")
    new.write_text(json.dumps(state))
    new.rename(path)
    print(f"saved step {state['step']} to {path}", flush=True)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--rate", type=float, default=0.1)
    parser.add_argument("--steps", type=int, default=int(os.environ.get("STEPS", "5000")))
    args = parser.parse_args()

    told = []
    signal.signal(signal.SIGUSR1, lambda *_: told.append(True))  # a handler only takes note: the loop looks at it

    run = wandb.init(config=vars(args))
    # By the run's id, and on a disk that every machine sees: the next agent that asks may be on another one.
    path = Path(os.environ.get("CHECKPOINTS", "checkpoints")) / run.id / "state.json"
    state = json.loads(path.read_text()) if path.exists() else {"step": 0, "x": random.uniform(-3, 3)}
    print(f"begins at step {state['step']}", flush=True)

    while state["step"] < args.steps and not told:
        state["x"] -= args.rate * 0.01 * 2 * state["x"]  # gradient descent on x * x
        state["step"] += 1
        run.log({"loss": state["x"] ** 2}, step=state["step"])
        if state["step"] % 1000 == 0:
            save(path, state)
    save(path, state)
    if told:
        run.finish(exit_code=75)  # not 0: W&B gives the run back to its sweep only then
        sys.exit(75)


if __name__ == "__main__":
    main()
