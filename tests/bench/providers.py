"""What watching costs while nothing happens, by provider: `python -m tests.bench.providers`, or a part of `make bench`.

One `preemptd watch` a provider, one with all of them and one with none that looks at anything, side by side.
"""

import argparse
import os
import re
import subprocess
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil

from tests.bench.page import put
from tests.bench.wrappers import environment, plain_venv
from tests.everywhere import PROVIDERS, SERVERS, Everywhere
from tests.waiting import wait_until
from tests.watching import read_lines

MARK = "providers"
NONE, ALL = "none that looks at anything", "all of them together"
MEASURED: Mapping[str, tuple[str, ...]] = {
    NONE: ("sigterm",),
    **{f"`{name}`": (name,) for name in PROVIDERS if name != "sigterm"},
    ALL: PROVIDERS,
}
PREFIXES = re.compile("^(/latest(/meta-data)?|/computeMetadata/v1|/metadata)?/")
SETTLED = 6.0
"""Seconds after the first answers in which modules are imported, and caches filled, for the last time."""


@dataclass(frozen=True)
class Cost:
    processor: float
    """Percent of a core, with that of the commands that it has started."""
    rss: float
    """MiB."""
    uss: float


class Idle:
    """One watch under which nothing happens."""

    def __init__(self, preemptd: Sequence[str], directory: Path, names: tuple[str, ...], stack: ExitStack) -> None:
        directory.mkdir()
        self.names = names
        self.here = stack.enter_context(Everywhere(directory))
        self.journal = directory / "journal"
        options = [*self.here.options(*names), "--journal", str(self.journal)]
        command = [*preemptd, "watch", *options, "--", "sleep", "600"]
        watch = subprocess.Popen(command, env=environment(self.here.env), stderr=subprocess.DEVNULL, cwd=directory)
        self._process = psutil.Process(watch.pid)
        stack.callback(self._end, watch)
        self._used = 0.0
        self._asked: Mapping[str, int] = {}

    def watches(self) -> bool:
        lines = [line for line in read_lines(self.journal) if line["event"] == "provider"]
        return {line["provider"] for line in lines if line["state"] == "watching"} >= set(self.names)

    def begin(self) -> None:
        self._asked = {name: len(server.asked) for name, server in self.here.servers.items()}
        self._used = self._seconds()

    def cost(self, seconds: float) -> Cost:
        used = self._seconds() - self._used
        memory = self._process.memory_full_info()
        return Cost(100 * used / seconds, memory.rss / 2**20, memory.uss / 2**20)

    def requests(self) -> Counter[tuple[str, str]]:
        """Count the requests since `begin` by provider and what was asked for."""
        return Counter(
            (name, f"{request.method} {PREFIXES.sub('', request.path)}".removeprefix("GET "))
            for name, server in self.here.servers.items()
            for request in server.asked[self._asked[name] :]
        )

    def _end(self, watch: subprocess.Popen[bytes]) -> None:
        for child in self._process.children(recursive=True):
            child.kill()
        watch.wait(30)

    def _seconds(self) -> float:
        """Seconds of the processor so far, in nanoseconds' steps: those of psutil are ten milliseconds long."""
        children = self._process.cpu_times()
        return time.clock_gettime(~self._process.pid << 3 | 2) + children.children_user + children.children_system


def figures(preemptd: Path, scratch: Path, *, quick: bool) -> str:
    where = f"{time.strftime('%Y-%m-%d')}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f} at the start."
    seconds = 5.0 if quick else 60.0
    with idle(preemptd, scratch) as watches:
        for watch in watches.values():
            watch.begin()
        began = time.monotonic()
        time.sleep(seconds)
        took = time.monotonic() - began
        costs = {name: watch.cost(took) for name, watch in watches.items()}
        requests = watches[ALL].requests()
    rows = [f"| {name} | {c.processor:.2f} | {c.rss:.1f} / {c.uss:.1f} |" for name, c in costs.items()]
    table = ["| watch with | processor, % of a core | RSS / USS, MiB |", "|---|---|---|", *rows]
    return "\n".join([where, "", *table, "", *request_table(requests, took)])


@contextmanager
def idle(preemptd: Path, scratch: Path) -> Iterator[Mapping[str, Idle]]:
    """Start them, and wait until each has had an answer from everything and rests."""
    with ExitStack() as stack:
        directories = (scratch / str(number) for number in range(len(MEASURED)))
        measured = zip(MEASURED.items(), directories, strict=True)
        watches = {name: Idle((str(preemptd),), directory, names, stack) for (name, names), directory in measured}
        for name, watch in watches.items():
            wait_until(watch.watches, 60, f"{name} watches", pause=0.1)
        time.sleep(SETTLED)
        yield watches


def request_table(requests: Counter[tuple[str, str]], seconds: float) -> list[str]:
    rows = []
    for name in SERVERS:
        asked = {what: number for (of, what), number in requests.items() if of == name}
        parts = (f"`{what}` {60 * number / seconds:.0f}" for what, number in sorted(asked.items(), key=lambda a: -a[1]))
        rows.append(f"| `{name}` | {60 * sum(asked.values()) / seconds:.0f} | {', '.join(parts)} |")
    rows.append(f"| all | {60 * requests.total() / seconds:.0f} | |")
    return ["| source | requests a minute | of which |", "|---|---|---|", *rows]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--write", action="store_true", help="put the figures into docs/benchmarks.md")
    parser.add_argument("--quick", action="store_true", help="a few seconds: shows that it works")
    wishes = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="preemptd-bench-") as scratch:
        text = figures(plain_venv(Path(scratch) / "venv"), Path(scratch), quick=wishes.quick)
    print(text)
    if wishes.write:
        put(MARK, text)


if __name__ == "__main__":
    main()
