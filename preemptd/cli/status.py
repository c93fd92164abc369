"""`preemptd status`."""

import json
import os
import socket
from typing import Annotated

import typer

from preemptd.cli.environment import link_directory
from preemptd.errors import ConfigError
from preemptd.link.peer import credentials

ANSWER_WITHIN = 2.0


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
    paths = [wish] if wish else sockets(link_directory(os.environ))
    answers = [answer for path in paths if (answer := ask(path, must=bool(wish))) is not None]
    if not answers:
        raise ConfigError("no preemptd of yours runs here (it listens at --link PATH, if you gave it one)")
    for answer in answers:
        print(json.dumps(answer) if as_json else words(answer))
    return 0


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


def words(answer: dict[str, object]) -> str:
    lines = [f"pid {answer['pid']}{' (held back)' if answer['held'] else ''}, link {answer['link']}"]
    for watch in _list(answer["watches"]):
        age = "no good answer yet" if watch["last_good_s"] is None else f"{watch['last_good_s']} s ago"
        lines.append(f"  watch {watch['watch']}: {watch['state'] or 'not asked yet'}, last good answer: {age}")
    tell = [f"pid {choice['pid']} ({choice['how']})" for choice in _list(answer["would_tell"])]
    lines.append(f"  would tell: {', '.join(tell) or 'nobody'}")
    runs = answer["runs"]
    lines.append(f"  W&B runs: {', '.join(map(str, runs)) if isinstance(runs, list) and runs else 'none'}")
    lines += [
        f"  NOTICE {notice['event_id']}: {notice['kind']} in {notice['remaining']} s;"
        f" {answer['told']} told, {answer['saved']} saved"
        for notice in _list(answer["notices"])
    ]
    return "\n".join(lines)


def _list(value: object) -> list[dict[str, object]]:
    return [item for item in value if isinstance(item, dict)] if isinstance(value, list) else []
