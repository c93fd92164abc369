"""A training with DataLoader workers: METHOD (fork, spawn, forkserver) [--bare] [--steps N] [--stuck].

Prints a JSON line when both workers have delivered, and one for its checkpoint; told, it wants some more batches first.
--bare: without the shield. --stuck: the last batch never comes, and the training ends without it.
"""

import argparse
import functools
import json
import multiprocessing
import os
import time

import torch
from torch.utils.data import DataLoader

import preemptd
from preemptd.integrations.torch import shield_worker

STUCK_AT = 40
LAST_BATCHES = 20


class Numbers:
    def __init__(self, *, stuck: bool) -> None:
        self._stuck = stuck

    def __len__(self) -> int:
        return 1_000_000

    def __getitem__(self, number: int) -> float:
        if self._stuck and number >= STUCK_AT:
            time.sleep(1000)
        return number / len(self)


def own_init(scale: float, worker_id: int) -> None:
    """What a user has already, with the shield in it."""
    shield_worker(worker_id)
    torch.manual_seed(int(scale * worker_id))


def say(**words: object) -> None:
    os.write(1, json.dumps({"pid": os.getpid(), **words}).encode() + b"\n")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("method")
    parser.add_argument("--bare", action="store_true")
    parser.add_argument("--stuck", action="store_true")
    parser.add_argument("--steps", type=int, default=100_000)
    options = parser.parse_args()
    preemptd.should_preempt()
    init = None if options.bare else functools.partial(own_init, 2.0)
    data = Numbers(stuck=options.stuck)
    loader = DataLoader(data, 4, num_workers=2, multiprocessing_context=options.method, worker_init_fn=init)
    last = options.steps
    for step, _ in enumerate(loader):
        if step == 3:
            say(ready=[process.pid for process in multiprocessing.active_children()])
        if step >= last:
            break
        if preemptd.should_preempt():
            last = min(last, step + LAST_BATCHES)
        time.sleep(0.005)
    say(saved=step)


if __name__ == "__main__":
    main()
