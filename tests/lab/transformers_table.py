"""The table of docs/quickstart.md on the Trainer of Hugging Face: `python -m tests.lab.transformers_table` writes it.

What becomes of a training when a SIGTERM is all that comes, as systemd, Kubernetes or `timeout` send it, and what
becomes of the same training with our callback under `preemptd watch`.
"""

import json
import os
import platform
import re
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path

from tests.conftest import LAB, ROOT, pytest_configure
from tests.lab.launchers import STANDINS, Job, Place
from tests.metadata_server import FaultyEc2

PAGE = ROOT / "docs" / "quickstart.md"
TABLE = re.compile(r"(<!-- transformers -->\n)(.*?)(<!-- /transformers -->)", re.DOTALL)
PYTHON = str(LAB / "torch" / "bin" / "python")
TRAINER = str(STANDINS / "hf_trainer.py")
GRACE = 30.0
"""Seconds between the SIGTERM, or the notice, and the end of the machine."""
PATIENCE = 300.0
"""Seconds until it trains, which are five where nothing else is at work."""
TIMES = 3
"""What ranks without agreement do is a matter of luck."""
EVALUATION = ("--evaluate", "1600", "--pace", "0.05")
"""It takes longer than that."""
WORKERS = {"dataloader_num_workers": 2}
ALONE, JIT = "the Trainer alone, SIGTERM", "`enable_jit_checkpoint`, SIGTERM"
CALLBACK, WATCHED = "`PreemptionCallback`, SIGTERM", "`PreemptionCallback`, `preemptd watch`"
WAYS = (ALONE, JIT, CALLBACK, WATCHED)


@dataclass(frozen=True)
class Row:
    name: str
    ranks: int = 1
    arguments: tuple[tuple[str, object], ...] = ()
    options: tuple[str, ...] = ()
    said: str = "batch"
    """What it notes when it is at what the row is about."""

    def command(self, place: Place, way: str) -> list[str]:
        arguments = {**dict(self.arguments), "enable_jit_checkpoint": way == JIT}
        script = [TRAINER, json.dumps(arguments), *self.options, *(["--without"] if way in {ALONE, JIT} else [])]
        return place.torchrun(*script, ranks=self.ranks) if self.ranks > 1 else [place.python, *script]


ROWS = (
    Row("python"),
    Row("python, 2 DataLoader workers", arguments=tuple(WORKERS.items())),
    Row("torchrun, 2 ranks", 2),
    Row("torchrun, 2 ranks with 2 DataLoader workers each", 2, tuple(WORKERS.items())),
    Row(
        "python, in an evaluation that takes longer than the grace",
        arguments=(("eval_strategy", "steps"), ("eval_steps", 3)),
        options=EVALUATION,
        said="predicted",
    ),
)


def cell(row: Row, way: str) -> str:
    """Return what the page says of it."""
    plays = [played(row, way) for _ in range(TIMES)]
    saved = sum(kept for kept, _ in plays)
    return f"{saved} of {TIMES}; {' or '.join(sorted({end for _, end in plays}))}"


def played(row: Row, way: str) -> tuple[bool, str]:
    """Say whether it was saved, and how the command ended."""
    with tempfile.TemporaryDirectory() as directory:
        place = Place(Path(directory), PYTHON, lambda name: name)
        command = row.command(place, way)
        status = _notice(place, row, command) if way == WATCHED else _sigterm(place, row, command)
        return _is_saved(place.directory / "out", row.ranks), status


def _notice(place: Place, row: Row, command: Sequence[str]) -> str:
    with FaultyEc2(grace=GRACE) as ec2, Job(place, ec2, command) as job:
        job.await_said(row.said, 4 * row.ranks, PATIENCE)
        ec2.announcement.announce()
        return _end(job.process)


def _sigterm(place: Place, row: Row, command: Sequence[str]) -> str:
    """Signal the command's process group; what lives after the grace is killed with the machine."""
    idle = ["sleep", "1000"]  # only for the notes, and for the end of all that is left
    with FaultyEc2() as ec2, Job(place, ec2, idle) as job:
        env = {**os.environ, **job.env, "HF_HUB_OFFLINE": "1"}
        with subprocess.Popen(
            command,
            cwd=place.directory,
            env=env,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        ) as process:
            try:
                job.await_said(row.said, 4 * row.ranks, PATIENCE)
                os.killpg(process.pid, signal.SIGTERM)
                return _end(process)
            finally:
                process.kill()


def _end(process: "subprocess.Popen[bytes]") -> str:
    try:
        status = process.wait(GRACE)
    except subprocess.TimeoutExpired:
        return "killed"
    return f"exit {status if status >= 0 else 128 - status}"


def _is_saved(checkpoints: Path, ranks: int) -> bool:
    """Say whether there is a checkpoint that has all of its files."""
    found = [path.parent for path in checkpoints.glob("checkpoint-*/trainer_state.json")]
    return any(len(list(path.glob("rng_state*.pth"))) == ranks for path in found)


def table(cells: Sequence[Sequence[str]]) -> str:
    """Make the table of *cells*, a row of them for each of ROWS."""
    rows = [
        ("the job", *WAYS),
        ("---",) * (1 + len(WAYS)),
        *((row.name, *line) for row, line in zip(ROWS, cells, strict=True)),
    ]
    code = "import torch, transformers as t; print(f'torch {torch.__version__}, transformers {t.__version__}')"
    versions = subprocess.run([PYTHON, "-c", code], check=True, capture_output=True, text=True).stdout.strip()
    lines = [f"| {' | '.join(row)} |" for row in rows]
    when = (
        f"Played on {datetime.now(timezone.utc):%Y-%m-%d} with Python {platform.python_version()}, {versions}, on CPU."
    )
    return "\n".join([*lines, "", when, ""])


def shown() -> list[list[str]]:
    """Return the cells of the page."""
    found = TABLE.search(PAGE.read_text())
    assert found is not None
    lines = [line for line in found[2].splitlines() if line.startswith("|")][2:]
    return [line.strip("| ").split(" | ") for line in lines]


def main() -> None:
    pytest_configure()
    cells = []
    for row in ROWS:
        cells.append([cell(row, way) for way in WAYS])
        print(row.name, *cells[-1], sep="\n    ", file=sys.stderr)
    text = table(cells)
    PAGE.write_text(TABLE.sub(lambda found: found[1] + text + found[3], PAGE.read_text()))


if __name__ == "__main__":
    main()
