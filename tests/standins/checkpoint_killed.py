"""Saves by Checkpointer, is killed at each call that changes the disk, or at random moments; prints JSON lines.

argv: a directory, how many random kills, and their seed. torch is imported once: what is killed is forked.
"""

import json
import os
import random
import select
import signal
import sys
import time
from functools import partial

import torch

from preemptd.integrations.checkpoint import Checkpointer, CheckpointError
from tests.standins.dying import survives


def save(directory: str, step: int, size: int = 10) -> None:
    checkpointer_of(directory, torch.full((size,), float(step))).save(step, {"step": step})


def checkpointer_of(directory: str, weight: torch.Tensor) -> Checkpointer:
    model = torch.nn.Module()
    model.weight = torch.nn.Parameter(weight)
    optimizer = torch.optim.SGD(model.parameters(), lr=float(weight.flatten()[0]), momentum=0.9)
    checkpointer = Checkpointer(directory, run_id="run", model=model, optimizer=optimizer)
    checkpointer.model = model  # type: ignore[attr-defined]  # for the look at what was loaded
    return checkpointer


def loaded(directory: str, size: int = 10) -> int:
    """Return the step of the latest checkpoint; 0: there is none."""
    checkpointer = checkpointer_of(directory, torch.zeros(size) + 0.5)
    restored = checkpointer.load_latest()
    if restored is None:
        return 0
    weight = checkpointer.model.weight  # type: ignore[attr-defined]
    assert bool((weight == restored.step).all()), "all of it is of one save"
    assert restored.metadata == {"step": restored.step}
    return restored.step


def at_each_call(directory: str) -> None:
    step, number, became = 0, 0, ""
    while became != "unharmed":
        number, step = number + 1, step + 1
        became = survives(number, "kill", partial(save, directory, step), CheckpointError)
        print(json.dumps({"at": "call", "became": became, "before": step - 1, "found": loaded(directory)}))
        save(directory, step)


def at_random(directory: str, rounds: int, seed: int) -> None:
    rng, size, step = random.Random(seed), 2**19, 0
    for _ in range(rounds):
        reading, writing = os.pipe()
        child = os.fork()
        if child == 0:
            signal.alarm(60)
            while True:
                step += 1
                save(directory, step, size)
                os.write(writing, b".")
        os.close(writing)
        os.read(reading, 1)  # it has saved once, so the moments spread over whole saves
        time.sleep(rng.uniform(0.0, 0.08))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        while select.select([reading], [], [], 0)[0] and os.read(reading, 1):
            step += 1
        os.close(reading)
        before, step = step + 1, loaded(directory, size)
        print(json.dumps({"at": "random", "became": "killed", "before": before, "found": step}))


def main() -> None:
    torch.set_num_threads(1)
    directory, rounds, seed = sys.argv[1:]
    at_each_call(f"{directory}/calls")
    at_random(f"{directory}/random", int(rounds), int(seed))


main()
