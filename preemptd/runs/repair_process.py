"""Runs a repair program as the user who owned the run, and with no more rights than the training had."""

import json
import os
import select
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from preemptd.runs.owner import Owner, Rights, rights_of
from preemptd.runs.run_settings import RunSettings

_PROGRAMS = Path(__file__).parent
_ENDED_WITHIN = 1.0
_NOBODY = 65534
_SYSTEM_PYTHON = "/usr/bin/python3"
# What says which run it is, or that it is to be none, must not reach the repair.
_DROPPED = frozenset(
    {
        *("WANDB_SERVICE", "_WANDB_STARTUP_DEBUG", "WANDB_RUN_ID", "WANDB_RESUME", "WANDB_SWEEP_ID"),
        *("WANDB_SWEEP_PARAM_PATH", "WANDB_NAME", "WANDB_NOTES", "WANDB_TAGS", "WANDB_RUN_GROUP", "WANDB_JOB_TYPE"),
        *("WANDB_CONFIG_PATHS", "WANDB_MODE", "WANDB_DISABLED", "WANDB_X_UPDATE_FINISH_STATE", "WANDB_X_PRIMARY"),
        *("WANDB_X_LABEL", "WANDB_X_SKIP_TRANSACTION_LOG", "PREEMPTD_LINK", "PYTHONINSPECT", "PYTHONSTARTUP"),
    }
)
# Nothing of the run but its end is to be written: no metadata of this process, no code, no console.
_ADDED = {
    "WANDB_MODE": "online",
    "WANDB_SILENT": "true",
    "WANDB_CONSOLE": "off",
    "WANDB_DISABLE_GIT": "true",
    "WANDB_DISABLE_CODE": "true",
    "WANDB_X_DISABLE_STATS": "true",
    "WANDB_X_DISABLE_META": "true",
    "WANDB_X_DISABLE_MACHINE_INFO": "true",
    "WANDB_X_SAVE_REQUIREMENTS": "false",
    "WANDB_ERROR_REPORTING": "false",
}


class RepairError(Exception):
    """Why a repair cannot be made this way."""


class _RefusedError(RepairError):
    """The user may not run that interpreter: ours may lie in root's home."""


class Spawn(Protocol):
    """Starts a process as subprocess.Popen does, and keeps others from reaping it."""

    def __call__(
        self,
        command: Sequence[str],
        *,
        env: Mapping[bytes, bytes],
        pass_fds: Sequence[int],
        identity: Mapping[str, object],
    ) -> "subprocess.Popen[bytes]": ...


class Release(Protocol):
    """Told that a process which `Spawn` started has been waited for."""

    def __call__(self, process: "subprocess.Popen[bytes]", /) -> None: ...


@dataclass(frozen=True, slots=True)
class Target:
    """Which run is to end how."""

    settings: RunSettings
    run_id: str
    code: int


def spawn_directly(
    command: Sequence[str], *, env: Mapping[bytes, bytes], pass_fds: Sequence[int], identity: Mapping[str, object]
) -> "subprocess.Popen[bytes]":
    """Be the `Spawn` of a program that reaps no orphans."""
    process: subprocess.Popen[bytes] = subprocess.Popen(
        command,
        env=env,
        cwd="/",
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
        pass_fds=pass_fds,
        **identity,  # type: ignore[call-overload]  # user, group, extra_groups
    )
    return process


def released(_process: "subprocess.Popen[bytes]") -> None:
    """Be the `Release` that goes with `spawn_directly`."""


