"""W&B runs through the real `preemptd watch`: unmodified scripts, three versions of wandb, online and offline."""

import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.lab.wandb_backend import WandbBackend
from tests.lab.wandb_watching import (
    SCRIPT,
    Training,
    announce,
    every_version,
    imported,
    patient,
    preempting_records,
    quickly,
    stopped,
    strings,
)
from tests.metadata_server import FaultyGce
from tests.waiting import wait_until
from tests.watching import environment, read_lines

pytestmark = patient
Start = Callable[..., Training]


@pytest.fixture
def backend() -> Iterator[WandbBackend]:
    with WandbBackend() as backend:
        yield backend


@pytest.fixture
def gce() -> Iterator[FaultyGce]:
    with FaultyGce() as server:
        yield server


@pytest.fixture
def start(wandb_pythons: Mapping[str, str], backend: WandbBackend, gce: FaultyGce, tmp_path: Path) -> Iterator[Start]:
    with ExitStack() as stack:

        def start(
            version: str,
            *script: str,
            interpreter: str = "",
            python: Sequence[str] = (),
            watch: Sequence[str] = (),
            offline: bool = False,
            verb: str = "watch",
        ) -> Training:
            env = {**backend.env(), "GCE_METADATA_HOST": gce.url.removeprefix("http://"), "NO_GCE_CHECK": "false"}
            env |= {"WANDB_MODE": "offline"} if offline else {}
            command = [interpreter or wandb_pythons[version], *python, SCRIPT, *script]
            return stack.enter_context(Training(tmp_path, command, *watch, env=env, verb=verb))

        yield start


# -- a notice ----------------------------------------------------------------------------------------------------


@every_version
def test_a_run_is_marked_once_before_the_signal_reaches_the_script(
    start: Start, backend: WandbBackend, gce: FaultyGce, version: str
) -> None:
    watch = start(version)
    (run_id,) = watch.runs()
    assert backend.preempting(run_id) == []
    announce(gce)
    status = watch.wait()

    assert status == 75
    assert watch.marked() == [run_id]
    assert watch.number("marked") < watch.signalled()
    assert [event for event in (line["event"] for line in watch.lines()) if event in {"marked", "told"}] == [
        "marked",
        "told",
    ]
    assert (len(backend.preempting(run_id)), backend.exit_codes(run_id)) == (1, [143])
    assert backend.runs() == [run_id]
    assert backend.unknown() == []


@every_version
def test_an_offline_run_is_marked_once_in_its_log(start: Start, gce: FaultyGce, tmp_path: Path, version: str) -> None:
    watch = start(version, offline=True)
    (run_id,) = watch.runs()
    announce(gce)
    status = watch.wait()

    assert status == 75
    assert watch.marked() == [run_id]
    assert watch.number("marked") < watch.signalled()
    assert preempting_records(tmp_path, run_id) == 1


@every_version
def test_a_script_that_holds_the_gil_is_marked_at_once_and_told_when_the_gil_is_free(
    start: Start, backend: WandbBackend, gce: FaultyGce, version: str
) -> None:
    watch = start(version, "--hold-gil", "5")
    (run_id,) = watch.runs()
    (holding,) = watch.await_said("holding")
    announce(gce)
    status = watch.wait()
    (delivered,) = backend.preempting(run_id)

    assert status == 75
    assert watch.marked() == [run_id]
    assert watch.number("marked", "ms") < 2500
    assert delivered < watch.signalled() - 1
    assert watch.signalled() > float(str(holding["mono"])) + 4.5


@every_version
def test_a_script_in_an_isolated_python_is_marked(
    start: Start, backend: WandbBackend, gce: FaultyGce, version: str
) -> None:
    watch = start(version, python=("-I",))
    (run_id,) = watch.runs()
    announce(gce)
    watch.wait()

    assert watch.marked() == [run_id]
    assert len(backend.preempting(run_id)) == 1


@every_version
def test_two_runs_of_one_script_are_both_marked_before_the_signal(
    start: Start, backend: WandbBackend, gce: FaultyGce, version: str
) -> None:
    watch = start(version, "--runs", "2")
    runs = watch.runs()
    announce(gce)
    watch.wait()

    assert len(runs) == 2
    assert watch.marked() == sorted(runs)
    assert max(float(str(line["mono"])) for line in watch.lines("marked")) < watch.signalled()
    assert [len(backend.preempting(run_id)) for run_id in runs] == [1, 1]


