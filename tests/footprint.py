"""A whole `preemptd watch` that does weeks of its work in a minute, and what it takes at four moments of it."""

import sys
from dataclasses import dataclass
from pathlib import Path

import psutil

from tests.metadata_server import FaultyEc2
from tests.test_watch import on_ec2
from tests.waiting import wait_until
from tests.watching import Watch

WARM_UP = 0.1
"""The part of them before which nothing is compared: buffers and free lists grow to their size."""

WITHOUT_PAUSES = (
    "import sys; from preemptd import poller; poller.SHORTEST_PAUSE = poller.LONGEST_INTERVAL = 0.0005;"
    "from preemptd.cli.main import main; sys.argv = sys.argv[3:]; main()"
)
"""Starts preemptd in place of the command that follows, with watches that look again at once."""

# Lets so many processes register one after the other, each of which says something and leaves.
REGISTERS = """
import json, os, signal, socket, sys, time
told, watch = [], os.getppid()
signal.signal(signal.SIGUSR1, lambda *_: told.append(True))
def note(what, **more):
    with open(os.environ["LOG"], "a") as log:
        log.write(json.dumps({"what": what, "pid": os.getpid(), **more}) + "\\n")
def register():
    link = socket.socket(socket.AF_UNIX)
    link.connect(os.environ["PREEMPTD_LINK"])
    lines = link.makefile("rw")
    for said in ({"verb": "register", "pid": os.getpid()}, {"verb": "saved", "step": 7}):
        print(json.dumps({"v": 1, **said}), file=lines, flush=True)
    lines.readline()
note("ready")
for number in range(int(sys.argv[1])):
    if not (pid := os.fork()):
        register()
        os._exit(0)
    os.waitpid(pid, 0)
    if number % 10 == 9:
        note("registered", number=number + 1)
while not told and os.getppid() == watch:
    time.sleep(0.02)
note("told")
"""


@dataclass(frozen=True)
class Footprint:
    rss: int
    """Bytes."""
    descriptors: int
    threads: int
    processor: float
    """Seconds so far."""

    @classmethod
    def of(cls, watch: Watch) -> "Footprint":
        process = psutil.Process(watch.process.pid)
        with process.oneshot():
            times = process.cpu_times()
            return cls(process.memory_info().rss, process.num_fds(), process.num_threads(), times.user + times.system)


@dataclass(frozen=True)
class Course:
    """The first moment is when it has warmed up; the parts between it and *early*, *late* and *last* are as long."""

    first: Footprint
    early: Footprint
    late: Footprint
    last: Footprint
    watch: Watch
    status: int


def course(directory: Path, polls: int, registrations: int) -> Course:
    """Let it look so often at EC2's metadata, and so many processes come and go; then comes a notice."""
    processes = registrations + int(registrations * WARM_UP)
    registers = [sys.executable, "-c", REGISTERS, str(processes)]
    before = [sys.executable, "-c", WITHOUT_PAUSES]
    with FaultyEc2(grace=60.0) as ec2, Watch(directory, registers, env=on_ec2(ec2), before=before) as watch:

        def footprint_after(part: float) -> Footprint:
            wait_until(lambda: len(ec2.asked) >= polls * part or watch.process.poll() is not None, 240, "looks")
            return Footprint.of(watch)

        wait_until(lambda: done(watch) >= registrations * WARM_UP, 60)
        first = footprint_after(WARM_UP)
        early = footprint_after(WARM_UP + 0.2)
        wait_until(lambda: done(watch) >= processes, 240)
        late = footprint_after(WARM_UP + 0.8)
        last = footprint_after(WARM_UP + 1.0)
        wait_until(lambda: psutil.Process(watch.process.pid).num_fds() <= first.descriptors + 1)
        ec2.announcement.announce()
        return Course(first, early, late, last, watch, watch.wait())


def done(watch: Watch) -> int:
    """Count the processes that have registered."""
    return max((int(str(line["number"])) for line in watch.said("registered")), default=0)
