"""No process and no thread can be started any more (`ulimit -u`): a notice is told all the same."""

import os
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.metadata_server import FaultyEc2
from tests.test_watch import on_ec2
from tests.test_watch_faults import has_told_once
from tests.waiting import wait_until
from tests.watching import Watch

# Starts processes until no more can be had, and takes every one that becomes free, until it is told.
HOARDS = """
import json, os, signal, sys, time
def note(what):
    with open(os.environ["LOG"], "a") as log:
        log.write(json.dumps({"what": what, "pid": os.getpid()}) + "\\n")
told, hoard, is_full = [], [], False
end, alive = os.pipe()
signal.signal(signal.SIGUSR1, lambda *_: told.append(True))
note("ready")
while not told:
    try:
        pid = os.fork()
        if not pid:
            signal.signal(signal.SIGUSR1, signal.SIG_DFL)
            os.close(alive)
            os.read(end, 1)  # until its parent is gone
            os._exit(0)
        hoard.append(pid)
    except BlockingIOError:
        if not is_full:
            is_full = True
            note("full")
        time.sleep(0.01)
note("told")
time.sleep(0.5)
"""


def as_user_with(processes: int) -> Sequence[str]:
    """Make a command that runs another as a user who may have so many; it reads our files all the same.

    A user whom nobody else is: the kernel counts the processes, and their threads, of a user.
    """
    user = 200_000 + os.getpid()
    rights = ["--inh-caps=-all,+dac_override", "--ambient-caps=-all,+dac_override"]
    return [
        *("setpriv", f"--reuid={user}", f"--regid={user}", "--clear-groups", *rights),
        *("prlimit", f"--nproc={processes}:{processes}"),
    ]


@pytest.mark.usefixtures("needs_root")
def test_a_training_that_has_taken_every_process_is_told_at_once_and_ends_as_preempted(tmp_path: Path) -> None:
    options = ["--job-id", "run42", "--state-dir", str(tmp_path / "state")]
    with (
        FaultyEc2(grace=60.0) as ec2,
        Watch(tmp_path, ["python3", "-c", HOARDS], *options, env=on_ec2(ec2), before=as_user_with(60)) as watch,
    ):
        wait_until(lambda: any(line["state"] == "watching" for line in watch.lines("provider")))
        watch.await_said("full")
        ec2.announcement.announce()
        status = watch.wait()

    assert status == 75
    assert len(watch.said("told")) == 1
    assert has_told_once(watch)
    assert watch.lines("warning") == []


@pytest.mark.usefixtures("needs_root")
@pytest.mark.parametrize("processes", [1, 3])
def test_where_nothing_can_be_started_one_line_says_why(tmp_path: Path, processes: int) -> None:
    with Watch(tmp_path, ["true"], "--provider", "sigterm", before=as_user_with(processes)) as watch:
        status = watch.wait()

    assert status == 2
    assert watch.err.splitlines() == [
        "preemptd: no more processes or threads can be started: see `ulimit -u`, and the limit of the container"
    ]
