"""A machine is killed as a whole; another one has the same command and nothing else, and goes on with its W&B run."""

import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.conftest import ROOT
from tests.lab.net_weather import inside, ip
from tests.lab.wandb_watching import PATIENCE, patient
from tests.object_store import S3, Line
from tests.sync_machines import Machine as Site
from tests.waiting import wait_until
from tests.watching import Watch

pytestmark = [patient, pytest.mark.long]
SCRIPT = str(ROOT / "tests" / "standins" / "wandb_resume.py")
SAVED = 20


class Machine:
    """A network, a disk and processes of its own; all that leads out is a line to the object store."""

    def __init__(self, stack: ExitStack, name: str, directory: Path, store: S3) -> None:
        self._namespace = f"preemptds{os.getpid()}{name}"
        ip("netns", "add", self._namespace)
        stack.callback(ip, "netns", "del", self._namespace)
        ip("-n", self._namespace, "link", "set", "lo", "up")
        with inside(self._namespace):
            listener = socket.create_server(("127.0.0.1", 0))
        self.line = stack.enter_context(Line(store.port, listener))
        self.name = name
        self._disk = directory / "disk"
        self._disk.mkdir(exist_ok=True)
        self._logs = directory / name
        self._logs.mkdir()
        self._store = store

    def pids(self) -> str:
        command = ["ip", "netns", "pids", self._namespace]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout

    def start(self, python: str, preemptd: str, *script: str) -> Watch:
        disk = str(self._disk)
        begin = f'mount -t tmpfs disk {disk} && cd {disk} && exec "$0" "$@"'
        env = {
            **self._store.env(self.line.port),
            "HOME": disk,
            "XDG_STATE_HOME": f"{disk}/state",
            "XDG_RUNTIME_DIR": disk,
            "WANDB_DIR": disk,
            "WANDB_MODE": "offline",
        }
        return Watch(
            self._logs,
            [python, SCRIPT, "ckpt", *script],
            "--sync=ckpt=s3://bucket/run42",
            env=env,
            before=[
                *("ip", "netns", "exec", self._namespace, "unshare", "--mount", "--pid", "--fork", "--kill-child"),
                *("--mount-proc", "sh", "-c", begin),
            ],
            preemptd=(preemptd, "-m", "preemptd"),
        )


@pytest.fixture
def machines(needs_netns: None, sync_python: str, tmp_path: Path) -> Iterator[tuple[Machine, Machine, S3]]:  # noqa: ARG001
    with ExitStack() as stack:
        store = stack.enter_context(S3(sync_python))
        yield Machine(stack, "a", tmp_path, store), Machine(stack, "b", tmp_path, store), store


def kept(store: S3) -> set[str]:
    """List the files of the newest generation."""
    names = sorted(name for name in store.names("run42/") if name.startswith("run42/manifest-"))
    return {each["path"] for each in json.loads(store.read(names[-1]))["files"]} if names else set()


def test_a_machine_dies_and_another_one_goes_on_with_its_run(
    machines: tuple[Machine, Machine, S3], wandb_pythons: Mapping[str, str], sync_python: str
) -> None:
    here, there, store = machines
    python = wandb_pythons["0.31.0"]
    with here.start(python, sync_python, "--save-at", str(SAVED)) as first:
        first.await_said("ready", timeout=PATIENCE)
        wait_until(lambda: any(path.startswith(".preemptd/wandb/") for path in kept(store)), PATIENCE)
        first.process.kill()
        first.wait(PATIENCE)
    wait_until(lambda: not here.pids(), PATIENCE)
    with there.start(python, sync_python, "--steps", str(SAVED + 5)) as second:
        status = second.wait(PATIENCE)
    (old,), (new,) = first.said("ready"), second.said("ready")

    assert (old["step"], new["step"]) == (0, SAVED)
    assert new["runs"] == old["runs"]
    assert [line["run_id"] for line in second.lines("resumes")] == old["runs"]
    assert status == 0


def on_small_disk(directory: Path) -> list[str]:
    """Begin a command for which *directory* has room for 64 KiB."""
    directory.mkdir()
    return ["unshare", "--mount", "sh", "-c", f'mount -t tmpfs -o size=64k disk {directory} && exec "$0" "$@"']


def save(size: int) -> list[str]:
    code = f"import os; os.makedirs('ckpt', exist_ok=True); open('ckpt/weights', 'wb').write(bytes({size}))"
    return [sys.executable, "-c", code]


def test_a_store_that_is_full_shows_in_the_status(needs_netns: None, tmp_path: Path) -> None:  # noqa: ARG001
    full = on_small_disk(tmp_path / "disk")
    with Site(tmp_path / "here", str(tmp_path / "disk" / "store")).watch(command=save(200_000), before=full) as watch:
        status = watch.wait(PATIENCE)

    assert status == 74
    assert "the last state is not there: " in watch.err
    assert "No space left on device" in watch.err


def test_a_disk_that_is_full_is_noticed_before_the_start_and_holds_nothing_half(
    needs_netns: None,  # noqa: ARG001
    tmp_path: Path,
) -> None:
    store = str(tmp_path / "store")
    with Site(tmp_path / "here", store).watch(command=save(200_000)) as watch:
        watch.wait(PATIENCE)
    there = Site(tmp_path / "there", store)
    with there.watch(command=["ls", "-R", "ckpt"], before=on_small_disk(there.checkpoints)) as watch:
        status = watch.wait(PATIENCE)

    assert (status, watch.out) == (2, "")
    assert "No space left on device" in watch.err
