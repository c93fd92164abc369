"""An srun for a machine without SLURM, and what serves it (standins/srun.py)."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from preemptd.procfs import Tree
from tests.watching import ROOT

SRUN = ROOT / "tests" / "standins" / "srun.py"


@contextmanager
def slurmd(directory: Path) -> Iterator[None]:
    """Put an srun into `bin` of *directory*, its state into `slurm`; all that it starts ends with this."""
    (directory / "bin").mkdir()
    (directory / "slurm").mkdir()
    srun = directory / "bin" / "srun"
    srun.write_text(f'#!/bin/sh\nexec {sys.executable} {SRUN} "$@"\n')
    srun.chmod(0o755)
    env = {**os.environ, "FAKE_SLURM": str(directory / "slurm")}
    with subprocess.Popen([sys.executable, SRUN, "--slurmd"], env=env, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        try:
            yield
        finally:
            for each in Tree(process.pid, include_root=True).snapshot():
                with suppress(ProcessLookupError):
                    os.kill(each.pid, signal.SIGKILL)
