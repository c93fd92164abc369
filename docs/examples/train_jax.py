"""A small network by JAX that saves when SIGTERM comes, the signal that JAX itself takes for a preemption.

Nothing here knows of preemptd:  preemptd rehearse --signal TERM -- python docs/examples/train_jax.py
"""

import argparse
import os
import signal
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np


def loss_of(weights, points, labels):
    hidden = jnp.tanh(points @ weights["in"] + weights["shift"])
    logits = (hidden @ weights["out"])[:, 0]
    return jnp.mean(jnp.logaddexp(0, logits) - labels * logits)


@jax.jit
def train_step(weights, step):
    points = jax.random.uniform(jax.random.key(step), (64, 2), minval=-1, maxval=1)
    labels = (jnp.square(points).sum(1) < 0.5).astype(float)
    loss, slope = jax.value_and_grad(loss_of)(weights, points, labels)
    return jax.tree.map(lambda weight, by: weight - 0.5 * by, weights, slope), loss


def begin():
    first, second = jax.random.split(jax.random.key(0))
    return {
        "in": jax.random.normal(first, (2, 16)),
        "shift": jnp.zeros(16),
        "out": jax.random.normal(second, (16, 1)) * 0.1,
    }


def save(directory, step, weights):
    """Whole or not at all: another name first, on the disk, then the real name."""
    path = directory / f"step-{step:08d}.npz"
    with path.with_suffix(".tmp").open("wb") as file:
        np.savez(file, **weights)
        file.flush()
        os.fsync(file.fileno())
    path.with_suffix(".tmp").rename(path)
    print(f"saved {path}", flush=True)


def main():
    told = []
    signal.signal(signal.SIGTERM, lambda *_: told.append(True))  # a handler only takes note: the loop looks at it

    parser = argparse.ArgumentParser()
    parser.add_argument("--checkpoints", type=Path, default=Path("checkpoints"))
    parser.add_argument("--steps", type=int, default=1_000_000)
    options = parser.parse_args()

    options.checkpoints.mkdir(parents=True, exist_ok=True)
    newest = max(options.checkpoints.glob("step-*.npz"), default=None)
    if newest:
        step, weights = int(newest.stem.removeprefix("step-")), dict(np.load(newest))
        print(f"resumed from {newest}", flush=True)
    else:
        step, weights = 0, begin()

    while step < options.steps and not told:
        weights, loss = train_step(weights, step)
        step += 1
        if step % 5000 == 0:
            print(f"step {step} loss {loss:.3f}", flush=True)
    save(options.checkpoints, step, weights)
    if told:
        sys.exit(75)  # not 0: there is more to do


if __name__ == "__main__":
    main()
