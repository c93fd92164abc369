"""W&B's server fails while a machine goes: telling is never delayed, and nothing blocks past the grace."""

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.lab import wandb_ending
from tests.lab.wandb_backend import API_KEY, WandbBackend
from tests.lab.wandb_watching import VERSIONS, Training, announce, patient
from tests.metadata_server import FaultyGce
from tests.waiting import wait_until

pytestmark = patient
FAULTS = ("500", "hang", "drop", "gone")
GRACE = 8.0
SLACK = 5.0
"""Seconds by which a busy machine may be late. What blocks would block for a minute, or for ever."""
Start = Callable[..., Training]


def _every_fault() -> pytest.MarkDecorator:
    """Every fault with every version in the soak; in the suite each of both once."""
    params = []
    for row, fault in enumerate(FAULTS):
        for column, version in enumerate(VERSIONS):
            mark = () if row % len(VERSIONS) == column else pytest.mark.soak
            params.append(pytest.param(fault, version, marks=mark, id=f"{fault}-{version}"))
    return pytest.mark.parametrize(("fault", "version"), params)


@pytest.fixture
def backend() -> Iterator[WandbBackend]:
    with WandbBackend() as backend:
        yield backend


@pytest.fixture
def gce() -> Iterator[FaultyGce]:
    with FaultyGce(grace=GRACE) as server:
        yield server


@pytest.fixture
def start(wandb_pythons: Mapping[str, str], backend: WandbBackend, gce: FaultyGce, tmp_path: Path) -> Iterator[Start]:
    with ExitStack() as stack:

        def start(version: str, way: str, *options: str) -> Training:
            env = {**backend.env(), "GCE_METADATA_HOST": gce.url.removeprefix("http://"), "NO_GCE_CHECK": "false"}
            command = [wandb_pythons[version], wandb_ending.SCRIPT, way]
            return stack.enter_context(Training(tmp_path, command, "--grace", str(GRACE), *options, env=env))

        yield start


def break_down(backend: WandbBackend, fault: str) -> None:
    if fault == "gone":
        backend.close()
    else:
        backend.break_down(fault)


def told_in_time(watch: Training) -> bool:
    events = [line["event"] for line in watch.lines() if line["event"] in {"marked", "told"}]
    return events[:2] == ["marked", "told"] and watch.number("told", "ms") < 2500


def took(watch: Training) -> float:
    """Return the seconds from the notice to our last word."""
    return watch.number("settled") - watch.number("notice")


@_every_fault()
def test_a_script_that_leaves_is_told_at_once_and_we_leave_before_the_machine_does(
    start: Start, backend: WandbBackend, gce: FaultyGce, fault: str, version: str
) -> None:
    watch = start(version, "os_exit")
    (run_id,) = watch.runs()
    break_down(backend, fault)
    announce(gce)
    status = watch.wait()
    (repaired,) = watch.lines("repaired")

    assert status == 75
    assert watch.marked() == [run_id]
    assert told_in_time(watch)
    assert took(watch) < GRACE + SLACK
    assert (repaired["ok"], backend.exit_codes(run_id)) == (False, [])
    assert f"W&B run {run_id} could not be ended as preempted: " in watch.err
    assert API_KEY not in watch.err


@_every_fault()
def test_a_script_that_hangs_in_finish_is_told_at_once_and_killed_in_time(
    start: Start, backend: WandbBackend, gce: FaultyGce, fault: str, version: str
) -> None:
    watch = start(version, "finish_143", "--kill")
    (run_id,) = watch.runs()
    break_down(backend, fault)
    announce(gce)
    status = watch.wait()

    assert status == 75
    assert watch.marked() == [run_id]
    assert told_in_time(watch)
    assert took(watch) < GRACE + SLACK
    assert backend.exit_codes(run_id) == []


@pytest.mark.parametrize("fault", ["500", "drop"])
def test_a_server_that_recovers_within_the_grace_hears_of_it(
    start: Start, backend: WandbBackend, gce: FaultyGce, fault: str
) -> None:
    watch = start("0.31.0", "os_exit", "--grace", "40")
    (run_id,) = watch.runs()
    backend.break_down(fault)
    announce(gce)
    (ready,) = watch.said("ready")
    wait_until(lambda: not Path(f"/proc/{ready['pid']}").exists())
    gone = time.monotonic()
    wait_until(lambda: any(call.operation.startswith("failed") and call.mono > gone for call in backend.calls))
    backend.mend()
    status = watch.wait()

    assert status == 75
    assert told_in_time(watch)
    assert backend.preempting(run_id)
    assert backend.exit_codes(run_id) == [75]
