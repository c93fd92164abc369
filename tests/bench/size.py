"""How much it takes: memory, processor, and a large tree of processes."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil

from tests.bench.wrappers import ROOT, environment
from tests.metadata_server import FaultyEc2
from tests.waiting import wait_until

# 50 ranks that catch SIGUSR1, and 950 processes that do not: DataLoader workers and the like.
TREE = """
import subprocess, sys
rank = "import signal, time; signal.signal(signal.SIGUSR1, lambda *a: None); print('up', flush=True); time.sleep(600)"
ranks = [subprocess.Popen([sys.executable, "-S", "-c", rank], stdout=subprocess.PIPE) for _ in range(50)]
for process in ranks:
    process.stdout.readline()
others = [subprocess.Popen(["sleep", "600"]) for _ in range(950)]
print("ready", flush=True)
try:
    ranks[0].wait()
finally:
    for process in ranks + others:
        process.kill()
"""

POLLS = """
import os, sys
from preemptd.provider import Surroundings
from preemptd.registry import build, choose, installed, load, read_machine
environ = dict(os.environ)
choice = choose(load(installed(), ("ec2",)), ("ec2",), read_machine(environ))
watch, *_ = build(choice.chosen, {}, Surroundings(environ)).providers[0].watches()
def rss():
    return int(next(line for line in open("/proc/self/status") if line.startswith("VmRSS")).split()[1])
for _ in range(500):
    watch.observe()
before = rss()
for _ in range(int(sys.argv[1])):
    watch.observe()
print(rss() - before)
"""


def _ec2(server: FaultyEc2) -> dict[str, str]:
    return environment({"AWS_EC2_METADATA_SERVICE_ENDPOINT": server.url, "AWS_EC2_METADATA_DISABLED": "false"})


def idle(preemptd: Path, seconds: float) -> dict[str, float]:
    """Measure RSS and USS in MiB, and the processor in percent of a core, while nothing happens on EC2."""
    with FaultyEc2() as server:
        command = [str(preemptd), "watch", "--", "sleep", "600"]
        with subprocess.Popen(command, env=_ec2(server), stderr=subprocess.DEVNULL) as process:
            watch = psutil.Process(process.pid)
            wait_until(lambda: len(server.asked) > 5)
            before = watch.cpu_times()
            time.sleep(seconds)
            after, memory = watch.cpu_times(), watch.memory_full_info()
            process.send_signal(signal.SIGTERM)
    used = after.user + after.system - before.user - before.system
    return {"rss": memory.rss / 2**20, "uss": memory.uss / 2**20, "cpu": 100 * used / seconds}


def growth_kib(python: Path, polls: int) -> int:
    """Measure by how much RSS grows, in KiB, over *polls* looks at EC2's metadata."""
    with FaultyEc2() as server:
        run = subprocess.run(
            [str(python), "-c", POLLS, str(polls)], env=_ec2(server), stdout=subprocess.PIPE, check=True, timeout=600
        )
    return int(run.stdout)


def tree_ms(preemptd: Path, directory: Path) -> dict[str, float]:
    """Measure from the notice to the first and the last of 50 tellings in a tree of 1,000 processes."""
    journal = directory / "tree.journal"
    with FaultyEc2() as server:
        command = [str(preemptd), "watch", "--journal", str(journal), "--", sys.executable, "-c", TREE]
        with subprocess.Popen(
            command, env=_ec2(server), stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, cwd=ROOT
        ) as process:
            assert process.stdout
            assert process.stdout.readline() == b"ready\n"
            time.sleep(6.0)  # one look of the idle daemon, as in real life
            server.announcement.announce()
            wait_until(lambda: journal.read_text().count('"told"') >= 50, 60)
            process.send_signal(signal.SIGTERM)
            process.send_signal(signal.SIGTERM)
            process.terminate()
            lines = [json.loads(line) for line in journal.read_text().splitlines()]
            _end(process)
    told = [float(line["ms"]) for line in lines if line["event"] == "told"]
    return {"first": min(told), "last": max(told), "told": len(told)}


def _end(process: subprocess.Popen[bytes]) -> None:
    for child in psutil.Process(process.pid).children(recursive=True):
        child.kill()
    process.wait(60)
