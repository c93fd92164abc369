"""What a training step pays for it that all ranks stop at the same one.

`python -m tests.bench.agreement`, or a part of `make bench` where the lab has torch.
"""

import argparse
import json
import os
import subprocess
import sys
import time

from tests.bench.page import put
from tests.bench.wrappers import ROOT, environment, percentile
from tests.conftest import LAB

MARK = "agreement"
PYTHON = LAB / "torch" / "bin" / "python"
COST = ROOT / "tests" / "standins" / "agreement_cost.py"


def is_possible() -> bool:
    return PYTHON.exists()


def figures(*, quick: bool) -> str:
    where = f"{time.strftime('%Y-%m-%d')}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f} at the start."
    rows = [row for ranks in (2, 8) for row in rows_of(ranks, 3 if quick else 30)]
    head = ["| ranks | each step asks by | µs a step p50 | p99 | p50 : agree()'s |", "|---|---|---|---|---|"]
    return "\n".join([where, "", *head, *rows])


def rows_of(ranks: int, rounds: int) -> list[str]:
    env = environment({"OMP_NUM_THREADS": "1"})
    command = [str(PYTHON), str(COST), str(ranks), str(rounds)]
    took = json.loads(subprocess.run(command, env=env, stdout=subprocess.PIPE, text=True, check=True).stdout)
    base = percentile(took["agree()"], 0.5)
    rows = []
    for name, times in took.items():
        p50, p99 = percentile(times, 0.5), percentile(times, 0.99)
        rows.append(f"| {ranks} | {name} | {p50:,.2f} | {p99:,.2f} | {p50 / base:,.0f} |")
        print(rows[-1], file=sys.stderr)
    return rows


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--write", action="store_true", help="put the figures into docs/benchmarks.md")
    parser.add_argument("--quick", action="store_true", help="few rounds: shows that it works, not how fast")
    wishes = parser.parse_args()
    text = figures(quick=wishes.quick)
    print(text)
    if wishes.write:
        put(MARK, text)
