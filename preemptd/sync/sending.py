"""From the directory to a URL: what has changed, and at the very end the manifest that makes it count."""

import secrets
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from os import path as paths
from shutil import rmtree
from tempfile import mkdtemp

from preemptd.sync.folder import (
    Found,
    Marker,
    State,
    copy_part,
    fingerprint,
    is_log,
    look,
    read_marker,
    scan,
    sha256_of,
    without_logs,
    write_marker,
)
from preemptd.sync.layout import DATA, Contents, Entry, Generation, Manifest, SyncError, Writer, owner
from preemptd.sync.store import FULL, Moved, Store, naming

AT_ONCE = 4
"""Files on their way at the same time."""
ROUNDS = 5
"""So often an upload is begun again when files change under it, before somebody hears of it."""
PAUSE = 0.2
"""Seconds before the second round; more before each that follows."""
DISCARDED_WITHIN = 10.0
"""Seconds for the removal of what a failed upload has left; the next one removes the rest."""
SETTLED_WITHIN = 2.0
"""Seconds for whoever has looked at the claims before ours was there to write a manifest."""
KEEP = 2
"""Generations that are left at the URL."""


class ChangedError(Exception):
    """A file is not what it was when this upload began; the text is its path."""


@dataclass(frozen=True, slots=True)
class Job:
    """For whom it is sent."""

    name: str
    attempt: int


@dataclass(frozen=True, slots=True)
class Sent:
    """What became of it."""

    manifest: Manifest | None
    """None: there was nothing to send."""
    bytes: int = 0
    """That had to go over the line."""


Begin = Callable[[int], Callable[[str], Moved]]
"""Takes how many bytes are to be sent; gives what takes a path, and gives whom to tell how far it is."""


class Sending:
    """One upload of the newest state."""

    def __init__(self, store: Store, directory: str, url: str, writer: Writer, begin: Begin) -> None:
        self._store = store
        self._directory = directory
        self._url = url
        self._writer = writer
        self._begin = begin
        self._sent: dict[str, tuple[Found, str, str]] = {}
        """By path: what is at the URL already, its hash, where it lies."""
        self._bytes = 0

    def send(self, job: Job) -> Sent:
        """Send it.

        Raises:
            SyncError: another machine writes there now, or the files never rest.
        """
        contents = self._checked()
        marker = read_marker(self._directory, self._url)
        if marker is not None and any(each.manifest == marker.manifest for each in contents.generations):
            self._sent.update(marker.files)
        else:
            marker = None
        state = scan(self._directory)
        if not state or (marker is not None and state == {path: about[0] for path, about in marker.files.items()}):
            return Sent(None)
        generation = Generation(self._writer, contents.next_number)
        folder = generation.folder(secrets.token_hex(4))
        try:
            state = self._send_all(state, folder)
            files = [self._entry(path, found) for path, found in sorted(state.items())]
            self._checked()
        except Exception:
            self._discard(folder)
            raise
        manifest = Manifest(generation, files, job.name, job.attempt, round(time.time(), 3))
        try:
            self._store.write_manifest(manifest)
        except Exception:
            if not self._store.may_hold(generation):
                self._discard(folder)
            raise
        held = {path: self._sent.get(path, (found, "", "")) for path, found in state.items()}
        write_marker(self._directory, Marker(fingerprint(self._url), generation.manifest, held))
        return Sent(manifest, self._bytes)

    def _discard(self, folder: str) -> None:
        removal = threading.Thread(target=self._store.discard, args=(folder,), daemon=True)
        removal.start()
        removal.join(DISCARDED_WITHIN)

    def _checked(self) -> Contents:
        """Look who writes there. Between this look and the next write another one may begin: its epoch is greater."""
        contents = self._store.contents()
        last = contents.last_writer
        if last is not None and last > self._writer:
            raise SyncError("another machine has begun with it since then, and this one sends nothing more", "fenced")
        return contents

    def _send_all(self, state: State, folder: str) -> State:
        """Bring all files there until nothing has changed meanwhile; return what was sent."""
        changed = ""
        for number in range(ROUNDS):
            time.sleep(PAUSE * number)
            changed = self._send_new(state, f"{folder}/{number}")
            now = scan(self._directory)
            changed = changed or _difference(state, now)
            if not changed:
                return state
            state = now
        raise SyncError(f"{changed} changes all the time, and is sent when it rests", "changing")

    def _send_new(self, state: State, prefix: str) -> str:
        """Send what is not there yet; return the path of a file that was another one when it had been sent."""
        new = [path for path, found in state.items() if found.link is None and self._is_new(path, found)]
        moved = self._begin(sum(state[path].size for path in new))
        with ThreadPoolExecutor(AT_ONCE) as pool:
            jobs = [
                pool.submit(self._send_one, path, state[path], f"{prefix}{index:05d}", moved(path))
                for index, path in enumerate(new)
            ]
            try:
                for job in jobs:
                    self._bytes += job.result()
            except ChangedError as error:
                return str(error)
            finally:
                for job in jobs:
                    job.cancel()
        return ""

    def _is_new(self, path: str, found: Found) -> bool:
        return path not in self._sent or self._sent[path][0] != found

    def _send_one(self, path: str, found: Found, name: str, moved: Moved) -> int:
        source = paths.join(self._directory, path)
        try:
            if is_log(path):
                return self._send_copy(path, found, name, moved)
            with ThreadPoolExecutor(1) as beside:
                sha256 = beside.submit(sha256_of, source)
                self._store.put(source, name, moved)
                digest = sha256.result()
        except FileNotFoundError as error:
            if look(self._directory, path) is None:
                raise ChangedError(path) from error
            raise
        if look(self._directory, path) != found:
            raise ChangedError(path)
        self._sent[path] = (found, digest, name)
        return found.size

    def _send_copy(self, path: str, found: Found, name: str, moved: Moved) -> int:
        """Send as much of a log as was there: it grows while it is read."""
        folder = mkdtemp(prefix="preemptd-sync-")
        try:
            copy = paths.join(folder, "log")
            with naming(folder):
                copy_part(paths.join(self._directory, path), copy, found.size)
            self._store.put(copy, name, moved)
            size = paths.getsize(copy)
            digest = sha256_of(copy)
        finally:
            rmtree(folder, ignore_errors=True)
        self._sent[path] = (Found(size, found.mtime_ns, found.inode, found.mode), digest, name)
        return size

    def _entry(self, path: str, found: Found) -> Entry:
        if found.link is not None:
            return Entry(path, link=found.link)
        about, sha256, name = self._sent[path]
        return Entry(path, about.size, about.mtime_ns, about.mode, sha256, name)


