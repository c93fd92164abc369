"""What is left of the promise when things fail: the metadata's network, and a daemon that has run for weeks.

`python -m tests.bench.faults`, or a part of `make bench` as root.
"""

import argparse
import os
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path

from tests.bench.page import put
from tests.footprint import Course, course
from tests.lab.test_faults_network import FAULTS, Scene, await_state, heard_after
from tests.waiting import wait_until

MARK = "faults"


def is_possible() -> bool:
    return os.geteuid() == 0 and os.path.exists("/dev/net/tun")


def figures(scratch: Path, *, quick: bool) -> str:
    where = f"{time.strftime('%Y-%m-%d')}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f} at the start."
    polls, registrations = (2000, 200) if quick else (10_000, 1_000)
    (scratch / "footprint").mkdir()
    took = course(scratch / "footprint", polls, registrations)
    return "\n".join(
        [
            where,
            "",
            *footprint_table(took, polls, registrations),
            "",
            *network_table(scratch, 1 if quick else 3),
        ]
    )


def footprint_table(took: Course, polls: int, registrations: int) -> list[str]:
    first, last, fifth = took.first, took.last, polls / 5
    early = (took.early.processor - first.processor) / fifth * 1000
    late = (last.processor - took.late.processor) / fifth * 1000
    return [
        f"| {polls:,} looks at EC2 and {registrations:,} registrations | at the beginning | at the end |",
        "|---|---|---|",
        f"| RSS, MiB | {first.rss / 2**20:.2f} | {last.rss / 2**20:.2f} |",
        f"| file descriptors | {first.descriptors} | {last.descriptors} |",
        f"| threads | {first.threads} | {last.threads} |",
        f"| processor, ms a look | {early:.2f} | {late:.2f} |",
    ]


def network_table(scratch: Path, rounds: int) -> list[str]:
    rows = ["| between the machine and its metadata | notice heard after its end, s p50 | max |", "|---|---|---|"]
    for number, name in enumerate(FAULTS):
        times = sorted(recovery(scratch / f"{number}-{turn}", name) for turn in range(rounds))
        rows.append(f"| {name} ({FAULTS[name][0]}) | {times[len(times) // 2]:.1f} | {times[-1]:.1f} |")
        print(rows[-1], file=sys.stderr)
    return rows


def recovery(directory: Path, name: str) -> float:
    """Measure from the end of the fault to a notice that was raised in it."""
    directory.mkdir()
    cloud, fault = FAULTS[name]
    with ExitStack() as stack:
        here = Scene(cloud, directory, stack)
        watch = here.watch()
        await_state(watch, "watching")
        wait_until(here.listens)
        back = fault(here)
        await_state(watch, "outage")
        here.server.announcement.announce()
        until = time.monotonic() + 8.0
        wait_until(lambda: time.monotonic() > until)
        back()
        return heard_after(watch, time.monotonic())


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--write", action="store_true", help="put the figures into docs/benchmarks.md")
    parser.add_argument("--quick", action="store_true", help="few rounds: shows that it works")
    wishes = parser.parse_args()
    if not is_possible():
        sys.exit("this needs root and /dev/net/tun")
    with tempfile.TemporaryDirectory(prefix="preemptd-bench-") as scratch:
        text = figures(Path(scratch), quick=wishes.quick)
    print(text)
    if wishes.write:
        put(MARK, text)


if __name__ == "__main__":
    main()
