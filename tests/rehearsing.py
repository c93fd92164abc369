"""Runs the real `preemptd rehearse` as a user would, and finds its report."""

import subprocess
from collections.abc import Sequence
from pathlib import Path

from tests.watching import PREEMPTD, environment


def rehearse(
    folder: Path, command: Sequence[str], *options: str, env: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    (folder / "saved").mkdir()
    return subprocess.run(
        [*PREEMPTD, "rehearse", *options, "--", *command],
        env=environment({"CHECKPOINTS": str(folder / "saved"), "LOG": str(folder / "log"), **(env or {})}),
        cwd=folder,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )


def report(ended: subprocess.CompletedProcess[str]) -> list[str]:
    """Return the report, which comes after what the command printed."""
    lines = ended.stdout.splitlines()
    starts = [number for number, line in enumerate(lines) if line.startswith("rehearsed ")]
    assert len(starts) == 1, (ended.stdout, ended.stderr)
    return lines[starts[0] :]
