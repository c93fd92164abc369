"""What marker and mender do for a told training that ends, in this process: the exit matrix is test_wandb_exits.py."""

import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import pytest

from preemptd.runs import transaction_log
from preemptd.runs.run_settings import RunSettings
from tests.lab.wandb_backend import API_KEY, WandbBackend
from tests.lab.wandb_ending import CODE, WAYS, Ending
from tests.lab.wandb_watching import every_version, patient, quickly, stop
from tests.waiting import wait_until

pytestmark = patient
Start = Callable[..., Ending]
ALWAYS_FLUSHED = {"WANDB_X_TRANSACTION_LOG_FLUSH_INTERVAL": "0.2"}


@pytest.fixture
def backend() -> Iterator[WandbBackend]:
    with WandbBackend() as backend:
        yield backend


@pytest.fixture
def start(wandb_pythons: Mapping[str, str], backend: WandbBackend, tmp_path: Path) -> Iterator[Start]:
    with ExitStack() as stack:

        def start(version: str, way: str, *options: str, drop: tuple[str, ...] = (), **env: str) -> Ending:
            variables = {**backend.env(), **env}
            for name in drop:
                del variables[name]
            ending = Ending(wandb_pythons[version], way, variables, tmp_path, *options)
            stack.callback(ending.close)
            return ending

        yield start


def sync(python: str, backend: WandbBackend, log: Path) -> None:
    env = {**os.environ, **backend.env()}
    del env["WANDB_MODE"]
    command = [python, "-m", "wandb", "sync", str(log.parent)]
    subprocess.run(command, env=env, cwd=log.parent, check=True, capture_output=True, timeout=50)


def the_log(directory: Path, run_id: str) -> Path:
    (path,) = directory.glob(f"wandb/*run-*-{run_id}/run-{run_id}.wandb")
    return path


@quickly("0.31.0")
def test_who_says_it_is_done_is_left_alone(start: Start, backend: WandbBackend, version: str) -> None:
    ending = start(version, "falls_off")
    run_id = ending.wait_ready()
    ending.mark()
    ending.end()
    repair = ending.mend(done=(ending.popen.pid,))

    assert (repair.ok, repair.how, backend.exit_codes(run_id)) == (True, "nothing", [0])


def test_a_run_that_had_closed_before_anybody_was_told_is_left_alone(start: Start, backend: WandbBackend) -> None:
    ending = start("0.31.0", "falls_off")
    run_id = ending.wait_ready()
    ending.mark()
    ending.end()
    wait_until(lambda: ending.entry.closed)
    ending.told_at = time.monotonic()
    repair = ending.mend()

    assert (repair.how, backend.exit_codes(run_id)) == ("nothing", [0])


@every_version
def test_the_run_is_ended_over_the_wire_just_before_the_process_is_killed(
    start: Start, backend: WandbBackend, version: str
) -> None:
    ending = start(version, "uncaught KILL", "--log-before", "20")
    run_id = ending.wait_ready()
    ending.mark()
    ended = ending.finish()
    alive = ending.popen.poll()
    ending.end()

    assert (ended.code, ended.how, ended.why, alive) == (CODE, "delivered", None, None)
    assert backend.exit_codes(run_id) == [CODE]
    assert backend.preempting(run_id)
    assert len(backend.lines(run_id, "wandb-history.jsonl")) == 20


@quickly("0.22.3")
def test_a_run_that_was_ended_over_the_wire_is_not_ended_again(
    start: Start, backend: WandbBackend, version: str
) -> None:
    ending = start(version, "uncaught KILL")
    run_id = ending.wait_ready()
    ending.mark()
    ended = ending.finish()
    ending.end()
    repair = ending.mend()

    assert ended.how == "delivered"
    assert backend.exit_codes(run_id) == [CODE]
    assert (repair.ok, repair.how, repair.code) == (True, "nothing", CODE)


@pytest.mark.parametrize("fault", ["500", "hang", "drop"])
@quickly("0.22.3")
def test_a_backend_that_fails_costs_the_budget_and_no_more(
    start: Start, backend: WandbBackend, fault: str, version: str
) -> None:
    ending = start(version, "uncaught KILL")
    ending.wait_ready()
    ending.mark()
    ending.end()
    backend.break_down(fault)
    began = time.monotonic()
    repair = ending.mend(budget=5.0)

    assert time.monotonic() - began < 8.0
    assert not repair.ok
    assert "api: no time left" in repair.why
    assert "http: " in repair.why


def test_a_backend_that_has_gone_for_good_is_named(start: Start, backend: WandbBackend) -> None:
    ending = start("0.31.0", "uncaught KILL")
    ending.wait_ready()
    ending.mark()
    ending.end()
    backend.close()
    repair = ending.mend(budget=9.0)

    assert not repair.ok
    assert "no network" in repair.why
    assert API_KEY not in repair.why


