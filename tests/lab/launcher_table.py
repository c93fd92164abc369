"""The table of docs/launchers.md: `python -m tests.lab.launcher_table [JOBS]` plays the whole matrix and writes it."""

import os
import platform
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path

from tests.conftest import LAB, ROOT, pytest_configure
from tests.lab.launchers import CELLS, LAUNCHERS, LISTENERS, Launcher, Place, check, play

PAGE = ROOT / "docs" / "launchers.md"
TABLE = re.compile(r"(<!-- launchers -->\n)(.*?)(<!-- /launchers -->)", re.DOTALL)
PYTHON = str(LAB / "torch" / "bin" / "python")
HEADER = ("launcher", "left alone, and why", "handler of USR1", "handler of TERM", "the client")


@dataclass(frozen=True)
class Played:
    """One cell, as the page shows it."""

    text: str
    spared: Counter[str]
    told_after: list[float]
    """Milliseconds from the notice to each telling."""


def played(launcher: Launcher, listener: str) -> Played:
    with tempfile.TemporaryDirectory() as directory:
        try:
            found = play(launcher, listener, Place(Path(directory), PYTHON, _tool))
            check(launcher, listener, found)
        except (AssertionError, subprocess.TimeoutExpired) as error:
            print(f"{launcher.name}, {listener}: {str(error)[:4000]}", file=sys.stderr)
            return Played("FAILED", Counter(), [])
        print(f"{launcher.name}, {listener}: {found.saved}/{launcher.ranks}", file=sys.stderr)
        return Played(f"{found.saved}/{launcher.ranks}", found.spared, found.told_after)


def cell(text: str) -> str:
    return text.replace("|", "\\|")


def table(cells: Sequence[Played]) -> str:
    """Make the table of *cells*, which are in the order of CELLS."""
    rows = [HEADER, ("---",) * len(HEADER)]
    for number, launcher in enumerate(LAUNCHERS):
        row = cells[number * len(LISTENERS) : (number + 1) * len(LISTENERS)]
        spared: Counter[str] = Counter()
        for one in row:
            spared |= one.spared
        alone = "; ".join(why if count == 1 else f"{why} ({count})" for why, count in sorted(spared.items()))
        rows.append((cell(launcher.name), cell(alone) or "nobody else is there", *(one.text for one in row)))
    after = [ms for one in cells for ms in one.told_after]
    when = f"Played on {datetime.now(timezone.utc):%Y-%m-%d} with {versions()}."
    how_fast = f"{len(after)} processes were told, {statistics.median(after):.0f} ms (median) and at most"
    lines = [f"| {' | '.join(row)} |" for row in rows]
    return "\n".join([*lines, "", f"{when} {how_fast} {max(after):.0f} ms after the notice was seen.", ""])


def versions() -> str:
    code = "import torch, accelerate; print(f'torch {torch.__version__}, accelerate {accelerate.__version__}')"
    texts = [_output(PYTHON, "-c", code), _output(str(LAB / "torch/bin/uv"), "--version").partition(" (")[0]]
    texts += [
        _output("tini", "--version").partition(" - ")[0].replace("version ", ""),
        _output("dumb-init", "--version"),
    ]
    bash = re.sub(r"GNU bash, version ([\d.]+).*", r"bash \1", _output("bash", "--version").splitlines()[0])
    return ", ".join(
        [f"Python {platform.python_version()}", *texts, bash, f"Linux {platform.release().partition('-')[0]}"]
    )


def _output(*command: str) -> str:
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return (done.stdout or done.stderr).strip()


def _tool(name: str) -> str:
    path = shutil.which(name)
    assert path, f"{name} is missing: make lab"
    return path


def main() -> None:
    pytest_configure()  # the same clean environment
    with tempfile.TemporaryDirectory() as home:
        os.environ.update(XDG_STATE_HOME=home, XDG_RUNTIME_DIR=home)
        with ThreadPoolExecutor(int(sys.argv[1]) if len(sys.argv) > 1 else 1) as pool:
            cells = list(pool.map(lambda cell: played(*cell), CELLS))
    text = TABLE.sub(lambda match: match[1] + table(cells) + match[3], PAGE.read_text())
    PAGE.write_text(text)


if __name__ == "__main__":
    main()