def _difference(state: State, now: State) -> str:
    """Name a file that has come, gone or changed; empty: none has."""
    before, after = without_logs(state), without_logs(now)
    return next((path for path in {**before, **after} if before.get(path) != after.get(path)), "")


def clean(store: Store, newest: Manifest) -> None:
    """Remove what the *newest* generation makes superfluous, and what uploads that were killed have left.

    Never anything of a writer that began later: its manifest may not be written yet.
    """
    contents = store.contents()
    ours = [generation for generation in contents.generations if generation <= newest.generation]
    needed = {entry.object for entry in newest.files}
    for generation in ours[1:KEEP]:
        with suppress(ValueError):  # torn: nobody will ever fetch it
            needed |= {entry.object for entry in store.read_manifest(generation).files}
    store.remove(generation.manifest for generation in ours[KEEP:])
    store.remove(writer.claim for writer in contents.claims if writer < newest.generation.writer)
    store.remove(name for name in store.data() if name not in needed and _is_done(name, newest.generation))


def claim(store: Store, writer: Writer) -> int:
    """Claim the URL for *writer*; on a disk that is full remove what torn uploads have left; return those bytes.

    Raises:
        SyncError: the disk is full, and nothing can be removed.
    """
    try:
        store.write_claim(writer)
    except OSError as error:
        if error.errno not in FULL:
            raise
        removed = _make_room(store, writer)
        full = f"{error.strerror}: {error.filename}"
        if not removed:
            raise SyncError(
                f"{full}: make room there; while nobody sends to it, what no manifest-*.json names in {DATA}/ can go"
            ) from error
        store.write_claim(writer)
        return removed
    return 0


def _make_room(store: Store, writer: Writer) -> int:
    """Remove the data of earlier writers that no manifest names.

    Only when the claim is there, be it empty: whoever sends now sees it before it writes a manifest, and writes none.
    """
    if store.contents().last_writer != writer:
        return 0
    time.sleep(SETTLED_WITHIN)
    data = store.data()
    try:
        manifests = [store.read_manifest(generation) for generation in store.contents().generations]
    except (ValueError, FileNotFoundError):  # nobody knows what it names
        return 0
    needed = {entry.object for manifest in manifests for entry in manifest.files}
    torn = {name: size for name, size in data.items() if name not in needed and _is_before(name, writer)}
    store.remove(torn)
    return sum(torn.values())


def _is_before(name: str, writer: Writer) -> bool:
    by = owner(name)
    return by is not None and by.writer < writer


def _is_done(name: str, newest: Generation) -> bool:
    by = owner(name)
    return by is not None and by <= newest


def missing(manifest: Manifest, data: Mapping[str, int]) -> Sequence[str]:
    """List the files of a generation that are not at the URL as they should be."""
    return [entry.path for entry in manifest.files if entry.link is None and data.get(entry.object) != entry.size]
