"""The table of endings in docs/wandb.md, made from what the exit matrix has seen (test_wandb_exits.py).

`make soak ARGS='--junitxml=endings.xml -n 3 tests/lab/test_wandb_exits.py'`, and then
`python -m tests.lab.ending_table endings.xml`.
"""

import json
import re
import statistics
import sys
from collections import defaultdict
from collections.abc import Mapping, Sequence
from datetime import datetime, timezone
from typing import Any
from xml.etree import ElementTree as ET

from tests.conftest import ROOT
from tests.lab.wandb_ending import WAYS
from tests.lab.wandb_watching import VERSIONS

PAGE = ROOT / "docs" / "wandb.md"
TABLE = re.compile(r"(<!-- endings -->\n)(.*?)(<!-- /endings -->)", re.DOTALL)
PROPERTY = "played"
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
Cell = Mapping[str, Any]
"""What a test has recorded: the fields of `Exit` and of `Played`."""


def read(path: str) -> Sequence[Cell]:
    """Read a JUnit report. Raises ValueError if a cell in it has failed."""
    cells = []
    for case in ET.parse(path).getroot().iter("testcase"):
        if case.find("failure") is not None or case.find("error") is not None:
            raise ValueError(f"{case.get('name')} has failed")
        values = [item.get("value") or "" for item in case.iter("property") if item.get("name") == PROPERTY]
        cells += [json.loads(value) for value in values]
    return cells


def text_of(cell: Cell) -> str:
    *before, last = cell["codes"] or ["nothing"]
    if not any(how != "nothing" for how, _ in cell["repairs"]):
        return str(last)
    return f"{before[-1] if before else 'nothing'}, then **{last}**"


def table(cells: Sequence[Cell]) -> str:
    """Make it; a field names several results if the ways of being told differ in them."""
    found: dict[tuple[str, str], set[str]] = defaultdict(set)
    for cell in cells:
        column = cell["version"] if cell["policy"] == "preempted" else "done"
        found[cell["way"], column].add(text_of(cell))
    own = {cell["way"]: cell["own"] for cell in cells}
    columns = [*(f"W&B hears, {version}" for version in VERSIONS), "with `--exit-zero done`"]
    rows: list[Sequence[str]] = [("end of the script", "exit status", *columns), ("---",) * 6]
    for way in WAYS:
        heard = [" or ".join(sorted(found[way, column])) for column in (*VERSIONS, "done")]
        rows.append((IN_WORDS[way], str(own[way]), *heard))
    took = sorted(cell["took"] / 1000 for cell in cells if cell["took"])
    when = f"{len(cells)} endings played on {datetime.now(timezone.utc):%Y-%m-%d}, on one busy machine with 2 cores"
    figures = f"a repair took {statistics.median(took):.1f} s (median) and at most {took[-1]:.1f} s"
    return "\n".join([*(f"| {' | '.join(row)} |" for row in rows), "", f"{when}; {figures}.", ""])


def main() -> None:
    cells = read(sys.argv[1])
    PAGE.write_text(TABLE.sub(lambda match: match[1] + table(cells) + match[3], PAGE.read_text()))


if __name__ == "__main__":
    main()
