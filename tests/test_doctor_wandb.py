"""What `preemptd doctor PID` says of W&B runs: it asks for each, and marks none."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from preemptd.diagnosis.credentials import has_key
from preemptd.diagnosis.services import version_of
from preemptd.model import Process
from tests.doctors import doctor, run_doctor
from tests.standins.wandb_core_process import CoreStandIn, core_stand_ins
from tests.waiting import wait_until

pytestmark = pytest.mark.slow

KEY = "0123456789abcdef0123456789abcdef01234567"


def opened(core: CoreStandIn, *run_ids: str) -> CoreStandIn:
    for run_id in run_ids:
        core.order(f"open {run_id}")
    return core


@pytest.mark.parametrize("mode", ["good", "--tcp good", "drips"])
def test_a_run_that_is_served_could_be_marked_and_is_only_asked_for(tmp_path: Path, mode: str) -> None:
    with core_stand_ins(tmp_path, mode) as (core,):
        opened(core, "abc123", "def456")
        found = doctor(core.pid)
        runs = {run["run_id"]: run for run in found.said["job"]["runs"]}
        wait_until(lambda: len(core.frames) >= 2)

        assert runs.keys() == {"abc123", "def456"}
        assert all(run["deliverable"] and run["ms"] < 1000 and run["why_not"] is None for run in runs.values())
        assert (runs["abc123"]["core_pid"], runs["abc123"]["owner_pid"]) == (core.pid, os.getpid())
        assert all(frame.keys() == {"attach", "request_id"} for frame in core.frames)
        assert {frame["attach"] for frame in core.frames} == {"abc123", "def456"}


@pytest.mark.parametrize(
    ("mode", "why"),
    [
        ("silent", "its wandb-core gave no answer within 1 s"),
        ("full", "its wandb-core gave no answer within 1 s"),
        ("breaks", "its wandb-core cannot be reached: wandb-core closed the connection"),
        ("garbage", "what answers on wandb-core's socket does not speak its protocol"),
        ("huge", "what answers on wandb-core's socket does not speak its protocol"),
        ("--not-listening good", "its wandb-core does not listen"),
    ],
)
def test_a_run_that_could_not_be_marked_is_lost(tmp_path: Path, mode: str, why: str) -> None:
    with core_stand_ins(tmp_path, mode) as (core,):
        opened(core, "abc123")
        found = doctor(core.pid)

    assert (found.run()["deliverable"], found.run()["why_not"]) == (False, why)
    assert "run-not-marked" in found.kinds(losing=True)


def test_a_core_that_hangs_costs_a_second_and_the_other_runs_nothing(tmp_path: Path) -> None:
    with core_stand_ins(tmp_path, "good", "silent") as (good, silent):
        opened(good, "abc123")
        opened(silent, "def456")
        found = [doctor(core.pid) for core in (good, silent)]

    assert [one.run()["deliverable"] for one in found] == [True, False]


def test_a_run_that_is_served_only_later_is_asked_for_again(tmp_path: Path) -> None:
    with core_stand_ins(tmp_path, "good") as (core,):
        core.order("file abc123")
        asked = subprocess.Popen(
            ["sh", "-c", f"exec {sys.executable} -m preemptd doctor --json {core.pid}"], stdout=subprocess.PIPE
        )
        wait_until(lambda: core.frames)
        core.order("serve abc123")
        out, _ = asked.communicate()

    assert b'"deliverable": true' in out


def test_a_service_without_a_run_is_no_loss(tmp_path: Path) -> None:
    with core_stand_ins(tmp_path, "good") as (core,):
        core.order("log abc123")
        found = doctor(core.pid)

    assert found.said["job"]["runs"] == []
    assert found.said["job"]["idle_wandb_services"] == [core.pid]
    assert "run-not-marked" not in found.kinds()


@pytest.mark.parametrize("where", ["environment", "netrc", "nowhere"])
def test_a_key_is_found_where_wandb_looks_and_never_shown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    netrc = tmp_path / "netrc"
    netrc.write_text(f"machine wandb.example.org login user password {KEY}\n" if where == "netrc" else "")
    monkeypatch.setenv("NETRC", str(netrc))
    monkeypatch.setenv("WANDB_BASE_URL", "https://wandb.example.org:8443")
    if where == "environment":
        monkeypatch.setenv("WANDB_API_KEY", KEY)
    with core_stand_ins(tmp_path / "core", f"--key={KEY} good") as (core,):
        opened(core, "abc123")
        found = doctor(core.pid)
        text = run_doctor(core.pid).stdout

    assert found.run()["api_key_present"] is (where != "nowhere")
    assert ("no-key" in found.kinds(losing=False)) is (where == "nowhere")
    assert "API key not found" in text if where == "nowhere" else "API key found" in text
    assert not any(part in found.out + text for part in (KEY, KEY[:12], KEY[-12:]))


@pytest.mark.parametrize(
    "content",
    [
        "machine api.wandb.ai login user\n",
        f"machine other.example.org login user password {KEY}\n",
        f"machine api.wandb.ai nonsense {KEY}\n",
        "\udcff",
    ],
)
def test_a_netrc_file_without_a_key_for_the_server_has_none(tmp_path: Path, content: str) -> None:
    path = tmp_path / "netrc"
    path.write_bytes(content.encode(errors="surrogateescape"))

    assert has_key(os.getpid(), None, [{"NETRC": str(path)}]) is False


def test_a_netrc_file_that_is_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / ".netrc")

    assert has_key(os.getpid(), None, [{"HOME": str(tmp_path)}]) is False


def test_the_home_of_the_user_is_looked_into_with_either_name(tmp_path: Path) -> None:
    (tmp_path / "_netrc").write_text(f"machine api.wandb.ai login user password {KEY}\n")

    assert has_key(os.getpid(), None, [{"HOME": "/nowhere"}, {"HOME": str(tmp_path)}]) is True


@pytest.mark.parametrize(
    ("distributions", "found"),
    [
        (["wandb-9.8.7"], "9.8.7"),
        (["wandb-9.8.7", "wandb_extra-1.0"], "9.8.7"),
        ([], None),
        (["wandb-1", "wandb-2"], None),
    ],
)
def test_the_version_is_read_beside_the_program(tmp_path: Path, distributions: list[str], found: str | None) -> None:
    for distribution in distributions:
        directory = tmp_path / f"{distribution}.dist-info"
        directory.mkdir()
        (directory / "METADATA").write_text(
            f"Metadata-Version: 2.4\nName: wandb\nVersion: {distribution.partition('-')[2]}\n\nVersion: 0\n"
        )
    core = tmp_path / "wandb" / "bin" / "wandb-core"
    core.parent.mkdir(parents=True)
    shutil.copy("/bin/sleep", core)
    with subprocess.Popen([core, "60"]) as process:
        try:
            wait_until(lambda: os.readlink(f"/proc/{process.pid}/exe") == str(core))
            before = version_of(running(process.pid))
            core.unlink()
            after = version_of(running(process.pid))
        finally:
            process.kill()

    assert (before, after) == (found, None)
    assert version_of(running(process.pid)) is None


def running(pid: int) -> Process:
    return Process(pid, 0, 1, 1, "S", "wandb-core")
