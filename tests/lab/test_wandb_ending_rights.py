"""Runs of other users and of containers: the repair never has more rights than the training had."""

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, suppress
from pathlib import Path

import pytest

from preemptd.procfs import Tree
from preemptd.runs.owner import Rights, rights_of
from tests.lab.wandb_backend import WandbBackend
from tests.lab.wandb_ending import CODE, SCRIPT, Ending
from tests.lab.wandb_watching import Training, announce, patient
from tests.metadata_server import FaultyGce
from tests.waiting import wait_until

USER, GROUP, MORE = 23456, 23457, 23458
AS_USER = ("setpriv", f"--reuid={USER}", f"--regid={GROUP}", f"--groups={MORE}", "--inh-caps=-all")
IN_NAMESPACES = ("unshare", "--mount", "--pid", "--fork", "--mount-proc")
NOTE = """
import json, os
with open(os.environ["NOTES"], "a") as file:
    ids = {"uid": os.getresuid(), "gid": os.getresgid(), "groups": os.getgroups(), "dir": os.environ.get("WANDB_DIR")}
    print(json.dumps(ids), file=file)
"""
Start = Callable[..., Ending]

pytestmark = [patient, pytest.mark.usefixtures("needs_root")]


@pytest.fixture
def backend() -> Iterator[WandbBackend]:
    with WandbBackend() as backend:
        yield backend


@pytest.fixture
def theirs() -> Iterator[Path]:
    """Make a directory that belongs to the user."""
    directory = Path(tempfile.mkdtemp(prefix="preemptd-test-"))
    (directory / "sitecustomize.py").write_text(NOTE)
    shutil.copy(SCRIPT, directory)
    for path in (directory, *directory.iterdir()):
        os.chown(path, USER, GROUP)
    yield directory

    def removed() -> bool:
        shutil.rmtree(directory, ignore_errors=True)  # a wandb-core that lost its process writes on for 100 ms
        return not directory.exists()

    wait_until(removed)


def packages(python: str) -> str:
    code = "import wandb, os; print(os.path.dirname(os.path.dirname(wandb.__file__)))"
    return subprocess.run([python, "-c", code], check=True, capture_output=True, text=True).stdout.strip()


@pytest.fixture
def public_python(wandb_pythons: Mapping[str, str], theirs: Path) -> str:
    """Return an interpreter with wandb 0.31.0 that any user may run; PYTHONPATH of `start` goes with it."""
    path = f"{theirs}:{packages(wandb_pythons['0.31.0'])}"
    for python in (wandb_pythons["0.31.0"], "/usr/bin/python3", f"/usr/bin/python3.{sys.version_info.minor}"):
        command = [*AS_USER, "env", "-i", f"PYTHONPATH={path}", f"NOTES={theirs}/tried", "sh", "-c", 'exec "$0" "$@"']
        if subprocess.run([*command, python, "-c", "import wandb"], check=False, capture_output=True).returncode == 0:
            return python
    pytest.skip("needs a Python with the packages of wandb 0.31.0 that every user may run")


def environment_of(backend: WandbBackend, theirs: Path) -> Mapping[str, str]:
    """Make one in which nothing of the training is written elsewhere than in *theirs*."""
    directories = {f"WANDB_{name}_DIR": str(theirs) for name in ("CACHE", "CONFIG", "DATA")}
    return {**backend.env(), **directories, "HOME": str(theirs), "TMPDIR": str(theirs)}


@pytest.fixture
def start(wandb_pythons: Mapping[str, str], backend: WandbBackend, theirs: Path) -> Iterator[Start]:
    with ExitStack() as stack:

        def start(python: str, way: str, *before: str) -> Ending:
            env = {
                **environment_of(backend, theirs),
                "PYTHONPATH": f"{theirs}:{packages(wandb_pythons['0.31.0'])}",
                "NOTES": str(theirs / "notes"),
            }
            ending = Ending(python, way, env, theirs, before=before, script=str(theirs / "wandb_ends.py"))
            stack.callback(ending.close)
            return ending

        yield start


def notes(theirs: Path) -> list[Mapping[str, object]]:
    return [json.loads(line) for line in (theirs / "notes").read_text().splitlines()]


def test_the_run_of_another_user_is_repaired_with_the_rights_of_that_user(
    start: Start, backend: WandbBackend, theirs: Path, public_python: str
) -> None:
    ending = start(public_python, "uncaught KILL", *AS_USER)
    run_id = ending.wait_ready()
    ending.mark()
    ending.end()
    repair = ending.mend()

    by_repair = [note for note in notes(theirs) if "preemptd-repair" in str(note["dir"])]
    assert (repair.ok, repair.how) == (True, "api")
    assert backend.exit_codes(run_id) == [CODE]
    assert by_repair
    assert all(note["uid"] == [USER] * 3 and note["gid"] == [GROUP] * 3 for note in by_repair)
    assert all(note["groups"] == [MORE] for note in by_repair)
    assert not any(Path(str(note["dir"])).exists() for note in by_repair)


