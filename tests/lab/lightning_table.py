"""The table of docs/lightning.md: `python -m tests.lab.lightning_table` plays and writes it, in a quarter of an hour.

What becomes of a training on two ranks when a SIGTERM is all that comes, by Lightning's own means and by our callback.
"""

import platform
import re
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timezone
from itertools import product
from pathlib import Path

from tests.conftest import LAB, ROOT, pytest_configure
from tests.lab.launchers import Place
from tests.lab.lightning_jobs import LAUNCHERS, SIGNALLED, Bare

PAGE = ROOT / "docs" / "lightning.md"
TABLE = re.compile(r"(<!-- baseline -->\n)(.*?)(<!-- /baseline -->)", re.DOTALL)
PYTHON = str(LAB / "torch" / "bin" / "python")
AT_ONCE = 3
"""How many are played side by side: those that hang need no CPU."""
HANGS = 60.0
"""Seconds after which a training that saves within one is taken to hang."""
WAYS = {"`OnExceptionCheckpoint`": ("--without", "--on-exception"), "`PreemptionCallback`": ()}
CHECKPOINTS = {"`OnExceptionCheckpoint`": "on_exception.ckpt", "`PreemptionCallback`": "last-preempted.ckpt"}
ROWS = tuple(product(LAUNCHERS, SIGNALLED))
SAVED = "saved"


def played(launcher: str, whom: str, way: str) -> str:
    """Return what became of it: saved, lost or hung."""
    with tempfile.TemporaryDirectory() as directory:
        place = Place(Path(directory), PYTHON, lambda name: name)
        with Bare(place, LAUNCHERS[launcher](place, "--batches", "20000", *WAYS[way])) as job:
            job.terminate(SIGNALLED[whom])
            has_ended = job.ended(HANGS) is not None
        is_saved = (place.directory / CHECKPOINTS[way]).exists()
    return f"{SAVED if is_saved else 'lost'}{'' if has_ended else ', then hung' if is_saved else ', hung'}"


def line(row: tuple[str, str]) -> list[str]:
    cells = [played(*row, way) for way in WAYS]
    print(*row, *cells, sep=", ", file=sys.stderr)
    return cells


def table(cells: Sequence[Sequence[str]]) -> str:
    """Make the table of *cells*, a row of them for each of ROWS."""
    rows = [
        ("started by", "SIGTERM to", *WAYS),
        ("---",) * (2 + len(WAYS)),
        *((*row, *cell) for row, cell in zip(ROWS, cells, strict=True)),
    ]
    code = "import torch, lightning as l; print(f'torch {torch.__version__}, Lightning {l.__version__}')"
    versions = subprocess.run([PYTHON, "-c", code], check=True, capture_output=True, text=True).stdout.strip()
    when = (
        f"Played on {datetime.now(timezone.utc):%Y-%m-%d}, Python {platform.python_version()}, {versions}, gloo on CPU."
    )
    return "\n".join([*(f"| {' | '.join(row)} |" for row in rows), "", when, ""])


def shown() -> list[list[str]]:
    """Return the cells of the page."""
    found = TABLE.search(PAGE.read_text())
    assert found is not None
    lines = [line for line in found[2].splitlines() if line.startswith("|")][2:]
    return [line.strip("| ").split(" | ") for line in lines]


def main() -> None:
    pytest_configure()
    with ThreadPoolExecutor(AT_ONCE) as pool:
        cells = list(pool.map(line, ROWS))
    text = table(cells)
    PAGE.write_text(TABLE.sub(lambda found: found[1] + text + found[3], PAGE.read_text()))


if __name__ == "__main__":
    main()
