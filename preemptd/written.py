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
