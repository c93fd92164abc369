"""From a URL into the directory, before the command starts: what is fetched, and how it gets its place."""

import os
import secrets
import shutil
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass

from preemptd.sync.folder import (
    OURS,
    Found,
    Marker,
    State,
    fingerprint,
    is_empty,
    is_log,
    look,
    sha256_of,
    write_marker,
)
from preemptd.sync.layout import Entry, Manifest, SyncError, contents

INCOMING = "incoming-"
REPLACED = "replaced"
Fetch = Callable[[Entry, str], None]
"""Brings one file to a path. Raises OSError and whatever else a store's client raises."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What is to be done so that the directory holds a generation."""

    fetch: Sequence[Entry] = ()
    set_aside: Sequence[str] = ()
    """Local files that would be lost: another content, and nobody says that the URL ever had it."""
    kept: str = ""
    """Why nothing is fetched; empty: it is."""


def plan(manifest: Manifest, state: State, marker: Marker | None) -> Plan:
    """Compare what is there with what lies at the URL: nothing that is newer here is ever written over."""
    if marker is not None and not is_empty(state):
        if marker.manifest == manifest.generation.manifest:
            return Plan(kept="it holds that already")
        if any(held > manifest.generation for held in contents([marker.manifest]).generations):
            return Plan(kept="it holds a newer one")
    known = {} if marker is None else {path: found for path, (found, _, _) in marker.files.items()}
    fetch, set_aside = [], []
    for entry in manifest.files:
        found = state.get(entry.path)
        if found is None:
            fetch.append(entry)
        elif _is_there(entry, found):
            continue
        elif found == known.get(entry.path):
            fetch.append(entry)
        elif found.mtime_ns <= entry.mtime_ns or entry.link is not None:
            fetch.append(entry)
            set_aside.append(entry.path)
        elif not is_log(entry.path):
            return Plan(kept=f"{entry.path} is newer here")
    return Plan(fetch, set_aside)


def _is_there(entry: Entry, found: Found) -> bool:
    if entry.link is not None or found.link is not None:
        return entry.link == found.link
    return (entry.size, entry.mtime_ns) == (found.size, found.mtime_ns)


class Arrival:
    """Files on their way in: fetched to names of their own, given their places when all are there and are whole."""

    def __init__(self, directory: str, manifest: Manifest) -> None:
        self._directory = directory
        self._manifest = manifest
        self._ours = os.path.join(directory, OURS)
        self._incoming = os.path.join(self._ours, f"{INCOMING}{secrets.token_hex(4)}")

    def clean(self) -> None:
        """Remove what this one, or one that was killed, has left half-way."""
        with suppress(OSError):
            for name in os.listdir(self._ours):
                if name.startswith(INCOMING):
                    shutil.rmtree(os.path.join(self._ours, name), ignore_errors=True)

    def take(self, number: int, entry: Entry, fetch: Fetch) -> None:
        """Bring one file in. Raises SyncError: it is not what was once sent; OSError, and what *fetch* raises."""
        os.makedirs(self._incoming, exist_ok=True)
        path = self._path(number)
        if entry.link is not None:
            os.symlink(entry.link, path)
            return
        fetch(entry, path)
        if os.stat(path).st_size != entry.size or sha256_of(path) != entry.sha256:
            raise SyncError(f"{entry.path} is not what was once sent", "torn")
        os.chmod(path, entry.mode)
        os.utime(path, ns=(entry.mtime_ns, entry.mtime_ns))
        _sync_to_disk(path)

    def _path(self, number: int) -> str:
        return os.path.join(self._incoming, str(number))

    def settle(self, plan: Plan, url: str) -> None:
        """Give each its place, the oldest first: what names the newest checkpoint comes last. Raises OSError."""
        aside = os.path.join(self._ours, REPLACED, self._manifest.generation.manifest.removesuffix(".json"))
        for path in plan.set_aside:
            os.makedirs(os.path.dirname(os.path.join(aside, path)), exist_ok=True)
            os.rename(os.path.join(self._directory, path), os.path.join(aside, path))
        numbered = sorted(enumerate(plan.fetch), key=lambda each: (each[1].link is not None, each[1].mtime_ns))
        for number, entry in numbered:
            to = os.path.join(self._directory, entry.path)
            os.makedirs(os.path.dirname(to), exist_ok=True)
            os.rename(self._path(number), to)
        self._mark(url)

    def _mark(self, url: str) -> None:
        """Write down what the directory holds now. Raises OSError."""
        held = {}
        for entry in self._manifest.files:
            found = look(self._directory, entry.path)
            if found is not None and _is_there(entry, found):
                held[entry.path] = (found, entry.sha256, entry.object)
        write_marker(self._directory, Marker(fingerprint(url), self._manifest.generation.manifest, held))


def _sync_to_disk(path: str) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
