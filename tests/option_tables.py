"""The tables of options in the Markdown files, made from `--help`: `python -m tests.option_tables` writes them anew.

A table stands between `<!-- options:COMMAND -->` and `<!-- /options -->`.
"""

import os
import re
import subprocess
import sys
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
TABLE = re.compile(r"(<!-- options:([\w-]+) -->\n).*?(<!-- /options -->)", re.DOTALL)


def opening(command: str) -> str:
    return f"<!-- options:{command} -->"


@cache
def help_of(command: str) -> str:
    """Run the real program."""
    environ = {**os.environ, "COLUMNS": "100", "TERM": "dumb", "NO_COLOR": "1"}
    command_line = [sys.executable, "-m", "preemptd", command, "--help"]
    return subprocess.run(command_line, env=environ, capture_output=True, text=True, check=True).stdout


def options(text: str) -> list[tuple[str, str]]:
    """Read (`--name METAVAR`, meaning) out of the output of --help; a meaning may go on over several lines."""
    found: list[tuple[str, str]] = []
    for line in text.partition("\nOptions:\n")[2].splitlines():
        start = re.match(r" {2,4}(-\S+(?: \S+)*)(?: {2,}(.*))?$", line)
        if start:
            found.append((start[1], start[2] or ""))
        elif found and re.match(r" {6,}\S", line):
            name, meaning = found[-1]
            gap = "" if re.search(r"\w-$", meaning) else " "  # a line may end within a hyphenated word
            found[-1] = (name, f"{meaning}{gap}{line.strip()}".strip())
    return [(name, re.sub(r" {2,}", " ", meaning)) for name, meaning in found if name != "--help"]


def table(command: str) -> str:
    rows = [f"| `{_cell(name)}` | {_cell(meaning)} |" for name, meaning in options(help_of(command))]
    return "\n".join(["| option | meaning |", "|---|---|", *rows, ""])


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def renewed(text: str) -> str:
    """Return *text*, a Markdown file, with each of its tables as --help says it now."""
    return TABLE.sub(lambda match: match[1] + table(match[2]) + match[3], text)


def main() -> None:
    for page in [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")]:
        page.write_text(renewed(page.read_text()))


if __name__ == "__main__":
    main()
