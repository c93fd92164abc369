"""How a run of a preempted training ended, and what that calls for. Pure, but for `left_behind`, which reads files."""

import os
import re
from dataclasses import dataclass
from enum import Enum

from preemptd.runs import transaction_log
from preemptd.runs.roster import Entry

_INTERNAL_LOG_TAIL = 64 * 2**10
# 0.31 says the first, 0.19 and 0.22 the second, when everything is at the server (or, offline, in the log).
_CLOSED = ("stream: all finished", "stream: closed")
_SENT = re.compile(r'"filestream: sending request"[^\n]*"complete":true.*"filestream: request sent"', re.DOTALL)


class Action(Enum):
    """What is to be done."""

    NOTHING = "nothing"
    REPAIR = "repair"
    """Tell the server."""
    AMEND = "amend"
    """Write it into the log, for ``wandb sync``."""
    GIVE_UP = "give up"


@dataclass(frozen=True, slots=True)
class Left:
    """What a run has left behind."""

    offline: bool
    marked: bool
    code: int | None
    """None: no exit record is on disk, so it was killed, or its wandb-core was."""
    delivered: bool
    """wandb-core has sent all that it had."""
    entity: str = ""
    project: str = ""
    has_run: bool = True
    final: bool = False
    why: str | None = None
    """Why nobody can know all that; None: it is known."""


@dataclass(frozen=True, slots=True)
class Decision:
    """What to do, with what exit code, and why."""

    action: Action
    code: int | None
    why: str


def decide(left: Left, code: int) -> Decision:
    """Decide on one run of a training that was preempted: it has to be marked, and to end with a code that is not 0.

    Args:
        left: what it has left behind.
        code: what a run gets that has no code, or 0.
    """
    if left.why is not None:
        return Decision(Action.GIVE_UP, None, left.why)
    wanted = left.code or code
    if left.offline:
        if not left.has_run:
            return Decision(Action.GIVE_UP, left.code, "offline, and nothing of it had reached the disk")
        if left.code and left.marked and left.final:
            return Decision(Action.NOTHING, left.code, "its log says that it was preempted")
        return Decision(Action.AMEND, wanted, _reason(left))
    if left.code and left.marked and left.delivered:
        return Decision(Action.NOTHING, left.code, "it reported its end itself")
    return Decision(Action.REPAIR, wanted, _reason(left))


def _reason(left: Left) -> str:
    if left.code is None:
        return "it was killed before it could report an exit code"
    if left.code == 0:
        return "it reported exit code 0"
    if not left.marked:
        return "it was not marked preempting"
    return "its log lacks what wandb sync needs" if left.offline else "its wandb-core ended before it had sent all"


def left_behind(entry: Entry) -> Left:
    """Read what the run of *entry* has left in its directory. Its wandb-core should have ended."""
    run = entry.run
    offline = os.path.basename(run.directory).startswith("offline-")
    try:
        log = transaction_log.summarize(entry.log)
    except FileNotFoundError:
        return Left(offline, entry.marked, None, False, why="it has no transaction log: how it ended is not known")
    except OSError as error:
        return Left(offline, entry.marked, None, False, why=f"its transaction log cannot be read: {error.strerror}")
    except ValueError as error:
        return Left(offline, entry.marked, None, False, why=f"its transaction log cannot be read: {error}")
    # An answer to a mark that came after the exit says nothing: wandb-core has not told the server, and may not even
    # have written it down. Where the exit is in the log, all that came before it is.
    marked = log.preempting or (entry.marked and not offline and log.exit_code is None)
    delivered = _has_delivered(f"{entry.directory}/logs/debug-internal.log")
    return Left(offline, marked, log.exit_code, delivered, log.entity, log.project, log.has_run, log.final)


def _has_delivered(path: str) -> bool:
    """Say whether wandb-core wrote that it is done; also where nobody can know: what may be right is not repaired."""
    try:
        with open(path, "rb", opener=transaction_log.open_plain) as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - _INTERNAL_LOG_TAIL))
            text = file.read(_INTERNAL_LOG_TAIL).decode(errors="replace")
    except (OSError, ValueError):
        return True
    return any(words in text for words in _CLOSED) or _SENT.search(text) is not None
