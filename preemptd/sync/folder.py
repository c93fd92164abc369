"""The directory that is kept at a URL: what is in it, and what it is known to hold."""

import hashlib
import json
import os
import stat
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from fnmatch import fnmatchcase

OURS = ".preemptd"
"""Our directory in there; of it only the records of W&B runs move to another machine."""
MARKER = "sync.json"
UNFINISHED = (".tmp", ".new", ".part", ".partial", ".incomplete", "~")
"""Endings of files that are not complete yet: a checkpoint gets its name by rename."""
LOGS = ("*.log", "*.jsonl", "*.csv", "*.out", "*.err", "*tfevents*")
"""What grows all the time: it goes along as far as it is, and no upload begins, or begins again, because of it."""
CHUNK = 1 << 20


@dataclass(frozen=True, slots=True)
class Found:
    """One file as it is now: another content has another one of these."""

    size: int
    mtime_ns: int
    inode: int
    mode: int = 0o644
    link: str | None = None
    """It is a symbolic link to this."""


State = Mapping[str, Found]
"""By path relative to the directory."""


@dataclass(frozen=True, slots=True)
class Marker:
    """What the directory is known to hold: a generation that was fetched from a URL, or sent there."""

    url: str
    """Its fingerprint: URLs may hold secrets."""
    manifest: str
    files: Mapping[str, tuple[Found, str, str]] = field(default_factory=dict)
    """By path: how the file was then, its hash, where it lies at the URL."""


def is_log(path: str) -> bool:
    name = os.path.basename(path)
    return any(fnmatchcase(name, pattern) for pattern in LOGS)


def without_logs(state: State) -> State:
    return {path: found for path, found in state.items() if not is_log(path)}


def is_empty(state: State) -> bool:
    """Say whether nothing of the user's is there."""
    return all(OURS in path.split("/") for path in state)


def scan(directory: str) -> State:
    """Look at every file that is complete by its name. An absent directory has none. Raises OSError."""
    found: dict[str, Found] = {}
    for folder, folders, names in os.walk(directory, onerror=_unless_gone):
        inside = os.path.relpath(folder, directory)
        parts = [] if inside == "." else inside.split("/")
        links = [name for name in folders if os.path.islink(os.path.join(folder, name))]
        folders[:] = [name for name in folders if name not in links and _is_entered(parts, name)]
        for name in [*names, *links]:
            if _is_taken(parts, name):
                with suppress(FileNotFoundError):  # old checkpoints are removed as new ones come
                    one = _look(os.path.join(folder, name))
                    if one is not None:
                        found["/".join((*parts, name))] = one
    return found


def _is_entered(parts: list[str], name: str) -> bool:
    if parts and parts[-1] == OURS:
        return name == "wandb"
    return name == OURS or _is_complete(name)


def _is_taken(parts: list[str], name: str) -> bool:
    if OURS in parts:
        return parts[-2:] == [OURS, "wandb"] and name.endswith(".json")
    return _is_complete(name)


def _is_complete(name: str) -> bool:
    return not name.startswith(".") and not name.endswith(UNFINISHED)


def _look(path: str) -> Found | None:
    status = os.lstat(path)
    if stat.S_ISLNK(status.st_mode):
        return Found(0, status.st_mtime_ns, status.st_ino, link=os.readlink(path))
    if not stat.S_ISREG(status.st_mode):
        return None
    return Found(status.st_size, status.st_mtime_ns, status.st_ino, stat.S_IMODE(status.st_mode) & 0o777)


def look(directory: str, path: str) -> Found | None:
    """Look at one file; None: it is not there."""
    try:
        return _look(os.path.join(directory, path))
    except (FileNotFoundError, NotADirectoryError):
        return None


def _unless_gone(error: OSError) -> None:
    if not isinstance(error, FileNotFoundError):
        raise error


def sha256_of(path: str) -> str:
    digest = hashlib.sha256()
    for chunk in _chunks(path):
        digest.update(chunk)
    return digest.hexdigest()


def _chunks(path: str) -> Iterator[bytes]:
    with open(path, "rb") as file:
        while chunk := file.read(CHUNK):
            yield chunk


def copy_part(source: str, to: str, size: int) -> None:
    """Copy the first *size* bytes, or what there is of them."""
    with open(to, "wb") as copy:
        for chunk in _chunks(source):
            copy.write(chunk[: size - copy.tell()])
            if copy.tell() >= size:
                return


def fingerprint(url: str) -> str:
    return hashlib.sha256(url.encode(errors="surrogateescape")).hexdigest()[:16]


def read_marker(directory: str, url: str) -> Marker | None:
    """Read what the directory is known to hold of *url*; None: nothing is known."""
    try:
        with open(os.path.join(directory, OURS, MARKER), "rb") as file:
            raw = json.load(file)
        if raw["url"] != fingerprint(url):
            return None
        files = {path: (Found(*about), sha256, name) for path, (about, sha256, name) in raw["files"].items()}
        return Marker(raw["url"], str(raw["manifest"]), files)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None  # what is not understood vouches for nothing: the files' own times decide


def write_marker(directory: str, marker: Marker) -> None:
    """Replace it by rename. Raises OSError."""
    files = {
        path: ((found.size, found.mtime_ns, found.inode, found.mode, found.link), sha256, name)
        for path, (found, sha256, name) in marker.files.items()
    }
    path = os.path.join(directory, OURS, MARKER)
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(f"{path}.new", "w", encoding="ascii") as file:
        json.dump({"preemptd": 1, "url": marker.url, "manifest": marker.manifest, "files": files}, file)
        file.flush()
        os.fsync(file.fileno())
    os.rename(f"{path}.new", path)
