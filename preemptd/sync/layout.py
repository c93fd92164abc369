"""What lies at a URL, and under which names: pure.

claim-EPOCH-WRITER.json               a machine has begun, and is the only one that may write from now on
manifest-EPOCH-WRITER-NUMBER.json     one state of the directory; written when all of its files are there
data/EPOCH-WRITER-NUMBER-TRY/INDEX    the files
"""

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath

from preemptd.errors import PreemptdError

DATA = "data"
FORMAT = 1
_CLAIM = re.compile(r"claim-(\d{6,})-([0-9a-f]{8})\.json")
_MANIFEST = re.compile(r"manifest-(\d{6,})-([0-9a-f]{8})-(\d{8,})\.json")
_FOLDER = re.compile(r"(\d{6,})-([0-9a-f]{8})-(\d{8,})-[0-9a-f]{8}")


class SyncError(PreemptdError):
    """What lies at a URL could not be fetched, or not be brought there; *kind* says to a program what it was."""

    def __init__(self, message: str, kind: str = "store") -> None:
        super().__init__(message)
        self.kind = kind


@dataclass(frozen=True, slots=True, order=True)
class Writer:
    """One `preemptd watch` that writes to a URL. The greatest has begun last, and all others are to stop."""

    epoch: int
    token: str

    @property
    def claim(self) -> str:
        return f"claim-{self.epoch:06d}-{self.token}.json"


@dataclass(frozen=True, slots=True, order=True)
class Generation:
    """One state of the directory; the greatest is the newest, whatever the clocks of its machines say."""

    writer: Writer
    number: int

    @property
    def manifest(self) -> str:
        return f"manifest-{self.writer.epoch:06d}-{self.writer.token}-{self.number:08d}.json"

    def folder(self, attempt: str) -> str:
        """Name where its files go; one *attempt* to send them never writes over what another one sent."""
        return f"{DATA}/{self.writer.epoch:06d}-{self.writer.token}-{self.number:08d}-{attempt}"


@dataclass(frozen=True, slots=True)
class Entry:
    """One file of a generation."""

    path: str
    """Relative to the directory."""
    size: int = 0
    mtime_ns: int = 0
    mode: int = 0o644
    sha256: str = ""
    object: str = ""
    """Where it lies, relative to the URL."""
    link: str | None = None
    """It is a symbolic link to this; None: a file."""


@dataclass(frozen=True, slots=True)
class Manifest:
    """All of one generation."""

    generation: Generation
    files: Sequence[Entry]
    job: str
    attempt: int
    """How often the job had been started before."""
    t: float
    """time.time() when it was written."""

    @property
    def size(self) -> int:
        return sum(entry.size for entry in self.files)


@dataclass(frozen=True, slots=True)
class Contents:
    """What a listing of the URL shows."""

    claims: Sequence[Writer]
    generations: Sequence[Generation]
    """The newest first."""

    @property
    def last_writer(self) -> Writer | None:
        return max([*self.claims, *(generation.writer for generation in self.generations)], default=None)

    @property
    def next_number(self) -> int:
        return 1 + max((generation.number for generation in self.generations), default=0)


def contents(names: Iterable[str]) -> Contents:
    claims, generations = [], []
    for name in names:
        if match := _CLAIM.fullmatch(name):
            claims.append(Writer(int(match[1]), match[2]))
        elif match := _MANIFEST.fullmatch(name):
            generations.append(Generation(Writer(int(match[1]), match[2]), int(match[3])))
    return Contents(claims, sorted(generations, reverse=True))


def owner(name: str) -> Generation | None:
    """Say whose *name*, relative to the URL, is; None: it is none of our data."""
    parts = name.split("/")
    match = _FOLDER.fullmatch(parts[1]) if len(parts) == 3 and parts[0] == DATA else None
    return Generation(Writer(int(match[1]), match[2]), int(match[3])) if match else None


def encode(manifest: Manifest) -> bytes:
    files = [
        {"path": entry.path, "link": entry.link}
        if entry.link is not None
        else {
            "path": entry.path,
            "size": entry.size,
            "mtime_ns": entry.mtime_ns,
            "mode": entry.mode,
            "sha256": entry.sha256,
            "object": entry.object,
        }
        for entry in manifest.files
    ]
    about = {
        "preemptd": FORMAT,
        "generation": manifest.generation.number,
        "job": manifest.job,
        "attempt": manifest.attempt,
        "t": manifest.t,
    }
    return json.dumps({**about, "files": files}, indent=1).encode()


def decode(generation: Generation, text: bytes) -> Manifest:
    """Read a manifest. Raises ValueError: it is torn, or nothing that we would write."""
    try:
        raw = json.loads(text)
    except RecursionError as error:
        raise ValueError("nested too deeply") from error
    if not isinstance(raw, dict) or raw.get("preemptd") != FORMAT or raw.get("generation") != generation.number:
        raise ValueError("not a manifest of this generation")
    try:
        files = [_entry(each) for each in raw["files"]]
        return Manifest(generation, files, str(raw["job"]), int(raw["attempt"]), float(raw["t"]))
    except (KeyError, TypeError) as error:
        raise ValueError(f"not as it should be: {error}") from error


def _entry(raw: Mapping[str, object]) -> Entry:
    path, link = str(raw["path"]), raw.get("link")
    parts = PurePosixPath(path).parts
    if not parts or parts[0] == "/" or ".." in parts or "\0" in path:
        raise ValueError(f"{path!r} lies outside of the directory")
    if link is not None:
        return Entry(path, link=str(link))
    size, mtime_ns, mode = (int(str(raw[name])) for name in ("size", "mtime_ns", "mode"))
    name = str(raw["object"])
    if owner(name) is None:
        raise ValueError(f"{name!r} is no data of ours")
    return Entry(path, size, mtime_ns, mode & 0o777, str(raw["sha256"]), name)