def test_a_backend_that_recovers_in_time_is_told(start: Start, backend: WandbBackend) -> None:
    ending = start("0.31.0", "uncaught KILL")
    run_id = ending.wait_ready()
    ending.mark()
    ending.end()
    backend.break_down("500")
    ending.mender.start(ending.policy(), 30.0)
    wait_until(lambda: any(call.operation == "failed: 500" for call in backend.calls))
    backend.mend()
    ending.mender.wait()

    assert [repair.ok for repair in ending.repairs] == [True]
    assert backend.exit_codes(run_id) == [CODE]


def test_stopping_ends_a_repair_that_hangs_at_once(start: Start, backend: WandbBackend) -> None:
    ending = start("0.31.0", "uncaught KILL")
    ending.wait_ready()
    ending.mark()
    ending.end()
    backend.break_down("hang", "")
    ending.mender.start(ending.policy(), 30.0)
    wait_until(lambda: any(call.operation == "failed: hang" for call in backend.calls))
    began = time.monotonic()
    ending.mender.stop()
    ending.mender.wait()

    assert time.monotonic() - began < 5.0
    assert [repair.ok for repair in ending.repairs] == [False]


@quickly("0.19.11")
def test_without_the_wandb_package_the_server_is_told_by_http(
    start: Start, backend: WandbBackend, version: str
) -> None:
    ending = start(version, "falls_off", PYTHONPATH="")
    run_id = ending.wait_ready()
    ending.mark()
    ending.entry.settings = RunSettings(project="project", entity="team", executable="/bin/false")
    ending.end()
    repair = ending.mend()

    assert (repair.ok, repair.how) == (True, "http")
    assert backend.exit_codes(run_id) == [0, CODE]
    assert len(backend.preempting(run_id)) == 2


@quickly("0.31.0")
def test_with_little_time_left_http_comes_first(start: Start, backend: WandbBackend, version: str) -> None:
    ending = start(version, "falls_off", drop=("WANDB_ENTITY",))
    run_id = ending.wait_ready()
    ending.mark()
    ending.end()
    repair = ending.mend(budget=2.5)

    assert (repair.ok, repair.how) == (True, "http")
    assert backend.exit_codes(run_id) == [0, CODE]


def test_a_core_that_is_stuck_to_the_end_is_gone_past(start: Start, backend: WandbBackend) -> None:
    ending = start("0.31.0", "uncaught KILL")
    run_id = ending.wait_ready()
    ending.mark()
    core = ending.core()
    stop(core)
    try:
        ending.end()
        repair = ending.mend()

        assert repair.ok
        assert backend.exit_codes(run_id) == [CODE]
    finally:
        os.kill(core, signal.SIGKILL)


def test_without_a_key_it_is_said_so(start: Start, backend: WandbBackend, tmp_path: Path) -> None:
    ending = start("0.31.0", "uncaught KILL", HOME=str(tmp_path))
    ending.wait_ready()
    ending.mark()
    entry = ending.entry
    assert entry.owner is not None
    environment = {name: value for name, value in entry.owner.environment.items() if name != b"WANDB_API_KEY"}
    entry.owner = replace(entry.owner, environment=environment)
    entry.settings = RunSettings(project="project", entity="team", base_url=backend.url)
    ending.end()
    repair = ending.mend()

    assert not repair.ok
    assert "http: no key" in repair.why


@pytest.mark.parametrize("way", ["falls_off", "sys_exit_143", "uncaught KILL"])
@quickly("0.31.0", "0.22.3")
def test_offline_the_end_is_written_into_the_log_and_sync_tells_it(
    start: Start, backend: WandbBackend, wandb_pythons: Mapping[str, str], tmp_path: Path, way: str, version: str
) -> None:
    ending = start(version, way, "--log-before", "1000", WANDB_MODE="offline", **ALWAYS_FLUSHED)
    run_id = ending.wait_ready()
    ending.mark()
    log = the_log(tmp_path, run_id)
    if version == "0.31.0":
        wait_until(lambda: transaction_log.summarize(str(log)).preempting)
    ending.end()
    repair = ending.mend()
    sync(wandb_pythons[version], backend, log)

    expected = WAYS[way] or CODE
    assert repair.ok
    assert backend.preempting(run_id)
    assert backend.exit_codes(run_id) == [expected]
    assert len(backend.lines(run_id, "wandb-history.jsonl")) > 100


def test_offline_a_run_of_which_nothing_is_on_the_disk_is_named(start: Start) -> None:
    ending = start("0.22.3", "uncaught KILL", WANDB_MODE="offline")
    ending.wait_ready()
    ending.mark()
    ending.end()
    repair = ending.mend()

    assert not repair.ok
    assert "nothing of it had reached the disk" in repair.why
