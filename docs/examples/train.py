"""Train a small network for real, log to W&B if it is there, save when SIGUSR1 comes, resume from the checkpoint.

Nothing here knows of preemptd. Try it:  preemptd rehearse -- python docs/examples/train.py
"""

import argparse
import json
import math
import os
import random
import signal
import sys
from pathlib import Path

try:
    import wandb
except ImportError:
    wandb = None

HIDDEN, RATE, BATCH = 16, 0.1, 64


def predict(weights, x, y):
    """One hidden layer of tanh; the last number of each row is its bias."""
    hidden = [math.tanh(a * x + b * y + c) for a, b, c in weights["in"]]
    out = sum(w * h for w, h in zip(weights["out"], [*hidden, 1.0], strict=True))
    return hidden, 1 / (1 + math.exp(-max(-30.0, min(30.0, out))))


def train_step(weights):
    """One batch of gradient descent: is the point inside the circle?"""
    loss = 0.0
    for _ in range(BATCH):
        x, y = random.uniform(-1, 1), random.uniform(-1, 1)
        label = float(x * x + y * y < 0.5)
        hidden, guess = predict(weights, x, y)
        loss -= math.log(max(1e-9, guess if label else 1 - guess)) / BATCH
        error = RATE * (guess - label)
        for row, w, h in zip(weights["in"], weights["out"], hidden, strict=False):
            slope = error * w * (1 - h * h)
            row[0], row[1], row[2] = row[0] - slope * x, row[1] - slope * y, row[2] - slope
        weights["out"] = [w - error * h for w, h in zip(weights["out"], [*hidden, 1.0], strict=True)]
    return loss


def save(directory, state):
    """Whole or not at all: another name first, on the disk, then the real name."""
    path = directory / f"step-{state['step']:08d}.json"
    with path.with_suffix(".tmp").open("w") as file:
        json.dump(state, file)
        file.flush()
        os.fsync(file.fileno())
    path.with_suffix(".tmp").rename(path)
    print(f"saved {path}", flush=True)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--checkpoints", type=Path, default=Path("checkpoints"))
    parser.add_argument("--steps", type=int, default=30_000)
    args = parser.parse_args()

    told = []
    signal.signal(signal.SIGUSR1, lambda *_: told.append(True))  # a handler only takes note: the loop looks at it

    args.checkpoints.mkdir(parents=True, exist_ok=True)
    newest = max(args.checkpoints.glob("step-*.json"), default=None)
    if newest:
        state = json.loads(newest.read_text())
        print(f"resumed from {newest}", flush=True)
    else:
        rows = [[random.gauss(0, 1) for _ in range(3)] for _ in range(HIDDEN)]
        state = {"step": 0, "run": None, "weights": {"in": rows, "out": [0.0] * (HIDDEN + 1)}}
    run = wandb.init(project="preemptd-example", id=state["run"], resume="allow") if wandb else None
    state["run"] = run.id if run else None

    while state["step"] < args.steps and not told:
        loss = train_step(state["weights"])
        state["step"] += 1
        if run:
            run.log({"loss": loss}, step=state["step"])
        if state["step"] % 500 == 0:
            print(f"step {state['step']} loss {loss:.3f}", flush=True)
    save(args.checkpoints, state)
    if told:
        sys.exit(75)  # not 0: there is more to do, and W&B gives a run back to its sweep only then


if __name__ == "__main__":
    main()