@every_version
def test_a_run_that_begins_after_its_script_was_told_is_marked(
    start: Start, backend: WandbBackend, gce: FaultyGce, tmp_path: Path, version: str
) -> None:
    watch = start(version, "--begin-when", str(tmp_path / "begin"), "--save", "3")
    watch.await_said("waiting")
    announce(gce)
    watch.await_line("told")
    (tmp_path / "begin").touch()
    (run_id,) = watch.runs()
    watch.await_line("marked")
    status = watch.wait()

    assert status == 75
    assert watch.marked() == [run_id]
    assert (len(backend.preempting(run_id)), backend.exit_codes(run_id)) == (1, [143])


@every_version
def test_a_script_that_listens_only_after_init_is_marked_before_it_is_told(
    start: Start, backend: WandbBackend, gce: FaultyGce, tmp_path: Path, version: str
) -> None:
    watch = start(version, "--begin-when", str(tmp_path / "begin"), "--listen-when", str(tmp_path / "begin"))
    watch.await_said("waiting")
    announce(gce)
    watch.await_line("notice")
    (tmp_path / "begin").touch()
    (run_id,) = watch.runs()
    status = watch.wait()

    assert status == 75
    assert watch.marked() == [run_id]
    assert watch.number("marked") < watch.signalled()
    assert (len(backend.preempting(run_id)), backend.exit_codes(run_id)) == (1, [143])


def test_rank_0s_run_is_marked_before_either_rank_of_torchrun_is_told(
    start: Start, backend: WandbBackend, gce: FaultyGce, torch_python: str
) -> None:
    torchrun = ("-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port", "0")
    watch = start("0.31.0", interpreter=torch_python, python=torchrun)
    ready = watch.await_said("ready", 2)
    (run_id,) = {run_id for line in ready for run_id in strings(line["runs"])}
    announce(gce)
    status = watch.wait()

    assert status == 75
    assert watch.marked() == [run_id]
    assert len(watch.said("signal")) == len(watch.said("exit")) == 2
    assert watch.number("marked") < min(float(str(line["mono"])) for line in watch.said("signal"))
    assert (len(backend.preempting(run_id)), backend.exit_codes(run_id)) == (1, [143])


@every_version
def test_a_run_that_was_finished_before_is_left_alone(
    start: Start, backend: WandbBackend, gce: FaultyGce, version: str
) -> None:
    watch = start(version, "--finished")
    (run_id,) = watch.runs()
    announce(gce)
    status = watch.wait()
    (finished,) = set(backend.runs()) - {run_id}

    assert status == 75
    assert watch.marked() == [run_id]
    assert watch.number("told", "ms") < 2500
    assert (backend.preempting(finished), len(backend.preempting(run_id))) == ([], 1)


@quickly("0.22.3")
def test_under_another_preemptd_a_run_is_marked_once_by_the_outer_one(
    start: Start, backend: WandbBackend, gce: FaultyGce, wandb_pythons: Mapping[str, str], version: str
) -> None:
    inner = ("-m", "preemptd", "watch", "--journal", "inner", "--", wandb_pythons[version])
    watch = start(version, interpreter=sys.executable, python=inner)
    (run_id,) = watch.runs()
    announce(gce)
    watch.wait()

    assert watch.marked() == [run_id]
    assert watch.number("marked") < watch.signalled()
    assert len(backend.preempting(run_id)) == 1


@quickly("0.19.11")
def test_a_training_that_a_new_watch_took_over_is_marked_once(
    start: Start, backend: WandbBackend, gce: FaultyGce, version: str
) -> None:
    first = start(version, watch=("--job-id", "job"))
    (run_id,) = first.runs()
    first.signal(signal.SIGKILL)
    first.process.wait(20)
    second = start(version, watch=("--job-id", "job"))
    wait_until(lambda: len(second.lines("started")) == 2)
    announce(gce)
    second.wait()

    assert second.lines("started")[1]["adopted"] is True
    assert second.marked() == [run_id]
    assert second.number("marked") < second.signalled()
    assert (len(backend.preempting(run_id)), backend.exit_codes(run_id)) == (1, [143])


