"""How long things take: start, forwarded signals, notices."""

import os
import random
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from tests.bench.wrappers import Wrapper, environment, percentile
from tests.metadata_server import FaultyEc2, FaultyGce
from tests.waiting import wait_until

# Says when each SIGHUP or SIGUSR1 came, on CLOCK_MONOTONIC, which all processes share.
HEARS = """
import os, signal, sys, time
if len(sys.argv) > 1:
    import wandb
    wandb.init(project="bench", mode="offline", dir=sys.argv[1])
def heard(signum, frame):
    os.write(1, b"%d\\n" % time.monotonic_ns())
signal.signal(signal.SIGHUP, heard)
signal.signal(signal.SIGUSR1, heard)
os.write(1, b"ready\\n")
while True:
    signal.pause()
"""


def start_ms(wrapper: Wrapper, rounds: int) -> list[float]:
    """Measure from our fork to the command's first act, which is to say what time it is."""
    times = []
    for _ in range(rounds):
        began = time.time()
        command = [*wrapper.prefix, "bash", "-c", "echo $EPOCHREALTIME"]
        run = subprocess.run(command, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, check=True)
        times.append((float(run.stdout) - began) * 1000)
    return times


@contextmanager
def running(
    prefix: Sequence[str], *, env: Mapping[str, str] | None = None, wandb: str = ""
) -> Iterator[subprocess.Popen[bytes]]:
    """Run the program that hears signals behind *prefix*, until the end of the block."""
    command = [*prefix, sys.executable, "-c", HEARS, *([wandb] if wandb else [])]
    with subprocess.Popen(
        command, env=environment(env), stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, stdin=subprocess.DEVNULL
    ) as process:
        try:
            assert process.stdout
            while process.stdout.readline() != b"ready\n":
                assert process.poll() is None, f"{command} ended"
            yield process
        finally:
            process.send_signal(signal.SIGKILL if not prefix else signal.SIGTERM)


def heard(process: subprocess.Popen[bytes]) -> float:
    """Return the monotonic time in seconds at which the program heard the next signal."""
    assert process.stdout
    return int(process.stdout.readline()) / 1e9


def forward_us(wrapper: Wrapper, rounds: int) -> list[float]:
    """Measure from kill(wrapper, SIGHUP) to the command's handler."""
    times = []
    with running(wrapper.prefix) as process:
        for _ in range(rounds):
            time.sleep(random.uniform(0.002, 0.006))
            sent = time.monotonic()
            process.send_signal(signal.SIGHUP)
            times.append((heard(process) - sent) * 1e6)
    return times


def gce_ms(preemptd: Path, rounds: int, wandb: str = "") -> list[float]:
    """Measure from the flip of `preempted` at the server to the trainer's handler."""
    with FaultyGce() as server:
        env = {"GCE_METADATA_HOST": server.url.removeprefix("http://"), "NO_GCE_CHECK": "false"}

        def listens() -> bool:
            time.sleep(0.6)  # a hang that ends sooner looks like a server that cannot wait, and is answered by a pause
            return server.waiting >= 2

        return _notices_ms(preemptd, server, rounds, env, listens, wandb)


def ec2_ms(preemptd: Path, rounds: int) -> list[float]:
    """Measure the same for EC2's spot/instance-action, at the default interval of a second and at random phase."""
    with FaultyEc2() as server:
        env = {"AWS_EC2_METADATA_SERVICE_ENDPOINT": server.url, "AWS_EC2_METADATA_DISABLED": "false"}

        def listens() -> bool:
            time.sleep(random.uniform(0.0, 1.0))
            return len(server.asked) > 3

        return _notices_ms(preemptd, server, rounds, env, listens, "")


def _notices_ms(
    preemptd: Path,
    server: FaultyEc2 | FaultyGce,
    rounds: int,
    env: Mapping[str, str],
    listens: Callable[[], bool],
    wandb: str,
) -> list[float]:
    times = []
    journal = f"/tmp/preemptd-bench-{os.getpid()}.journal"
    prefix = [str(preemptd), "watch", "--journal", journal, "--"]
    with running(prefix, env=env, wandb=wandb) as process:
        time.sleep(6.0 if wandb else 1.0)  # the picture of the job is kept warm by a look every five seconds
        for number in range(rounds):
            wait_until(listens)
            flipped = time.monotonic()
            server.announcement.announce()
            times.append((heard(process) - flipped) * 1000)
            server.announcement.revoke()
            wait_until(lambda number=number: Path(journal).read_text().count('"revoked"') > number)  # type: ignore[misc]  # mypy cannot infer a lambda's default
    os.unlink(journal)
    return times


def summary(values: Sequence[float]) -> dict[str, float]:
    return {
        "p50": percentile(values, 0.5),
        "p99": percentile(values, 0.99),
        "mean": statistics.fmean(values),
        "max": max(values),
    }
