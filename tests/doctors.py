"""Runs the real `preemptd doctor`, and reads what it says."""

import json
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from tests.watching import PREEMPTD, environment


@dataclass(frozen=True)
class Diagnosis:
    """What `doctor --json` said, and its exit status."""

    status: int
    out: str
    said: dict[str, Any]

    def kinds(self, *, losing: bool | None = None) -> set[str]:
        return {one["kind"] for one in self.said["findings"] if losing is None or one["loses"] is losing}

    def finding(self, kind: str) -> dict[str, Any]:
        (found,) = [one for one in self.said["findings"] if one["kind"] == kind]
        assert isinstance(found, dict)
        return found

    def process(self, pid: int) -> dict[str, Any]:
        (found,) = [one for one in self.said["job"]["processes"] if one["pid"] == pid]
        assert isinstance(found, dict)
        return found

    def run(self) -> dict[str, Any]:
        (found,) = self.said["job"]["runs"]
        assert isinstance(found, dict)
        return found


def run_doctor(
    *arguments: object, env: Mapping[str, str] | None = None, before: Sequence[str] = ()
) -> "subprocess.CompletedProcess[str]":
    """Run it; *before* is a command to run it by."""
    command = [*before, *PREEMPTD, "doctor", *map(str, arguments)]
    return subprocess.run(command, env=environment(env), capture_output=True, text=True, check=False, timeout=50)


def doctor(*arguments: object, env: Mapping[str, str] | None = None, before: Sequence[str] = ()) -> Diagnosis:
    ended = run_doctor("--json", *arguments, env=env, before=before)
    assert ended.stderr == ""
    assert ended.returncode in (0, 1)
    return Diagnosis(ended.returncode, ended.stdout, json.loads(ended.stdout))


@contextmanager
def running(
    command: Sequence[str], ready: str = "ready", env: Mapping[str, str] | None = None, **options: Any
) -> Iterator["subprocess.Popen[str]"]:
    """Run *command* until it said *ready*; it is killed at the end."""
    with subprocess.Popen(
        command, env=environment(env), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, **options
    ) as process:
        try:
            assert process.stdout is not None
            for line in process.stdout:
                if ready in line:
                    break
            yield process
        finally:
            process.kill()


def script(code: str, *arguments: str) -> list[str]:
    """Make a command of Python code that says ready and waits until standard input ends."""
    return [
        sys.executable,
        "-c",
        f"import signal, sys\n{code}\nprint('ready', flush=True)\nsys.stdin.read()",
        *arguments,
    ]