class RepairProcess:
    """One run of a repair program; `stop` may be called from any thread, at any time."""

    def __init__(self, spawn: Spawn, release: Release) -> None:
        self._spawn = spawn
        self._release = release
        self._stop, self._stop_end = os.pipe2(os.O_CLOEXEC)

    def close(self) -> None:
        for fd in (self._stop, self._stop_end):
            os.close(fd)

    def stop(self) -> None:
        """End what runs, and let nothing more begin."""
        os.write(self._stop_end, b".")

    def by_api(self, owner: Owner, target: Target, end: float) -> None:
        """Repair through wandb itself. Raises RepairError."""
        if owner.confined:
            raise RepairError("it ran in a container of its own")
        interpreter = _interpreter(owner, target)
        if interpreter is None:
            raise RepairError("its Python interpreter was not found")
        self._run("repair_by_api", interpreter, owner, target, identity_of(owner.rights), end)

    def by_http(self, owner: Owner, target: Target, end: float) -> None:
        """Repair by plain requests. Raises RepairError."""
        interpreter: Sequence[str] = (sys.executable, "-I")
        if owner.confined:  # its files are not ours, and the interpreter of there is not started here
            identity = _identity_outside(owner.rights)
        elif identity := identity_of(owner.rights):  # the user may not be allowed to read our interpreter
            interpreter = _interpreter(owner, target) or interpreter
        try:
            self._run("repair_by_http", interpreter, owner, target, identity, end)
        except _RefusedError:
            if not identity or not os.access(_SYSTEM_PYTHON, os.X_OK):
                raise
            self._run("repair_by_http", (_SYSTEM_PYTHON, "-I"), owner, target, identity, end)

    def _run(
        self,
        program: str,
        interpreter: Sequence[str],
        owner: Owner,
        target: Target,
        identity: Mapping[str, object],
        end: float,
    ) -> None:
        with ExitStack() as stack:
            directory = stack.enter_context(_directory_of(identity))
            answer, answer_end = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
            stack.callback(os.close, answer)
            source = (_PROGRAMS / f"{program}.py").read_text(encoding="utf-8")
            command = [*interpreter, "-c", source, _request(owner, target, end, answer_end)]
            try:
                env = environment_for(owner, target.settings, directory)
                process = self._spawn(command, env=env, pass_fds=(answer_end,), identity=identity)
            except PermissionError as error:
                raise _RefusedError(f"the repair could not be started: {error}") from error
            except (OSError, subprocess.SubprocessError, ValueError) as error:
                raise RepairError(f"the repair could not be started: {error}") from error
            finally:
                os.close(answer_end)
            try:
                said = self._await_answer(answer, end)
            finally:
                self._end(process)
        if not said.get("ok"):
            raise RepairError(str(said.get("why") or "the repair ended without a word"))

    def _await_answer(self, answer: int, end: float) -> Mapping[str, object]:
        """Read the one line. Not until EOF: what the program has started may hold its descriptors for longer."""
        poll = select.poll()
        poll.register(answer, select.POLLIN)
        poll.register(self._stop, select.POLLIN)
        line = b""
        while not line.endswith(b"\n"):
            ready = dict(poll.poll(max(0.0, end - time.monotonic()) * 1000))
            if self._stop in ready:
                raise RepairError("stopped")
            if not ready:
                raise RepairError("no time left: it did not end in time")
            chunk = os.read(answer, 4096)
            if not chunk:
                return {}
            line += chunk
        try:
            said = json.loads(line)
        except ValueError:
            return {}
        return said if isinstance(said, dict) else {}

    def _end(self, process: "subprocess.Popen[bytes]") -> None:
        """Make sure that it is gone. Its wandb-core sees that within 100 ms and ends by itself."""
        process.kill()
        try:
            process.wait(_ENDED_WITHIN)
        except subprocess.TimeoutExpired:
            return  # it hangs in the kernel: it stays registered, and is reaped by nobody else
        self._release(process)


def _request(owner: Owner, target: Target, end: float, answer: int) -> str:
    """Put together what a repair program is to know. The key is not in it: it goes by the environment."""
    return json.dumps(
        {
            "entity": target.settings.entity,
            "project": target.settings.project,
            "run_id": target.run_id,
            "code": target.code,
            "cwd": owner.cwd,
            "packages": owner.packages or "",
            "home": not owner.confined,
            "end": end,
            "answer": answer,
        }
    )


def identity_of(theirs: Rights, ours: Rights | None = None) -> Mapping[str, object]:
    """Say what subprocess.Popen is to be given so that the repair has the rights of the training, and no more.

    Args:
        theirs: the training's.
        ours: None: as they are.

    Raises:
        RepairError: that cannot be done.
    """
    ours = ours or rights_of("self")
    if theirs.split:
        raise RepairError("it ran with the rights of two users")
    if ours.uid not in (0, theirs.uid):
        raise RepairError("it belongs to another user: only root can repair it")
    if ours.uid == theirs.uid and ours.capabilities & ~theirs.capabilities:
        raise RepairError("it ran with fewer rights than preemptd has")
    if (theirs.uid, theirs.gid) == (ours.uid, ours.gid) and theirs.groups >= ours.groups:
        return {}
    if ours.uid != 0:
        raise RepairError("it ran in other groups than preemptd: only root can repair it")
    return {"user": theirs.uid, "group": theirs.gid, "extra_groups": sorted(theirs.groups)}


def _identity_outside(theirs: Rights) -> Mapping[str, object]:
    """Say as whom to act outside for a container whose root has fewer rights than we have: as nobody."""
    try:
        return identity_of(theirs)
    except RepairError:
        if os.geteuid() != 0:
            raise
    return {"user": _NOBODY, "group": _NOBODY, "extra_groups": []}


def environment_for(owner: Owner, settings: RunSettings, directory: str) -> Mapping[bytes, bytes]:
    """Make the environment of the repair: that of the training without what names a run, with its server and key."""
    kept = {name: value for name, value in owner.environment.items() if os.fsdecode(name) not in _DROPPED}
    known = {"WANDB_BASE_URL": settings.base_url, "WANDB_API_KEY": settings.api_key}
    added = {**_ADDED, **{name: value for name, value in known.items() if value}, "WANDB_DIR": directory}
    return kept | {name.encode(): os.fsencode(value) for name, value in added.items()}


def _interpreter(owner: Owner, target: Target) -> Sequence[str] | None:
    """Choose how to call the training's Python: by the name that it had for itself, else by one that was found."""
    own = target.settings.executable
    if os.path.isabs(own) and os.access(own, os.X_OK):
        return (own,)
    return (owner.interpreter,) if owner.interpreter else None


@contextmanager
def _directory_of(identity: Mapping[str, object]) -> Iterator[str]:
    """Make a directory for wandb's own files, which is the user's, and remove it."""
    directory = tempfile.mkdtemp(prefix="preemptd-repair-")
    try:
        if identity:
            os.chown(directory, int(str(identity["user"])), int(str(identity["group"])))
        yield directory
    finally:
        shutil.rmtree(directory, ignore_errors=True)
