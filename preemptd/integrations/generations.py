"""A run's checkpoints on disk, each whole or not there, read and written; standard library only.

    DIRECTORY/RUN_ID/generation-00000007/shared.pt rank-0.pt rank-1.pt manifest.json

A generation's directory is made by the one save that writes into it. Its files get their names when they are on the
disk, and the manifest, without which all of them are nothing, comes last.
"""

import contextlib
import logging
import os
import re
from collections.abc import Collection, Iterator
from dataclasses import dataclass

from preemptd.integrations.durable_files import make_directories, opened, sync_directory, write
from preemptd.integrations.manifest import CheckpointError, Manifest, decode, encode, run_name

MANIFEST = "manifest.json"
LARGEST_MANIFEST = 16 * 2**20
NAME = re.compile("generation-([0-9]{8,})")
OURS = re.compile(r"(?:shared\.pt|rank-[0-9]+\.pt|manifest\.json)(?:\.tmp)?")

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Generation:
    """One directory that has the name of a generation."""

    number: int
    path: str
    manifest: Manifest | None
    fault: str = ""
    """Why its manifest does not count; empty with no manifest: its save did not come to its end."""


class Generations:
    """Those of one run."""

    def __init__(self, directory: "str | os.PathLike[str]", run_id: str) -> None:
        self.run_id = run_name(run_id)
        self.path = os.path.join(os.path.abspath(directory), run_id)

    def listed(self) -> list[Generation]:
        """List what is there: the whole ones by their order, the latest first, then those that are not whole."""
        found = [self._read(number) for number in self._numbers() if os.path.isdir(self._of(number))]
        return sorted(found, key=_order, reverse=True)

    def latest_first(self) -> Iterator[tuple[str, Manifest]]:
        """Yield path and manifest of each; at the end also of those that another attempt has written meanwhile."""
        seen: set[int] = set()
        while fresh := [found for found in self.listed() if found.manifest and found.number not in seen]:
            for found in fresh:
                seen.add(found.number)
                if found.manifest:
                    yield found.path, found.manifest

    def account(self, loaded: int | None, damaged: Collection[int]) -> None:
        """Say what is not loaded, and why. Raises CheckpointError: nothing is, though something was saved once."""
        there = self.listed()
        for found in there:
            if not found.manifest and (loaded is None or found.number > loaded):
                logger.warning("%s is skipped: %s", found.path, found.fault or "its save did not come to its end")
        if loaded is None and (damaged or any(found.fault for found in there)):
            raise CheckpointError(f"no checkpoint in {self.path} is whole; remove them to begin anew")

    def next_attempt(self) -> int:
        return 1 + max((found.manifest.attempt for found in self.listed() if found.manifest), default=0)

    def claim(self) -> tuple[int, str]:
        """Make the directory of a new generation, which nobody else writes into; return its number and path."""
        make_directories(self.path)
        number = max(self._numbers(), default=0) + 1
        while True:
            with contextlib.suppress(FileExistsError):  # another attempt saves at this moment
                os.mkdir(self._of(number))
                sync_directory(self.path)
                return number, self._of(number)
            number += 1

    def commit(self, manifest: Manifest) -> None:
        """Make the generation whole."""
        path = self._of(manifest.generation)
        for name, file in manifest.files.items():
            if os.stat(os.path.join(path, name)).st_size != file.size:
                raise CheckpointError(f"{name} has another size than its rank wrote: is there one directory for all?")
        text = encode(manifest)
        if len(text) > LARGEST_MANIFEST:
            raise CheckpointError(f"metadata of {len(text) >> 20} MiB: keep large things in a state_dict")
        write(os.path.join(path, MANIFEST), lambda file: file.write(text))

    def abandon(self, number: int) -> None:
        """Give up a generation that could not be made whole."""
        with contextlib.suppress(OSError):
            if not os.path.lexists(os.path.join(self._of(number), MANIFEST)):
                self.delete(number)

    def delete(self, number: int) -> None:
        """Remove a generation, as far as it consists of files of ours; from the first step on it is not whole."""
        path = self._of(number)
        if os.path.islink(path):  # what it leads to may be anybody's
            return
        with contextlib.suppress(FileNotFoundError):  # another attempt does the same
            names = [name for name in os.listdir(path) if OURS.fullmatch(name)]
            for name in sorted(names, key=lambda name: name != MANIFEST):
                os.unlink(os.path.join(path, name))
        with contextlib.suppress(OSError):  # there is something in it that is not ours
            os.rmdir(path)

    def prune(self, keep: int, latest: Manifest, damaged: Collection[int] = ()) -> None:
        """Remove what is older than the last *keep* whole ones, *latest* among them. Raises nothing.

        One that is not whole may be about to become so, under the hands of another attempt: it goes with its elders.
        """
        try:
            there = self.listed()
            whole = [found for found in there if found.manifest and found.number not in {latest.generation, *damaged}]
            later = [found for found in whole if found.manifest and found.manifest.order > latest.order]
            if later:
                logger.warning(
                    "another attempt of run %s saves in %s, and its checkpoints count", self.run_id, self.path
                )
            kept = {latest.generation, *(found.number for found in [*later, *whole[: keep - 1]])}
            spare = {found.number for found in whole} - kept
            torn = {found.number for found in there if found.number < min(kept)}
        except OSError as error:
            logger.warning("old checkpoints in %s are not removed: %s", self.path, error.strerror)
            return
        for number in sorted(spare | torn):
            self._clear(number)

    def remove(self) -> None:
        """Remove all of them, and the run's directory if nothing else is in it."""
        for number in self._numbers():
            if os.path.isdir(self._of(number)):
                self.delete(number)
        with contextlib.suppress(OSError):
            os.rmdir(self.path)

    def _clear(self, number: int) -> None:
        try:
            self.delete(number)
        except OSError as error:  # the new one is on the disk: that is what counts
            logger.warning("%s cannot be removed: %s", self._of(number), error.strerror)

    def _numbers(self) -> list[int]:
        try:
            names = set(os.listdir(self.path))
        except FileNotFoundError:
            return []
        numbers = {int(match[1]) for name in names if (match := NAME.fullmatch(name))}
        return sorted(number for number in numbers if os.path.basename(self._of(number)) in names)

    def _of(self, number: int) -> str:
        return os.path.join(self.path, f"generation-{number:08d}")

    def _read(self, number: int) -> Generation:
        path = self._of(number)
        try:
            if os.path.islink(path):
                raise ValueError("a symbolic link")  # noqa: TRY301
            with opened(os.path.join(path, MANIFEST)) as file:
                manifest = decode(file.read(LARGEST_MANIFEST + 1))
            if (manifest.run_id, manifest.generation) != (self.run_id, number):
                raise ValueError(f"generation {manifest.generation} of run {manifest.run_id}")  # noqa: TRY301
        except FileNotFoundError:
            return Generation(number, path, None)
        except (OSError, ValueError) as error:
            reason = error.strerror if isinstance(error, OSError) else error
            return Generation(number, path, None, f"manifest: {reason}")
        return Generation(number, path, manifest)


def run_ids(directory: "str | os.PathLike[str]") -> list[str]:
    """List the runs that have a checkpoint in *directory*."""
    found = []
    for name in sorted(os.listdir(directory)) if os.path.isdir(directory) else ():
        with contextlib.suppress(CheckpointError, OSError):
            if any(generation.manifest for generation in Generations(directory, name).listed()):
                found.append(name)
    return found


def _order(found: Generation) -> tuple[int, int]:
    return found.manifest.order if found.manifest else (0, found.number)