def test_rehearse_reports_the_run_as_marked(start: Start, backend: WandbBackend) -> None:
    watch = start("0.31.0", verb="rehearse", watch=("--after", "1", "--grace", "20"))
    (run_id,) = watch.runs()
    watch.wait()

    assert re.search(rf"^W&B runs    {run_id} marked preempting after [0-9.]+ ms$", watch.out, re.MULTILINE)
    assert re.search(rf"^ +\+[0-9.]+ s  run {run_id} marked preempting$", watch.out, re.MULTILINE)
    assert len(backend.preempting(run_id)) == 1


def test_the_mark_of_an_offline_run_survives_the_kill_of_a_script_that_never_saves(
    start: Start, gce: FaultyGce, tmp_path: Path
) -> None:
    # The exit record goes out a tenth of the grace before the kill, and the file is flushed each 0.5 s.
    watch = start("0.31.0", "--save", "60", watch=("--kill", "--grace", "12"), offline=True)
    (run_id,) = watch.runs()
    announce(gce)
    status = watch.wait()

    assert status == 75
    assert watch.number("exited", "status") == 137
    assert preempting_records(tmp_path, run_id) == 2  # at the notice, and once more with the exit record


# -- wandb-core in trouble ---------------------------------------------------------------------------------------


@every_version
def test_a_stopped_wandb_core_delays_the_telling_by_250_ms_and_its_run_is_marked_when_it_goes_on(
    start: Start, backend: WandbBackend, gce: FaultyGce, version: str
) -> None:
    watch = start(version, "--save", "3")
    (run_id,) = watch.runs()
    (core,) = watch.cores()
    with stopped(core):
        announce(gce)
        watch.await_line("told")
        assert watch.lines("marked") == []
        assert 249 <= watch.number("told", "ms") < 2500
    watch.await_line("marked")
    status = watch.wait()

    assert status == 75
    assert watch.marked() == [run_id]
    assert (len(backend.preempting(run_id)), backend.exit_codes(run_id)) == (1, [143])


@quickly("0.31.0")
def test_a_script_that_is_told_late_waits_for_its_mark_too(
    start: Start, backend: WandbBackend, gce: FaultyGce, tmp_path: Path, version: str
) -> None:
    watch = start(version, "--listen-when", str(tmp_path / "listen"), "--save", "3")
    watch.await_said("began")
    (core,) = watch.cores()
    with stopped(core):
        announce(gce)
        noticed = float(str(watch.await_line("notice")[0]["mono"]))
        wait_until(lambda: time.monotonic() > noticed + 0.5)
        (tmp_path / "listen").touch()
        watch.await_said("signal")
        assert watch.signalled() - float(str(watch.said("ready")[0]["mono"])) > 0.249
    watch.await_line("marked")
    status = watch.wait()

    assert status == 75
    assert [len(backend.preempting(run_id)) for run_id in watch.runs()] == [1]


@quickly("0.31.0")
def test_one_stopped_wandb_core_of_twenty_delays_nobody_else(
    start: Start, backend: WandbBackend, gce: FaultyGce, version: str
) -> None:
    watch = start(version, "--forks", "20", "--save", "3")
    runs = {str(line["run"]) for line in watch.await_said("run", 20)}
    watch.await_said("ready")
    victim = watch.cores()[7]
    with stopped(victim):
        announce(gce)
        watch.await_line("told")
        watch.await_line("marked", 19)
        before = watch.marked()
        assert watch.number("told", "ms") < 2500
    watch.await_line("marked", 20)
    status = watch.wait()
    mended = {line["run_id"] for line in watch.lines("repaired") if line["how"] in {"api", "http"}}

    assert status == 75
    assert len(runs) == len(set(watch.marked())) == 20
    assert len(before) == 19
    assert [len(backend.preempting(run_id)) - (run_id in mended) for run_id in sorted(runs)] == [1] * 20


# -- no notice, no mark ------------------------------------------------------------------------------------------


