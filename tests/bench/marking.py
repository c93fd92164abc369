"""How long it takes until W&B's server has the mark: preemptd's two ways, and a mark at the next step."""

import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path

from preemptd.events import LinkJoined
from tests.bench.wrappers import ROOT, environment
from tests.lab.wandb_backend import WandbBackend
from tests.linking import notice, serving
from tests.metadata_server import FaultyGce
from tests.waiting import wait_until

BURST = 30_000
BURST_STEP = 0.1
SLEEP = 15.0
"""Seconds that wandb_preempt sleeps between finishing the run and leaving."""

# argv: seconds a step, who marks. A line on standard input asks for a burst of log() calls, and is answered after it.
TRAINS = f"""
import os, select, signal, sys, time
import wandb
seconds, who = float(sys.argv[1]), sys.argv[2]
told = []
signal.signal(signal.SIGUSR1, lambda *_: told.append(True))
if who == "inside":
    import preemptd
    preemptd.should_preempt()
run = wandb.init()
run.log({{"loss": 1.0}})
os.write(1, b"ready\\n")
while True:
    if select.select([0], [], [], 0)[0]:
        if not os.read(0, 10):
            break
        for step in range({BURST}):
            run.log({{"loss": 0.5}})
        os.write(1, b"burst\\n")
    end = time.monotonic() + seconds
    while (left := end - time.monotonic()) > 0:  # a step: a signal does not shorten it
        time.sleep(left)
    run.log({{"loss": 0.5}})
    if told and who == "step":
        wandb.mark_preempting()
    told.clear()
if who == "step":  # as wandb_preempt leaves
    wandb.finish(exit_code=1)
    time.sleep({SLEEP})
else:
    run.finish(exit_code=75)
"""

Announce = Callable[[], None]
Measured = tuple[list[float], float]
"""Milliseconds from each notice to the arrival of its mark; seconds that the script takes to leave after the last."""


class Bench:
    """A script that trains, and the arrival of its marks."""

    def __init__(self, backend: WandbBackend, process: subprocess.Popen[bytes]) -> None:
        self._backend = backend
        self._process = process
        self._marks = 0

    def line(self, expected: bytes) -> None:
        assert self._process.stdout
        while (line := self._process.stdout.readline()) != expected:
            assert line, "it ended"

    def burst(self) -> None:
        assert self._process.stdin
        self._process.stdin.write(b"\n")
        self._process.stdin.flush()
        self.line(b"burst\n")

    def signal(self) -> None:
        self._process.send_signal(signal.SIGUSR1)

    def arrival(self) -> float:
        """Return the monotonic time at which the server had the next mark."""
        wait_until(lambda: len(self._marks_there()) > self._marks, 120)
        self._marks += 1
        return self._marks_there()[self._marks - 1]

    def leave(self) -> float:
        """Let the script end as it ends; return the seconds that it takes."""
        began = time.monotonic()
        assert self._process.stdin
        self._process.stdin.close()
        self._process.wait(120)
        return time.monotonic() - began

    def _marks_there(self) -> Sequence[float]:
        (run_id,) = self._backend.runs()
        return self._backend.preempting(run_id)


@contextmanager
def training(prefix: Sequence[str], step: float, who: str, directory: Path, env: Mapping[str, str]) -> Iterator[Bench]:
    command = [*prefix, sys.executable, "-c", TRAINS, str(step), who]
    with ExitStack() as stack:
        backend = stack.enter_context(WandbBackend())
        process = stack.enter_context(
            subprocess.Popen(
                command,
                env=environment({**backend.env(), "PYTHONPATH": str(ROOT), **env}),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                cwd=directory,
            )
        )
        stack.callback(process.kill)
        bench = Bench(backend, process)
        bench.line(b"ready\n")
        yield bench


def marked_ms(
    bench: Bench, announce: Announce, ready: Announce, step: float, rounds: int, *, burst: bool
) -> list[float]:
    """Measure from the notice to the mark's arrival, at a random phase of a step or right behind a burst."""
    times = []
    for _ in range(rounds):
        ready()
        if burst:
            bench.burst()
        else:
            time.sleep(random.uniform(0.0, step))
        began = time.monotonic()
        announce()
        times.append((bench.arrival() - began) * 1000)
    return times


def watched(preemptd: Path, directory: Path, step: float, rounds: int, *, burst: bool) -> Measured:
    """Measure `preemptd watch` on GCE, from the flip at the metadata server."""
    journal = directory / f"marking-{step}-{burst}.journal"
    with FaultyGce() as server:
        env = {"GCE_METADATA_HOST": server.url.removeprefix("http://"), "NO_GCE_CHECK": "false"}
        prefix = [str(preemptd), "watch", "--journal", str(journal), "--"]
        announced = 0

        def ready() -> None:
            if announced:
                server.announcement.revoke()
                wait_until(lambda: journal.read_text().count('"revoked"') >= announced)
            time.sleep(0.6)  # as in speed.py
            wait_until(lambda: server.waiting >= 2)

        def announce() -> None:
            nonlocal announced
            announced += 1
            server.announcement.announce()

        with training(prefix, step, "watch", directory, env) as bench:
            time.sleep(6.0)  # one look of the idle daemon
            times = marked_ms(bench, announce, ready, step, rounds, burst=burst)
            return times, bench.leave()


def inside(_preemptd: Path, directory: Path, step: float, rounds: int, *, burst: bool) -> Measured:
    """Measure the client alone, from the message on the link: one process a round, for it marks a run once."""
    times, leaving = [], 0.0
    for _ in range(rounds):
        with (
            serving() as (server, events),
            training((), step, "inside", directory, {"PREEMPTD_LINK": server.path}) as bench,
        ):
            events.wait_for(LinkJoined)
            message = {**notice(), "wandb": {"code": 75}}
            times += marked_ms(bench, partial(server.announce, message), _nothing, step, 1, burst=burst)
            leaving = bench.leave()
    return times, leaving


def at_the_next_step(_preemptd: Path, directory: Path, step: float, rounds: int, *, burst: bool) -> Measured:
    """Measure what wandb_preempt does, from the signal itself; without the checkpoint that it writes first."""
    with training((), step, "step", directory, {}) as bench:
        times = marked_ms(bench, bench.signal, _nothing, step, rounds, burst=burst)
        return times, bench.leave()


def _nothing() -> None:
    """Nothing has to be ready."""
