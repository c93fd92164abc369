"""Whether a W&B API key lies where wandb looks for it: yes or no, and nothing of the key itself is kept or said."""

import netrc
import os
import pwd
import stat
from collections.abc import Iterator, Mapping, Sequence
from urllib.parse import urlsplit

_IN_ENVIRONMENT = ("WANDB_API_KEY", "WANDB_IDENTITY_TOKEN_FILE")
_DEFAULT_URL = "https://api.wandb.ai"


def has_key(pid: int, uid: int | None, environs: Sequence[Mapping[str, str]]) -> bool:
    """Look into *environs* and into the netrc file of *pid*'s user, as *pid* sees the file system.

    Args:
        pid: the process that called wandb.init.
        uid: its user; None: unknown.
        environs: what it, and then the service that it started later, were started with.
    """
    if any(environ.get(name) for environ in environs for name in _IN_ENVIRONMENT):
        return True
    environ = {name: value for one in environs for name, value in one.items()}
    return any(_names(path, _hosts(environ)) for path in _netrc_files(pid, uid, environ))


def _hosts(environ: Mapping[str, str]) -> set[str]:
    """Name the server as wandb writes it into a netrc file: up to 0.19 without its port."""
    try:
        url = urlsplit(environ.get("WANDB_BASE_URL") or _DEFAULT_URL)
        hosts = {url.netloc, url.hostname or ""}
    except ValueError:
        return set()
    return hosts - {""}


def _netrc_files(pid: int, uid: int | None, environ: Mapping[str, str]) -> Iterator[str]:
    home = environ.get("HOME") or _home(uid)
    named = environ.get("NETRC")
    paths = [named.replace("~", home, 1) if named.startswith("~/") else named] if named else []
    paths = paths or [f"{home}/.netrc", f"{home}/_netrc"]
    for path in paths:
        yield f"/proc/{pid}/root{path}" if path.startswith("/") else f"/proc/{pid}/cwd/{path}"


def _home(uid: int | None) -> str:
    try:
        return pwd.getpwuid(os.getuid() if uid is None else uid).pw_dir
    except KeyError:
        return "/"


def _names(path: str, hosts: set[str]) -> bool:
    """Say whether the file has a password for one of *hosts*. Its errors quote what it holds: they stay here."""
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):
            return False
        entries = netrc.netrc(path)
        return any((found := entries.authenticators(host)) is not None and bool(found[2]) for host in hosts)
    except (OSError, netrc.NetrcParseError, UnicodeDecodeError):
        return False
