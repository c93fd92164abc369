"""`preemptd history`."""

import json
import os
from collections.abc import Callable, Sequence
from datetime import datetime
from typing import Annotated

import typer

from preemptd.cli import options
from preemptd.cli.environment import state_directory
from preemptd.errors import ConfigError
from preemptd.log import printable
from preemptd.observe.history import Entry, Story, last_of_each, number
from preemptd.observe.history_file import NAME, lines_of, lives, read

LONGEST_JOB = 32
HEADINGS = ("when", "provider", "kind", "grace", "marked", "told", "saved", "to spare", "job", "end")


def history(
    journal: Annotated[
        str | None,
        typer.Option(metavar="FILE", help="Read this journal. Default: history.jsonl in the state directory."),
    ] = None,
    state_dir: options.StateDir = None,
    last: Annotated[int, typer.Option(metavar="N", help="The last N notices.")] = 20,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object a line.", show_default=False)] = False,
) -> int:
    """Show the notices of the past: how long it took to mark, to tell and to save, what was left, how it ended."""
    from preemptd.config import PREFIX

    if last < 1:
        raise ConfigError(f"--last {last}: a number from 1 on")
    wish = state_dir or os.environ.get(f"{PREFIX}STATE_DIR")
    path = journal or os.path.join(state_directory(os.environ, wish), NAME)
    entries = (from_journal(path) if journal else from_state(path))[-last:]
    if as_json:
        for entry in entries:
            print(json.dumps(entry))
    elif entries:
        print(table(entries))
    else:
        print(f"no notice was acted on, says {printable(path)}")
    return 0


def from_state(path: str) -> list[Entry]:
    """Read what was kept at *path*; an entry without an end is open, or was cut off with its preemptd.

    Raises:
        ConfigError: it cannot be read.
    """
    try:
        found = last_of_each(read(path))
    except OSError as error:
        raise ConfigError(f"history {path} cannot be read: {error.strerror}") from error
    return [entry if entry.get("end") else {**entry, "end": _without_end(entry)} for entry in found]


def _without_end(entry: Entry) -> str:
    return "open" if lives(entry.get("by")) else "cut off"


def from_journal(path: str) -> list[Entry]:
    """Make the entries out of a journal.

    Raises:
        ConfigError: it cannot be read.
    """
    story, found = Story({}), []
    try:
        with open(path, "rb") as file:
            found = [entry for line in lines_of(file) if (entry := story.take(line)) is not None]
    except OSError as error:
        raise ConfigError(f"journal {path} cannot be read: {error.strerror}") from error
    left = story.close()
    every = last_of_each([*found, *([left] if left else [])])
    return [entry if entry.get("end") else {**entry, "end": "cut off"} for entry in every]


def table(entries: Sequence[Entry]) -> str:
    rows = [HEADINGS, *(row(entry) for entry in entries)]
    widths = [max(len(cells[column]) for cells in rows) for column in range(len(HEADINGS) - 1)]
    lines = []
    for cells in rows:
        padded = [cell.ljust(width) for cell, width in zip(cells, widths, strict=False)]
        lines.append("  ".join((*padded, cells[-1])).rstrip())
    return "\n".join(lines)


def row(entry: Entry) -> tuple[str, ...]:
    job = str(entry.get("job_id") or entry.get("command") or "-")
    cells = (
        when(entry.get("t")),
        str(entry.get("provider")),
        str(entry.get("kind")),
        _seconds(entry.get("grace")),
        _counted(entry, "marked", "mark_s"),
        _counted(entry, "told", "tell_s"),
        _counted(entry, "saved", "save_s"),
        _seconds(entry.get("spare_s")),
        job if len(job) <= LONGEST_JOB else job[: LONGEST_JOB - 1] + "…",
        end(entry),
    )
    return tuple(printable(cell) for cell in cells)


def end(entry: Entry) -> str:
    """Say how it ended."""
    ways: dict[str, Callable[[], str]] = {
        "open": lambda: "still open",
        "cut off": lambda: "no end is known: preemptd was killed",
        "revoked": lambda: "taken back",
        "stopped": lambda: f"still open when preemptd ended: {entry.get('why')}",
        "settled": lambda: f"exit {entry.get('status')}: {entry.get('why')}",
    }
    return ways.get(str(entry.get("end")), lambda: str(entry.get("end")))()


def when(t: object) -> str:
    """Write a time.time() as people here do."""
    try:
        return datetime.fromtimestamp(number(t)).astimezone().strftime("%Y-%m-%d %H:%M:%S")
    except (ValueError, OverflowError, OSError):  # no time that a calendar knows
        return "?"


def _counted(entry: Entry, count: str, last: str) -> str:
    times = int(number(entry.get(count)))
    return f"{times} in {_seconds(entry.get(last))}" if times else "-"


def _seconds(value: object) -> str:
    if value is None:
        return "-"
    seconds = number(value)
    return f"{seconds * 1000:.0f} ms" if 0 < seconds < 1 else f"{seconds:.1f} s"
