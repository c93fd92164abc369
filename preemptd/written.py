"""What was written under ``--checkpoint-dir``: the proof of progress that every training can give."""

import os
from collections.abc import Iterator
from dataclasses import dataclass

UNFINISHED = (".tmp", ".part", ".partial", ".incomplete", ".new", "~")
"""Endings of files that are not complete yet: a checkpoint gets its name by rename."""


@dataclass(frozen=True, slots=True)
class Written:
    """One file."""

    path: str
    """Relative to the directory."""
    size: int
    """Bytes."""
    mtime: float
    """time.time() of its last change."""

    @property
    def complete(self) -> bool:
        return self.size > 0 and not self.path.endswith(UNFINISHED)


def written_since(directory: str, since: float) -> tuple[Written, ...]:
    """List the files below *directory* that changed at or after *since* (time.time()), the newest last."""
    return tuple(sorted((file for file in _files(directory) if file.mtime >= since), key=lambda file: file.mtime))


def progress_in(directory: str, since: float) -> bool | None:
    """Say whether a complete file below *directory* changed at or after *since*; None: there is no way to know.

    A directory that is not there may be one that the first save would make: then nothing was saved. It may also be on a
    disk that is not mounted here (its mount point is empty), or in the file system of a container.
    """
    if os.path.isdir(directory):
        return any(file.complete for file in written_since(directory, since))
    above = os.path.abspath(directory)
    try:
        while not os.path.lexists(above):
            above = os.path.dirname(above)
        is_ours = above not in {"/", os.path.abspath(directory)} and bool(os.listdir(above))
    except OSError:
        return None
    return False if is_ours else None


def _files(directory: str) -> Iterator[Written]:
    for folder, folders, names in os.walk(directory):
        folders[:] = [name for name in folders if name != ".preemptd"]
        for name in names:
            path = os.path.join(folder, name)
            try:
                status = os.lstat(path)
            except OSError:
                continue  # gone meanwhile: old checkpoints are removed as new ones come
            yield Written(os.path.relpath(path, directory), status.st_size, status.st_mtime)
