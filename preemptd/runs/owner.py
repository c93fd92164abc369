"""What must be remembered of the process that owns a W&B run while it lives: /proc has nothing of it afterwards."""

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from preemptd.model import ProcessId, Run
from preemptd.procfs import process_id

_IDENTITIES = re.compile(r"^(Uid|Gid|Groups|CapEff):\t(.*)$", re.MULTILINE)
_NAMESPACES = ("mnt", "pid", "user", "net")
_ENVIRONMENT_ROOTS = (b"VIRTUAL_ENV", b"CONDA_PREFIX")


@dataclass(frozen=True, slots=True)
class Rights:
    """As whom a process acts."""

    uid: int
    gid: int
    groups: frozenset[int]
    capabilities: int
    split: bool
    """Real and effective ids differ: it has the rights of two users."""


@dataclass(frozen=True, slots=True)
class Owner:
    """Who called wandb.init, and how it would be called again in the same place and as the same user."""

    process: ProcessId
    core: ProcessId
    rights: Rights
    cwd: str
    environment: Mapping[bytes, bytes] = field(repr=False)
    """As it was when wandb-core started: what the script itself has set is in it. Holds the API key: never shown."""
    interpreter: str | None
    """A path by which its interpreter finds the same packages; None: none was found."""
    packages: str | None
    """The directory that its wandb was imported from."""
    confined: bool
    """It lives in namespaces of its own (a container): the interpreter, home and rights of there are not ours."""
    directory: int | None = None
    """A descriptor of the run's directory where our own path would not lead to it, now or later; to be closed."""

    def lives(self) -> bool:
        return process_id(self.process.pid) == self.process

    def core_lives(self) -> bool:
        return process_id(self.core.pid) == self.core


def capture(run: Run) -> Owner | None:
    """Read all that; None: the process or its wandb-core is gone. Raises PermissionError: they are another user's."""
    process, core = process_id(run.owner_pid), process_id(run.core_pid)
    if process is None or core is None:
        return None
    try:
        confined = not _shares_our_namespaces(process.pid)
        # wandb-core gets a copy of os.environ; the owner's own file has what it was started with.
        environment = _environment(core.pid) or _environment(process.pid)
        owner = Owner(
            process,
            core,
            rights_of(process.pid),
            os.readlink(f"/proc/{process.pid}/cwd"),
            environment,
            _interpreter(process.pid, environment),
            _packages(core.pid),
            confined,
            _hold(core.pid, run.directory) if confined else None,
        )
    except PermissionError:
        raise
    except (OSError, ValueError):
        return None
    return owner


def rights_of(pid: int | str) -> Rights:
    """Read as whom *pid* acts (``self``: we). Raises OSError, and ValueError where /proc/PID/status lacks it."""
    with open(f"/proc/{pid}/status", encoding="utf-8", errors="replace") as file:
        found = dict(_IDENTITIES.findall(file.read()))
    if not found.keys() >= {"Uid", "Gid", "Groups", "CapEff"}:
        raise ValueError(f"/proc/{pid}/status does not say whose it is")
    uids, gids = ({int(word) for word in found[name].split()} for name in ("Uid", "Gid"))
    uid, gid = (int(found[name].split()[1]) for name in ("Uid", "Gid"))
    groups = frozenset(int(word) for word in found["Groups"].split())
    return Rights(uid, gid, groups, int(found["CapEff"], 16), len(uids) > 1 or len(gids) > 1)


def _hold(core_pid: int, directory: str) -> int:
    return os.open(f"/proc/{core_pid}/root{directory}", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)


def _shares_our_namespaces(pid: int) -> bool:
    return all(
        os.stat(f"/proc/{pid}/ns/{name}").st_ino == os.stat(f"/proc/self/ns/{name}").st_ino for name in _NAMESPACES
    )


def _environment(pid: int) -> Mapping[bytes, bytes]:
    with open(f"/proc/{pid}/environ", "rb") as file:
        pairs = (item.partition(b"=") for item in file.read().split(b"\0"))
        return {name: value for name, equals, value in pairs if name and equals}


def _interpreter(pid: int, environment: Mapping[bytes, bytes]) -> str | None:
    """Find a name of the program that *pid* runs, by which it finds its packages.

    The python of a venv is a link: /proc/PID/exe is the base installation's, which knows nothing of the venv. What was
    typed is in the command line, unless the program has changed its title.
    """
    program = os.stat(f"/proc/{pid}/exe")
    with open(f"/proc/{pid}/cmdline", "rb") as file:
        typed = file.read().split(b"\0")[0]
    cwd = os.fsencode(os.readlink(f"/proc/{pid}/cwd"))
    candidates = _candidates(typed, cwd, environment, os.fsencode(os.readlink(f"/proc/{pid}/exe")))
    return next((os.fsdecode(candidate) for candidate in candidates if _is(candidate, program)), None)


def _is(path: bytes, program: os.stat_result) -> bool:
    try:
        return os.path.samestat(os.stat(path), program)
    except (OSError, ValueError):
        return False


def _candidates(typed: bytes, cwd: bytes, environment: Mapping[bytes, bytes], exe: bytes) -> Iterator[bytes]:
    if b"/" in typed:
        yield os.path.join(cwd, typed)
    elif typed:
        for directory in environment.get(b"PATH", os.fsencode(os.defpath)).split(b":"):
            yield os.path.join(cwd, directory, typed)
    for name in _ENVIRONMENT_ROOTS:
        if root := environment.get(name):
            yield os.path.join(root, b"bin", b"python")
    yield exe


def _packages(core_pid: int) -> str | None:
    """wandb-core is the file PACKAGES/wandb/bin/wandb-core."""
    parts: Sequence[str] = os.readlink(f"/proc/{core_pid}/exe").split("/")
    return "/".join(parts[:-3]) or None if parts[-3:-1] == ["wandb", "bin"] else None