@quickly("0.31.0")
def test_nothing_is_marked_without_a_notice(start: Start, backend: WandbBackend, gce: FaultyGce, version: str) -> None:
    watch = start(version, "--steps", "40")
    (run_id,) = watch.runs()
    wait_until(lambda: gce.waiting >= 2)
    status = watch.wait()

    assert status == 0
    assert watch.lines("marked") == []
    assert backend.preempting(run_id) == []
    assert backend.exit_codes(run_id) == [0]


@quickly("0.22.3")
def test_nothing_is_marked_in_an_offline_log_without_a_notice(start: Start, tmp_path: Path, version: str) -> None:
    watch = start(version, "--steps", "40", offline=True)
    (run_id,) = watch.runs()
    status = watch.wait()

    assert status == 0
    assert preempting_records(tmp_path, run_id) == 0


@quickly("0.19.11")
def test_nothing_is_marked_for_advice(start: Start, backend: WandbBackend, gce: FaultyGce, version: str) -> None:
    gce.announced = {"maintenance-event": ("NONE", "MIGRATE_ON_HOST_MAINTENANCE"), "preempted": ("FALSE", "FALSE")}
    watch = start(version, "--steps", "60")
    (run_id,) = watch.runs()
    announce(gce)
    watch.await_line("advice")
    status = watch.wait()

    assert status == 0
    assert watch.said("signal") == watch.lines("marked") == []
    assert backend.preempting(run_id) == []
    assert backend.exit_codes(run_id) == [0]


@quickly("0.22.3")
def test_nothing_is_marked_for_a_bare_sigterm(start: Start, backend: WandbBackend, version: str) -> None:
    watch = start(version, "--signal", "TERM", "--save", "1")
    (run_id,) = watch.runs()
    watch.signal(signal.SIGTERM)
    status = watch.wait()

    assert status == 0
    assert len(watch.said("signal")) == 1
    assert watch.lines("marked") == []
    assert backend.preempting(run_id) == []


@quickly("0.31.0")
@pytest.mark.parametrize("option", ["--no-wandb", "--dry-run"])
def test_nothing_is_marked_under(
    start: Start, backend: WandbBackend, gce: FaultyGce, version: str, option: str
) -> None:
    watch = start(version, "--steps", "100", watch=(option,))
    (run_id,) = watch.runs()
    announce(gce)
    watch.await_line("told")
    status = watch.wait()

    assert status == (75 if option == "--no-wandb" else 0)
    assert watch.lines("marked") == []
    assert backend.preempting(run_id) == []


# -- what the daemon itself is made of ---------------------------------------------------------------------------


@pytest.mark.parametrize(("code", "how"), [("143", "nothing"), ("0", "api")])
def test_the_daemon_marks_and_mends_without_wandb_and_loads_requests_only_for_a_provider_that_needs_it(
    backend: WandbBackend, tmp_path: Path, wandb_pythons: Mapping[str, str], code: str, how: str
) -> None:
    signals = tmp_path / "signals"
    signals.mkdir()
    watch = [sys.executable, "-X", "importtime", "-m", "preemptd", "watch", "--job-id", "job", "--journal", "journal"]
    env = environment({**backend.env(), "PREEMPTD_SIGNAL_DIR": str(signals), "LOG": str(tmp_path / "log")})
    command = [
        "sh",
        "-c",
        'echo "the command runs" >&2; exec "$@"',
        "sh",
        wandb_pythons["0.31.0"],
        SCRIPT,
        "--code",
        code,
    ]
    with subprocess.Popen([*watch, "--", *command], env=env, cwd=tmp_path, stderr=subprocess.PIPE, text=True) as daemon:
        assert daemon.stderr is not None
        try:
            before = list(iter(daemon.stderr.readline, "the command runs\n"))
            wait_until((tmp_path / "log").exists, 50)
            (signals / "job.preempt").touch()
            after = daemon.stderr.readlines()
        finally:
            daemon.terminate()

    assert daemon.returncode == 75
    lines = {str(line["event"]): line for line in read_lines(tmp_path / "journal")}
    assert lines["marked"]["ok"] is True
    assert lines["repaired"]["how"] == how
    assert "preemptd.runs.marker" in imported(before)
    assert not {"wandb", "requests", "urllib3"} & imported(before)
    assert not {"wandb", "requests"} & imported(after)
