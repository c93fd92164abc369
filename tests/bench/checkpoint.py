"""A checkpoint by Checkpointer beside torch.save: `python -m tests.bench.checkpoint`, or a part of `make bench`."""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tests.bench.page import put
from tests.bench.wrappers import ROOT, environment, percentile
from tests.conftest import LAB

MARK = "checkpoint"
PYTHON = LAB / "torch" / "bin" / "python"

# argv: directory, MiB, rounds. One way after the other in each round, so that a busy moment hits all of them.
SAVES = """
import json, os, sys, time, torch
from preemptd.integrations.checkpoint import Checkpointer
torch.set_num_threads(1)
directory, size, rounds = sys.argv[1], float(sys.argv[2]), int(sys.argv[3])
layers = max(1, round(size / 12))
width = int((size * 2**20 / 12 / layers) ** 0.5)  # 4 bytes a weight, and 8 that AdamW keeps of it
model = torch.nn.Sequential(*(torch.nn.Linear(width, width) for _ in range(layers)))
optimizer = torch.optim.AdamW(model.parameters())
model(torch.ones(1, width)).sum().backward()
optimizer.step()
checkpointer = Checkpointer(directory, model=model, optimizer=optimizer)
path = directory + "/plain.pt"
def states():
    return {"model": model.state_dict(), "optimizer": optimizer.state_dict()}
def plain():
    torch.save(states(), path)
def synced():
    with open(path, "wb") as file:
        torch.save(states(), file)
        file.flush()
        os.fsync(file.fileno())
def ours():
    checkpointer.save(1)
def load_plain():
    read = torch.load(path, weights_only=True, map_location="cpu")
    model.load_state_dict(read["model"])
    optimizer.load_state_dict(read["optimizer"])
ways = {"plain": plain, "synced": synced, "ours": ours, "load plain": load_plain, "load ours": checkpointer.load_latest}
times = {name: [] for name in ways}
for turn in range(rounds + 2):
    for name, act in ways.items():
        began = time.perf_counter()
        act()
        if turn > 1:
            times[name].append((time.perf_counter() - began) * 1000)
print(json.dumps(times))
"""


def is_possible() -> bool:
    return PYTHON.exists()


def figures(scratch: Path, *, quick: bool) -> str:
    where = f"{time.strftime('%Y-%m-%d')}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f} at the start."
    sizes = (0.1, 12) if quick else (0.1, 12, 240)
    rows = [row for size in sizes for row in rows_of(scratch / "checkpoints" / str(size), size, 3 if quick else 15)]
    head = ["| MiB | way | ms p50 | p90 | p50 : that of torch.save |", "|---|---|---|---|---|"]
    return "\n".join([where, "", *head, *rows])


def rows_of(directory: Path, size: float, rounds: int) -> list[str]:
    directory.mkdir(parents=True)
    command = [str(PYTHON), "-c", SAVES, str(directory), str(size), str(rounds)]
    env = environment({"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)})
    done = subprocess.run(command, env=env, check=True, capture_output=True, text=True)
    times: dict[str, list[float]] = json.loads(done.stdout)
    names = {
        "torch.save": ("plain", "plain"),
        "torch.save and fsync": ("synced", "plain"),
        "Checkpointer.save": ("ours", "plain"),
        "torch.load": ("load plain", "load plain"),
        "Checkpointer.load_latest": ("load ours", "load plain"),
    }
    rows = []
    for name, (way, base) in names.items():
        p50, p90 = percentile(times[way], 0.5), percentile(times[way], 0.9)
        rows.append(f"| {size:g} | {name} | {p50:.1f} | {p90:.1f} | {p50 / percentile(times[base], 0.5):.2f} |")
        print(rows[-1], file=sys.stderr)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--write", action="store_true", help="put the figures into docs/benchmarks.md")
    parser.add_argument("--quick", action="store_true", help="few rounds: shows that it works")
    wishes = parser.parse_args()
    if not is_possible():
        sys.exit("this needs torch: run tests/lab/install.sh as root (make lab)")
    with tempfile.TemporaryDirectory(prefix="preemptd-bench-") as scratch:
        text = figures(Path(scratch), quick=wishes.quick)
    print(text)
    if wishes.write:
        put(MARK, text)


if __name__ == "__main__":
    main()
