"""Machines that keep the checkpoints of one job at one URL."""

import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from tests.watching import Watch, environment

TRAIN = """
import os, pathlib, signal, sys, time
checkpoints = pathlib.Path("ckpt")
checkpoints.mkdir(exist_ok=True)
last = checkpoints / "last.ckpt"
step = int(last.read_text()) if last.exists() else 0
print("from", step, os.environ.get("PREEMPTD_RESUMED", "0"), flush=True)
for _ in range(int(sys.argv[1])):
    step += 1
    (checkpoints / f"step-{step}.pt").write_text(f"weights {step}" * 1000)
    last.with_suffix(".tmp").write_text(str(step))
    last.with_suffix(".tmp").rename(last)
sys.exit(int(sys.argv[2]))
"""


class Machine:
    """A machine with a disk and a state directory of its own."""

    def __init__(
        self, directory: Path, url: str, python: str = sys.executable, env: Mapping[str, str] | None = None
    ) -> None:
        directory.mkdir()
        self.directory = directory
        self.checkpoints = directory / "ckpt"
        self.url = url
        self.env = dict(env or {})
        self._python = python
        self._starts = 0

    def watch(
        self, *options: str, command: Sequence[str] = (), steps: int = 1, code: int = 0, before: Sequence[str] = ()
    ) -> Watch:
        self._starts += 1
        train = command or [sys.executable, "-c", TRAIN, str(steps), str(code)]
        more = (f"--sync=ckpt={self.url}", "--state-dir", str(self.directory / "state"), *options)
        preemptd = (self._python, "-m", "preemptd")
        name = f"start-{self._starts}"
        return Watch(self.directory, train, *more, env=self.env, name=name, before=before, preemptd=preemptd)

    def run(self, *options: str, steps: int = 1, code: int = 0) -> Watch:
        with self.watch(*options, steps=steps, code=code) as watch:
            watch.wait()
        return watch

    def files(self) -> dict[str, str]:
        return {
            path.relative_to(self.checkpoints).as_posix(): path.read_text()
            for path in self.checkpoints.rglob("*")
            if path.is_file() and ".preemptd" not in path.parts
        }


def wished(directory: Path, *wishes: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*Watch.command("watch"), *(f"--sync={wish}" for wish in wishes), "--", "touch", "started"],
        cwd=directory,
        env=environment(),
        capture_output=True,
        text=True,
        check=False,
    )
