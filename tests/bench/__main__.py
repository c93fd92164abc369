"""`make bench`: every figure in one run on one machine, as ratios; `--write` puts them into docs/benchmarks.md."""

import argparse
import os
import platform
import sys
import tempfile
import time
from pathlib import Path

from tests.bench import agreement, checkpoint, client, faults, marking, providers, size, slurm, speed, targets
from tests.bench.page import put
from tests.bench.wrappers import percentile, plain_venv, wrappers


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--write", action="store_true", help="put the figures into docs/benchmarks.md")
    parser.add_argument("--quick", action="store_true", help="few rounds: shows that it works, not how fast")
    wishes = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="preemptd-bench-") as scratch:
        parts = {"figures": figures(Path(scratch), quick=wishes.quick)}
        many = Path(scratch) / "targets"
        many.mkdir()
        parts[targets.MARK] = targets.figures(plain_venv(Path(scratch) / "venv"), many, quick=wishes.quick)
        alone = Path(scratch) / "providers"
        alone.mkdir()
        parts[providers.MARK] = providers.figures(plain_venv(Path(scratch) / "venv"), alone, quick=wishes.quick)
        parts[client.MARK] = client.figures(plain_venv(Path(scratch) / "venv"), quick=wishes.quick)
        if faults.is_possible():
            parts[faults.MARK] = faults.figures(Path(scratch), quick=wishes.quick)
        if slurm.is_possible():
            parts[slurm.MARK] = slurm.figures(Path(scratch), quick=wishes.quick)
        if agreement.is_possible():
            parts[agreement.MARK] = agreement.figures(quick=wishes.quick)
        if checkpoint.is_possible():
            parts[checkpoint.MARK] = checkpoint.figures(Path(scratch), quick=wishes.quick)
    for name, text in parts.items():
        print(text)
        if wishes.write:
            put(name, text)


def figures(scratch: Path, *, quick: bool) -> str:
    preemptd = plain_venv(scratch / "venv")
    where = (
        f"{time.strftime('%Y-%m-%d')}, Linux {platform.release().split('-')[0]}, Python {platform.python_version()}, "
        f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f} at the start."
    )
    parts = [
        where,
        "",
        *wrapper_table(preemptd, 4 if quick else 25, 30 if quick else 400),
        "",
        *notice_table(preemptd, scratch, 3 if quick else 30),
        "",
        *marking_table(preemptd, scratch, 3 if quick else 20),
        "",
        *size_table(preemptd, scratch, quick=quick),
    ]
    return "\n".join(parts)


def wrapper_table(preemptd: Path, starts: int, signals: int) -> list[str]:
    rows = []
    for wrapper in wrappers(preemptd):
        start, forward = speed.start_ms(wrapper, starts), speed.forward_us(wrapper, signals)
        rows.append((wrapper.name, percentile(start, 0.5), percentile(forward, 0.5), percentile(forward, 0.99)))
        print(rows[-1], file=sys.stderr)
    base = next((row[2] for row in rows if row[0] == "dumb-init"), rows[0][2])
    return [
        "| wrapper | command runs after, ms p50 | SIGHUP to its handler, µs p50 | p99 | p50 : dumb-init's |",
        "|---|---|---|---|---|",
        *(f"| {name} | {start:.1f} | {p50:.0f} | {p99:.0f} | {p50 / base:.2f} |" for name, start, p50, p99 in rows),
    ]


def notice_table(preemptd: Path, scratch: Path, rounds: int) -> list[str]:
    measured = {
        "GCE flip to the trainer's handler": speed.gce_ms(preemptd, rounds),
        "the same with a W&B run to mark": speed.gce_ms(preemptd, rounds, wandb=str(scratch)),
        "EC2 flip to the trainer's handler, interval 1 s": speed.ec2_ms(preemptd, rounds),
    }
    rows = [
        f"| {name} | {s['p50']:.1f} | {s['mean']:.1f} | {s['p99']:.1f} |"
        for name, times in measured.items()
        if (s := speed.summary(times))
    ]
    return ["| notice | ms p50 | mean | p99 |", "|---|---|---|---|", *rows]


def marking_table(preemptd: Path, scratch: Path, rounds: int) -> list[str]:
    ways = {
        "preemptd watch": marking.watched,
        "import preemptd, alone": marking.inside,
        "at the next step": marking.at_the_next_step,
    }
    cases = {"steps of 0.1 s": (0.1, False), "steps of 1 s": (1.0, False), "behind 30,000 log() calls": (0.1, True)}
    rows = []
    for case, (step, burst) in cases.items():
        base = 0.0
        for way, measure in ways.items():
            times, leaving = measure(preemptd, scratch, step, rounds, burst=burst)
            p50, p99 = percentile(times, 0.5), percentile(times, 0.99)
            base = base or p50
            rows.append(f"| {case} | {way} | {p50:.0f} | {p99:.0f} | {p50 / base:.1f} | {leaving:.1f} |")
            print(rows[-1], file=sys.stderr)
    return [
        "| W&B's server has the mark | by | ms p50 | p99 | p50 : preemptd watch's | script gone after, s |",
        "|---|---|---|---|---|---|",
        *rows,
    ]


def size_table(preemptd: Path, scratch: Path, *, quick: bool) -> list[str]:
    idle = size.idle(preemptd, 5 if quick else 60)
    tree = size.tree_ms(preemptd, scratch)
    polls = 1000 if quick else 10000
    growth = size.growth_kib(preemptd.parent / "python", polls)
    return [
        "| size | figure |",
        "|---|---|",
        f"| RSS / USS while idle on EC2, MiB | {idle['rss']:.1f} / {idle['uss']:.1f} |",
        f"| processor while idle on EC2, % of a core | {idle['cpu']:.2f} |",
        f"| RSS growth over {polls:,} polls, KiB | {growth} |",
        f"| 1,000 processes: first / last of {tree['told']:.0f} told, ms | {tree['first']:.0f} / {tree['last']:.0f} |",
    ]


main()
