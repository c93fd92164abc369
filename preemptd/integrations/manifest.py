"""What makes a checkpoint whole: the list of its files, with their hashes and its own; pure, standard library only."""

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import NamedTuple

from preemptd.errors import PreemptdError

FORMAT = 1
SHARED = "shared.pt"
LONGEST_RUN_ID = 128
NOT_IN_RUN_IDS = frozenset("/\\#?%:")  # W&B's own rule


class CheckpointError(PreemptdError):
    """A checkpoint cannot be written or loaded; those that were there before are still there."""


class Fingerprint(NamedTuple):
    """By what a file is known to be the one that was written."""

    sha256: str
    size: int
    """Bytes."""


@dataclass(frozen=True, slots=True)
class Manifest:
    """One checkpoint."""

    run_id: str
    generation: int
    """Counts the saves of a run."""
    attempt: int
    """Counts the starts of a run that have come to saving or loading."""
    step: int
    world_size: int
    seconds: float
    """How long it took to write the files."""
    metadata: Mapping[str, object]
    files: Mapping[str, Fingerprint]

    @property
    def order(self) -> tuple[int, int]:
        """Of two checkpoints the one with the higher order is the later one.

        Steps may go back and clocks, too; a copy of a job that a scheduler has given up may go on saving for a while.
        """
        return self.attempt, self.generation


def rank_file(rank: int) -> str:
    return f"rank-{rank}.pt"


def files_of(world_size: int) -> list[str]:
    return [SHARED, *map(rank_file, range(world_size))]


def encode(manifest: Manifest) -> bytes:
    content = {"preemptd_checkpoint": FORMAT, **asdict(manifest)}
    content["files"] = {name: file._asdict() for name, file in manifest.files.items()}
    return json.dumps({**content, "sha256": _digest(content)}, indent=1).encode() + b"\n"


def decode(text: bytes) -> Manifest:
    """Read a manifest. Raises ValueError: it is torn, altered, hostile, or of a later preemptd."""
    try:
        content = json.loads(text)
        if not isinstance(content, dict):
            raise ValueError("not an object")  # noqa: TRY004 - of the file, not of a caller
        if content.get("preemptd_checkpoint") != FORMAT:
            raise ValueError(f"not of format {FORMAT}")
        if content.pop("sha256", None) != _digest(content):
            raise ValueError("altered since it was written")
    except RecursionError as error:
        raise ValueError("nested too deeply") from error
    return _checked(content)


def _digest(content: Mapping[str, object]) -> str:
    # What json reads it writes in the same way again: keys keep their order, numbers their digits.
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()


def _checked(content: Mapping[str, object]) -> Manifest:
    """Whoever can write there can also write a matching hash: so nothing in it is believed."""
    run_id, seconds, metadata, files = (content.get(name) for name in ("run_id", "seconds", "metadata", "files"))
    counts = [content.get(name) for name in ("generation", "attempt", "step", "world_size")]
    if not (isinstance(run_id, str) and isinstance(metadata, dict) and isinstance(files, dict)):
        raise ValueError("a field is missing")  # noqa: TRY004
    generation, attempt, step, world_size = (count if type(count) is int else -1 for count in counts)
    if type(counts[2]) is not int or not isinstance(seconds, float) or min(generation, attempt, world_size) < 1:
        raise ValueError("not a number")
    # No name in it is ever used as a path unless it is one of ours.
    if len(files) != world_size + 1 or set(files) != set(files_of(world_size)):
        raise ValueError("not the files of a checkpoint")
    fingerprints = {name: _fingerprint(file) for name, file in files.items()}
    return Manifest(run_id, generation, attempt, step, world_size, seconds, metadata, fingerprints)


def _fingerprint(file: object) -> Fingerprint:
    digest, size = (file.get("sha256"), file.get("size")) if isinstance(file, dict) else (None, None)
    if not isinstance(digest, str) or re.fullmatch("[0-9a-f]{64}", digest) is None or type(size) is not int:
        raise ValueError("not a hash")
    return Fingerprint(digest, size)


def run_name(run_id: object) -> str:
    """Return *run_id*, which names a directory. Raises CheckpointError: it cannot."""
    if isinstance(run_id, str) and run_id.isprintable() and 0 < len(run_id.encode()) <= LONGEST_RUN_ID:
        is_path = run_id.startswith(".") or NOT_IN_RUN_IDS.intersection(run_id)
        if not is_path:
            return run_id
    raise CheckpointError(f"{run_id!r} cannot be a run id: no / \\ # ? % : in it, no dot before it, at most 128 bytes")


def plain(metadata: Mapping[str, object]) -> dict[str, object]:
    """Make JSON of *metadata*. Raises CheckpointError: it has what would not come back; now, not after a preemption.

    A scalar of NumPy or torch becomes the number that it holds, a tuple a list.
    """
    if not isinstance(metadata, Mapping):
        raise CheckpointError(f"metadata is of type {type(metadata).__name__}: give a dict")
    try:
        return {_key(key, "metadata"): _plain(value, f"metadata[{key!r}]") for key, value in metadata.items()}
    except RecursionError as error:
        raise CheckpointError("metadata is nested too deeply") from error


def _plain(value: object, where: str) -> object:
    if value is None or isinstance(value, bool):
        return value
    for kind in (str, int, float):  # NumPy's float64 is a float, too
        if isinstance(value, kind):
            return kind(value)
    if isinstance(value, list | tuple):
        return [_plain(part, f"{where}[{index}]") for index, part in enumerate(value)]
    if isinstance(value, Mapping):
        return {_key(key, where): _plain(part, f"{where}[{key!r}]") for key, part in value.items()}
    if getattr(value, "shape", None) == ():
        item = value.item()  # type: ignore[attr-defined]  # NumPy's and torch's scalars have it
        if type(item) is not type(value):
            return _plain(item, where)
    raise CheckpointError(f"{where} is of type {type(value).__name__}, which JSON cannot hold: keep it in a state_dict")


def _key(key: object, where: str) -> str:
    if not isinstance(key, str):
        raise CheckpointError(f"{where} has the key {key!r}: JSON makes a string of it")
    return str(key)
