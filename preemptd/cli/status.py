"""`preemptd status`."""

import glob
import json
import os
import socket
from collections.abc import Mapping
from typing import Annotated

import typer

from preemptd.cli.environment import link_directory, state_directory
from preemptd.cli.history import end, when
from preemptd.errors import ConfigError
from preemptd.link.peer import credentials
from preemptd.log import printable
from preemptd.observe.history import Entry, last_of_each
from preemptd.observe.history_file import NAME, lives, read

ANSWER_WITHIN = 2.0
_OF_UNITS = "/run/preemptd*/link.sock"
"""Where the daemons of our systemd units listen."""
SHOWN = 3
"""Past notices of one preemptd."""


def status(
    link: Annotated[
        str | None,
        typer.Option(metavar="PATH", help="Socket of the preemptd to ask. Default: $PREEMPTD_LINK, else all."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object a line.", show_default=False)] = False,
) -> int:
    """Ask a running preemptd what it watches, whom it would tell, and what is announced."""
    from preemptd.config import PREFIX

    wish = link or os.environ.get(f"{PREFIX}LINK")
    paths = [wish] if wish else links(os.environ)
    answers = [answer for path in paths if (answer := ask(path, must=bool(wish))) is not None]
    if not answers:
        raise ConfigError("no preemptd of yours runs here (it listens at --link PATH, if you gave it one)")
    for answer in answers:
        full = {**answer, "past": past(answer)}
        print(json.dumps(full) if as_json else words(full))
    return 0


def links(environ: Mapping[str, str]) -> list[str]:
    """List where preemptds listen whose path nobody chose, and those of systemd's units."""
    return [*sockets(link_directory(environ)), *sorted(glob.glob(_OF_UNITS))]


def sockets(directory: str) -> list[str]:
    try:
        return sorted(os.path.join(directory, name) for name in os.listdir(directory) if name.endswith(".sock"))
    except OSError:
        return []


def ask(path: str, *, must: bool) -> dict[str, object] | None:
    """Ask the daemon at *path*; None: nobody is there, and *must* is not set.

    Raises:
        ConfigError: it does not answer.
    """
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
            sock.settimeout(ANSWER_WITHIN)
            sock.connect(path)
            sock.sendall(b'{"v": 1, "verb": "status"}\n')
            with sock.makefile("rb") as lines:
                answer: object = json.loads(lines.readline())
            preemptd, _ = credentials(sock)
    except (OSError, ValueError) as error:
        if must:
            raise ConfigError(f"no preemptd answers at {path}: {error}") from error
        return None
    if not isinstance(answer, dict) or answer.get("type") != "status":
        raise ConfigError(f"{path} does not answer as preemptd does: {str(answer)[:100]}")
    return {"link": path, "preemptd": preemptd, **answer}


def words(answer: Mapping[str, object]) -> str:
    ended = f" (has ended: {answer['waiting']})" if answer.get("waiting") else ""
    lines = [f"pid {answer['pid']}{' (held back)' if answer['held'] else ended}, link {answer['link']}"]
    lines += [f"  target {target.get('name')}: {_target(target)}" for target in _list(answer.get("targets"))]
    for watch in _list(answer["watches"]):
        age = "no good answer yet" if watch["last_good_s"] is None else f"{watch['last_good_s']} s ago"
        lines.append(f"  watch {watch['watch']}: {watch['state'] or 'not asked yet'}, last good answer: {age}")
    silent = [name for name in _names(answer["providers"]) if not _has_watch(name, answer)]
    lines += [f"  provider {name}: hears of it by signal" for name in silent]
    if not answer["providers"]:
        lines.append("  no provider: nothing announces preemptions here (preemptd providers)")
    tell = [f"pid {choice['pid']} ({choice['how']})" for choice in _list(answer["would_tell"])]
    if nodes := answer.get("nodes"):
        tell.append(f"the ranks on {nodes} node{'s' * (nodes != 1)}, by preemptd's step there")
    lines.append(f"  would tell: {', '.join(tell) or 'nobody'}")
    lines.append(f"  W&B runs: {', '.join(_names(answer['runs'])) or 'none'}")
    lines += [
        f"  NOTICE {notice['event_id']}: {notice['kind']} in {notice['remaining']} s;"
        f" {answer['told']} told, {answer['saved']} saved"
        for notice in _list(answer["notices"])
    ]
    lines += [f"  advice {one['event_id']}: {one['kind']}, {_date(one)}" for one in _list(answer.get("advice"))]
    lines += [f"  past notice: {_past(entry)}" for entry in _list(answer.get("past"))]
    return "\n".join(printable(line) for line in lines)


def _date(advice: Mapping[str, object]) -> str:
    return "no date is named" if advice.get("remaining") is None else f"in {advice['remaining']} s"


def _target(target: Mapping[str, object]) -> str:
    pids = target.get("pids")
    numbers = ", ".join(str(pid) for pid in pids) if isinstance(pids, list) else ""
    return f"{target.get('state')}{f' (pid {numbers})' if numbers else ''}"


def _has_watch(provider: str, answer: Mapping[str, object]) -> bool:
    return any(str(watch["watch"]).partition(":")[0] == provider for watch in _list(answer["watches"]))


def _past(entry: Mapping[str, object]) -> str:
    told = f"{entry.get('marked')} marked, {entry.get('told')} told, {entry.get('saved')} saved"
    return f"{when(entry.get('t'))} {entry.get('provider')} {entry.get('kind')}; {told}; {end(entry)}"


def past(answer: Mapping[str, object]) -> list[Entry]:
    """Find the last notices that are over for the preemptd that gave *answer*."""
    state, preemptd = answer.get("state_dir"), answer.get("preemptd")
    own = f"/proc/{preemptd}/cwd"  # where it has a relative path from
    directory = os.path.join(own, state) if isinstance(state, str) else state_directory(os.environ, None)
    try:
        entries = last_of_each(read(os.path.join(directory, NAME)))
    except OSError:
        return []  # it is another user's, say: the answer itself is what was asked for
    return [entry for entry in entries if entry.get("end") and _is_by(entry, preemptd)][-SHOWN:]


def _is_by(entry: Entry, pid: object) -> bool:
    by = entry.get("by")
    return isinstance(by, dict) and by.get("pid") == pid and lives(by)


def _list(value: object) -> list[dict[str, object]]:
    return [item for item in value if isinstance(item, dict)] if isinstance(value, list) else []


def _names(value: object) -> list[str]:
    return [str(item) for item in value] if isinstance(value, list) else []
