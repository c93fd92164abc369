"""What is remembered of the process that owns a run, for the time after its end."""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path

import pytest

from preemptd.model import Run
from preemptd.runs.owner import Owner, capture

READY = "import os; print('ready', flush=True); os.environ['LATER'] = '1'; input()"
Start = Callable[..., Owner]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Start a program that plays the owner and its wandb-core at once, and capture it."""
    with ExitStack() as stack:

        def start(*command: str, env: Mapping[str, str] | None = None) -> Owner:
            process = stack.enter_context(
                subprocess.Popen(
                    command, cwd=tmp_path, env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
                )
            )
            stack.callback(process.kill)
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
            owner = capture(Run("abc", process.pid, process.pid, str(tmp_path)))
            assert owner is not None
            return owner

        yield start


@pytest.fixture
def venv(tmp_path: Path) -> str:
    """Make what a venv has: a link to the interpreter of the base installation."""
    (tmp_path / "venv" / "bin").mkdir(parents=True)
    python = tmp_path / "venv" / "bin" / "python"
    python.symlink_to(os.path.realpath(sys.executable))
    return str(python)


def test_the_python_of_a_venv_is_called_by_its_own_name(start: Start, venv: str) -> None:
    assert start(venv, "-c", READY).interpreter == venv


def test_a_name_that_is_relative_to_the_working_directory_is_made_whole(start: Start, venv: str) -> None:
    assert start("venv/bin/python", "-c", READY).interpreter == venv


def test_a_bare_name_is_looked_for_on_the_programs_own_path(start: Start, venv: str) -> None:
    env = {"PATH": f"/nonexistent:{os.path.dirname(venv)}:/usr/bin:/bin"}

    owner = start("bash", "-c", 'exec -a python "$0" -c "$1"', venv, READY, env=env)

    assert owner.interpreter == venv


@pytest.mark.parametrize("name", ["VIRTUAL_ENV", "CONDA_PREFIX"])
def test_a_program_that_changed_its_title_is_found_by_its_environment(start: Start, venv: str, name: str) -> None:
    root = os.path.dirname(os.path.dirname(venv))
    env = {"PATH": "/usr/bin:/bin", name: root}
    owner = start("bash", "-c", 'exec -a "training: epoch 3" "$0" -c "$1"', venv, READY, env=env)

    assert owner.interpreter == venv


def test_with_nothing_to_go_by_it_is_the_program_itself(start: Start, venv: str) -> None:
    env = {"PATH": "/usr/bin:/bin", "VIRTUAL_ENV": "/nonexistent"}
    owner = start("bash", "-c", 'exec -a "ray::train" "$0" -c "$1"', venv, READY, env=env)

    assert owner.interpreter == os.path.realpath(sys.executable)


def test_environment_and_rights_are_those_of_the_process(start: Start, tmp_path: Path) -> None:
    owner = start(sys.executable, "-c", READY, env={"WANDB_API_KEY": "secret", "ODD": "\udcff", "EMPTY": ""})

    assert owner.environment == {b"WANDB_API_KEY": b"secret", b"ODD": b"\xff", b"EMPTY": b""}
    assert owner.cwd == str(tmp_path)
    assert (owner.rights.uid, owner.rights.gid) == (os.geteuid(), os.getegid())
    assert owner.rights.groups == frozenset(os.getgroups())
    assert not owner.rights.split
    assert not owner.confined


def test_the_key_is_in_no_text_that_is_made_of_it(start: Start) -> None:
    owner = start(sys.executable, "-c", READY, env={"WANDB_API_KEY": "secret"})

    assert "secret" not in repr(owner)


def test_a_process_that_is_gone_has_no_owner() -> None:
    with subprocess.Popen(["true"]) as process:
        process.wait()

    assert capture(Run("abc", process.pid, process.pid, "/")) is None


def test_the_packages_are_those_beside_wandb_core(tmp_path: Path) -> None:
    core = tmp_path / "lib" / "site-packages" / "wandb" / "bin" / "wandb-core"
    core.parent.mkdir(parents=True)
    shutil.copy(shutil.which("cat") or "/bin/cat", core)
    with subprocess.Popen([core], stdin=subprocess.PIPE) as process:
        try:
            owner = capture(Run("abc", process.pid, os.getpid(), "/"))
        finally:
            process.kill()

    assert owner is not None
    assert owner.packages == str(tmp_path / "lib" / "site-packages")


def test_a_process_in_namespaces_of_its_own_is_confined(start: Start, needs_root: None) -> None:
    del needs_root
    owner = start("unshare", "--mount", sys.executable, "-c", READY)

    assert owner.confined
    assert owner.directory is not None
    os.close(owner.directory)