def test_the_second_way_has_the_rights_of_the_user_too(
    start: Start, backend: WandbBackend, theirs: Path, public_python: str
) -> None:
    ending = start(public_python, "falls_off", *AS_USER)
    run_id = ending.wait_ready()
    ending.mark()
    ending.end()
    repair = ending.mend(budget=2.9)

    by_repair = [note for note in notes(theirs) if "preemptd-repair" in str(note["dir"])]
    assert (repair.ok, repair.how) == (True, "http")
    assert backend.exit_codes(run_id) == [0, CODE]
    assert [note["uid"] for note in by_repair] == [[USER] * 3]


def test_a_container_is_repaired_by_requests_with_what_its_wandb_core_has_told(
    start: Start, backend: WandbBackend, theirs: Path, wandb_pythons: Mapping[str, str]
) -> None:
    ending = start(wandb_pythons["0.31.0"], "uncaught KILL", *IN_NAMESPACES)
    run_id = ending.wait_ready()
    ending.mark()
    before = len(notes(theirs))
    ending.end()
    repair = ending.mend()

    entry = ending.entry
    assert entry.owner is not None
    assert entry.owner.confined
    assert (repair.ok, repair.how) == (True, "http")
    assert backend.exit_codes(run_id) == [CODE]
    assert len(notes(theirs)) == before  # nothing of the container ran outside it


def test_the_log_of_a_container_is_read_when_the_container_is_gone(
    start: Start, theirs: Path, wandb_pythons: Mapping[str, str]
) -> None:
    hidden = theirs / "hidden"
    hidden.mkdir()
    mount = f'mount -t tmpfs none {hidden} && cd {hidden} && exec "$@"'
    python = wandb_pythons["0.31.0"]
    ending = start(python, "sys_exit_143", *IN_NAMESPACES, "sh", "-c", mount, "sh")
    ending.wait_ready()
    ending.mark()
    ending.end()
    wait_until(lambda: ending.entry.owner is not None and not ending.entry.owner.core_lives())
    repair = ending.mend()

    assert not Path(ending.entry.run.directory).exists()
    assert (repair.ok, repair.how, repair.code) == (True, "nothing", 143)


@pytest.mark.parametrize("link", ["symbolic", "hard", "somebody else's"])
def test_an_offline_log_that_is_not_its_owners_alone_is_not_written(
    start: Start, theirs: Path, public_python: str, link: str
) -> None:
    ending = start(public_python, "finish_then_143", *AS_USER, "env", "WANDB_MODE=offline")
    ending.wait_ready()
    ending.mark()
    ending.end()
    log = Path(ending.entry.log)
    target = theirs / "target"
    before = log.read_bytes()
    if link == "hard":
        os.link(log, target)
    elif link == "symbolic":
        log.rename(target)
        log.symlink_to(target)
    else:
        target.write_bytes(before)
        target.rename(log)
    repair = ending.mend()

    assert not repair.ok
    assert "transaction log" in repair.why
    assert log.read_bytes() == before


# -- under the real `preemptd watch` ---------------------------------------------------------------------------------


def repairs(watch: Training, run_id: str) -> list[Rights]:
    """List as whom those act that repair the run at this moment."""
    found = []
    for process in Tree(watch.process.pid, include_root=False).snapshot():
        if any(f'"run_id": "{run_id}"' in argument for argument in process.cmdline):
            with suppress(OSError, ValueError):
                found.append(rights_of(process.pid))
    return found


@pytest.mark.parametrize("owner", ["the same user", "another user"])
def test_a_training_in_namespaces_of_its_own_is_marked_told_and_mended_with_no_more_rights_than_it_had(
    backend: WandbBackend, theirs: Path, public_python: str, wandb_pythons: Mapping[str, str], owner: str
) -> None:
    as_user = AS_USER if owner == "another user" else ()
    path = f"PYTHONPATH={theirs}:{packages(wandb_pythons['0.31.0'])}"
    command = [
        *IN_NAMESPACES,
        *as_user,
        "env",
        path,
        f"NOTES={theirs}/notes",
        public_python,
        str(theirs / "wandb_ends.py"),
        "os_exit",
    ]
    with FaultyGce(grace=30.0) as gce:
        env = {**environment_of(backend, theirs), "GCE_METADATA_HOST": gce.url.removeprefix("http://")}
        with Training(theirs, command, env={**env, "NO_GCE_CHECK": "false"}) as watch:
            (run_id,) = watch.runs()
            backend.break_down("hang")
            announce(gce)
            (rights,) = wait_until(lambda: repairs(watch, run_id), 50)
            backend.mend()
            status = watch.wait()
        (told,) = watch.lines("told")

    assert (status, backend.exit_codes(run_id)) == (75, [CODE])
    assert watch.marked() == [run_id]
    assert watch.number("marked") < watch.number("told")
    assert "wandb_ends.py" in str(told["command"])
    assert [(line["ok"], line["how"]) for line in watch.lines("repaired")] == [(True, "http")]
    if owner == "another user":
        assert (rights.uid, rights.gid, rights.groups, rights.capabilities) == (USER, GROUP, frozenset({MORE}), 0)
        assert not rights.split
    else:
        assert rights == rights_of("self")
