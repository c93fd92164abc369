"""Saves checkpoints and is stopped at each call that changes the disk; prints a JSON line for each.

argv: a directory, and kill, torn or the name of an errno.
"""

import json
import os
import sys
from functools import partial

from preemptd.integrations.durable_files import fault_of, opened, write
from preemptd.integrations.generations import Generations
from preemptd.integrations.manifest import CheckpointError, Manifest
from tests.standins.dying import survives

FILES = ("shared.pt", "rank-0.pt")


def save(generations: Generations, step: int) -> None:
    number, path = generations.claim()
    try:
        content = f"step {step}".encode() * 1000
        files = {name: write(f"{path}/{name}", lambda file: file.write(content)) for name in FILES}
        manifest = Manifest("run", number, 1, step, 1, 0.1, {"step": step}, files)
        generations.commit(manifest)
    except OSError:
        generations.abandon(number)
        raise
    generations.prune(2, manifest)


def latest(generations: Generations) -> int:
    for path, manifest in generations.latest_first():
        for name, expected in manifest.files.items():
            with opened(f"{path}/{name}") as file:
                assert not fault_of(file, expected), "what has a manifest is whole, whenever it was killed"
                assert file.read() == f"step {manifest.step}".encode() * 1000
        return manifest.step
    raise CheckpointError("none")


def main() -> None:
    directory, how = sys.argv[1:]
    generations = Generations(directory, "run")
    step = 0
    for _ in range(3):
        step += 1
        save(generations, step)
    number, became = 0, ""
    while became != "unharmed":
        number += 1
        step += 1
        became = survives(number, how, partial(save, generations, step), OSError)
        found = latest(generations)
        save(generations, step + 1)  # what is left of the torn one is in nobody's way
        print(json.dumps({"call": number, "became": became, "step": step, "found": found}))
        step += 1
        assert latest(generations) == step
    save(generations, step + 1)
    print(
        json.dumps({"left": [len(os.listdir(f"{generations.path}/{name}")) for name in os.listdir(generations.path)]})
    )


main()
