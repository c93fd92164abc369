"""The table of endings in docs/wandb.md: `python -m tests.lab.ending_table` plays the whole matrix and writes it."""

import os
import re
import statistics
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path

from tests.conftest import ROOT, WandbPythons, pytest_configure
from tests.lab.wandb_backend import WandbBackend
from tests.lab.wandb_ending import WAYS, Ending
from tests.lab.wandb_watching import VERSIONS

PAGE = ROOT / "docs" / "wandb.md"
TABLE = re.compile(r"(<!-- endings -->\n)(.*?)(<!-- /endings -->)", re.DOTALL)
IN_WORDS = {
    "falls_off": "the end of the file",
    "sys_exit_0": "`sys.exit(0)`",
    "finish_then_143": "`run.finish()`, then `sys.exit(143)`",
    "early_sys_exit": "`sys.exit` imported by name before `wandb.init`, called with 143",
    "raise_system_exit": "`raise SystemExit(143)`",
    "builtin_exit": "the builtin `exit(3)`",
    "sys_exit_143": "`sys.exit(143)`",
    "finish_143": "`run.finish(exit_code=143)`",
    "exception": "an uncaught exception",
    "with_block": "`with wandb.init()` left by `sys.exit(0)`",
    "interrupt": "`KeyboardInterrupt`",
    "os_exit": "`os._exit(143)`",
    "uncaught TERM": "SIGTERM without a handler",
    "uncaught KILL": "SIGKILL",
    "uncaught TERM, wandb-core too": "SIGTERM to the whole control group",
}


@dataclass(frozen=True)
class Played:
    """One cell."""

    status: int
    before: Sequence[int]
    """Exit codes that the backend had when the process had ended."""
    after: Sequence[int]
    marked: bool
    took: float | None
    """Milliseconds of the repair; None: there was none."""

    @property
    def text(self) -> str:
        if not self.marked or not self.after or not self.after[-1]:
            return "FAILED"
        before = str(self.before[-1]) if self.before else "nothing"
        return before if self.took is None else f"{before}, then **{self.after[-1]}**"


def play(way: str, python: str) -> Played:
    with WandbBackend() as backend, tempfile.TemporaryDirectory() as directory:
        ending = Ending(python, way, backend.env(), Path(directory))
        try:
            run_id = ending.wait_ready()
            ending.mark()
            status = ending.end()
            before = backend.exit_codes(run_id)
            repair = ending.mend()
            took = None if repair.how == "nothing" else repair.ms
            return Played(status, before, backend.exit_codes(run_id), bool(backend.preempting(run_id)), took)
        finally:
            ending.close()


def table(cells: Mapping[tuple[str, str], Played]) -> str:
    rows = [("end of the script", "status", *(f"W&B hears, {version}" for version in VERSIONS))]
    rows.append(("---",) * len(rows[0]))
    for way in WAYS:
        status = cells[way, VERSIONS[0]].status
        shown = str(status) if status >= 0 else f"signal {-status}"
        rows.append((IN_WORDS[way], shown, *(cells[way, version].text for version in VERSIONS)))
    took = sorted(cell.took for cell in cells.values() if cell.took is not None)
    figures = f"{statistics.median(took) / 1000:.1f} s (median) and at most {took[-1] / 1000:.1f} s"
    when = f"Played on {datetime.now(timezone.utc):%Y-%m-%d}, everything on one machine with 2 cores."
    lines = [f"| {' | '.join(row)} |" for row in rows]
    return "\n".join([*lines, "", f"{when} A repair took {figures}.", ""])


def main() -> None:
    pytest_configure()  # the same clean environment
    pythons = WandbPythons()
    cells = {}
    with tempfile.TemporaryDirectory() as home:
        os.environ.update({f"WANDB_{name}_DIR": home for name in ("CACHE", "CONFIG", "DATA")})
        for version in VERSIONS:
            for way in WAYS:
                cells[way, version] = play(way, pythons[version])
                print(f"{version}, {way}: {cells[way, version].text}", file=sys.stderr)
    text = TABLE.sub(lambda match: match[1] + table(cells) + match[3], PAGE.read_text())
    PAGE.write_text(text)


if __name__ == "__main__":
    main()
