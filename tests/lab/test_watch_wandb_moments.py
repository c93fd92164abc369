"""A notice at the wrong moment for a W&B run, under the real `preemptd watch`: what the server sees of it."""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.lab import wandb_ending
from tests.lab.test_watch_clock import WallClock, wall_clock
from tests.lab.wandb_backend import WandbBackend
from tests.lab.wandb_watching import SCRIPT, Training, announce, patient, quickly
from tests.metadata_server import FaultyGce
from tests.waiting import wait_until

pytestmark = patient
__all__ = ["wall_clock"]
ROWS = 30_000
Start = Callable[..., Training]


@pytest.fixture
def backend() -> Iterator[WandbBackend]:
    with WandbBackend() as backend:
        yield backend


@pytest.fixture
def gce() -> Iterator[FaultyGce]:
    with FaultyGce(grace=60.0) as server:
        yield server


@pytest.fixture
def start(wandb_pythons: Mapping[str, str], backend: WandbBackend, gce: FaultyGce, tmp_path: Path) -> Iterator[Start]:
    with ExitStack() as stack:

        def start(
            version: str, *script: str, program: str = SCRIPT, before: Sequence[str] = (), **more: str
        ) -> Training:
            env = {**backend.env(), "GCE_METADATA_HOST": gce.url.removeprefix("http://"), "NO_GCE_CHECK": "false"}
            command = [*before, wandb_pythons[version], program, *script]
            return stack.enter_context(Training(tmp_path, command, "--grace", "60", env={**env, **more}))

        yield start


@quickly("0.31.0", "0.19.11")
def test_with_30000_rows_queued_a_run_is_marked_its_script_told_in_time_and_no_row_lost(
    start: Start, backend: WandbBackend, gce: FaultyGce, version: str
) -> None:
    watch = start(version, "--burst", str(ROWS))
    (run_id,) = watch.runs()
    watch.await_said("burst")
    announce(gce)
    status = watch.wait()
    rows = [json.loads(line).get("row") for line in backend.lines(run_id, "wandb-history.jsonl")]

    assert (status, backend.exit_codes(run_id)) == (75, [143])
    assert watch.marked() == [run_id]
    assert watch.number("told", "ms") < 2500
    assert len(backend.preempting(run_id)) == 1
    assert [row for row in rows if row is not None] == list(range(ROWS))


@quickly("0.31.0", "0.22.3")
def test_a_notice_in_the_middle_of_init_marks_the_run_that_comes_of_it(
    start: Start, backend: WandbBackend, gce: FaultyGce, tmp_path: Path, version: str
) -> None:
    watch = start(version, "--begin-when", str(tmp_path / "begin"), "--save", "3")
    watch.await_said("waiting")
    backend.break_down("hang", "/graphql")
    (tmp_path / "begin").touch()
    wait_until(lambda: any(call.operation == "failed: hang" for call in backend.calls), 50)
    announce(gce)
    watch.await_said("signal")
    assert watch.said("began") == []
    backend.mend()
    (run_id,) = watch.runs()
    status = watch.wait()

    assert status == 75
    assert watch.marked() == [run_id]
    assert watch.number("told", "ms") < 2500
    assert backend.preempting(run_id)
    assert backend.exit_codes(run_id) == [143]


@pytest.mark.parametrize("notice_first", [True, False])
@quickly("0.31.0")
def test_a_run_that_finishes_by_itself_at_that_moment_stays_finished_or_is_mended(
    start: Start, backend: WandbBackend, gce: FaultyGce, tmp_path: Path, version: str, notice_first: bool
) -> None:
    """Which of the two is a matter of milliseconds: before its script was told the end was its own."""
    watch = start(version, "--finish-when", str(tmp_path / "finish"), "--end-when", str(tmp_path / "end"))
    (run_id,) = watch.runs()
    wait_until(lambda: gce.waiting >= 2)
    steps = [gce.announcement.announce, (tmp_path / "finish").touch]
    for step in steps if notice_first else reversed(steps):
        step()
    watch.await_said("signal")
    watch.await_said("finished")
    (tmp_path / "end").touch()
    status = watch.wait()
    ways = [line["how"] for line in watch.lines("repaired")]

    assert status == 75
    assert watch.marked() in ([], [run_id])
    assert watch.number("told", "ms") < 2500
    assert (ways, backend.exit_codes(run_id)) in ((["nothing"], [0]), (["api"], [0, 75]))
    assert len(backend.runs()) == 1


@pytest.mark.parametrize(("way", "codes"), [("falls_off", [0, 75]), ("os_exit", [75])])
@quickly("0.22.3")
def test_both_runs_of_one_script_are_mended(
    start: Start, backend: WandbBackend, gce: FaultyGce, version: str, way: str, codes: Sequence[int]
) -> None:
    watch = start(version, way, "--runs", "2", program=wandb_ending.SCRIPT)
    runs = watch.runs()
    announce(gce)
    status = watch.wait()

    assert status == 75
    assert watch.marked() == sorted(runs)
    assert [backend.exit_codes(run_id) for run_id in runs] == [codes, codes]
    assert all(backend.preempting(run_id) for run_id in runs)


@pytest.mark.parametrize(("later", "status"), [(3600, 0), (0, 75)])
def test_an_hour_after_the_notice_was_taken_back_a_normal_end_is_one(
    start: Start,
    backend: WandbBackend,
    gce: FaultyGce,
    tmp_path: Path,
    wall_clock: WallClock,  # a fixture
    later: int,
    status: int,
) -> None:
    """Right after it, it is put down to the notice: the script may have begun to save and leave."""
    alone = ("env", "-u", "LD_PRELOAD")  # the clock is ours, not the script's
    watch = start("0.31.0", "--end-when", str(tmp_path / "end"), before=alone, **wall_clock.environ)
    (run_id,) = watch.runs()
    announce(gce)
    watch.await_said("signal")
    gce.announcement.revoke()
    watch.await_line("revoked")
    wall_clock.age(later)
    (tmp_path / "end").touch()
    ours = watch.wait()

    assert ours == status
    assert backend.exit_codes(run_id) == ([0] if status == 0 else [0, 75])
    assert [line["ok"] for line in watch.lines("repaired")] == ([] if status == 0 else [True])
    assert watch.marked() == [run_id]
    assert [line for line in watch.lines("warning") if "internal error" in str(line["text"])] == []
