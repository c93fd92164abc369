"""What lies at one URL, through fsspec. Only our child process imports this: a store that hangs hangs that alone."""

import errno
import os
import secrets
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress

import fsspec
from fsspec.callbacks import Callback

from preemptd.sync.layout import DATA, Contents, Generation, Manifest, SyncError, Writer, contents, decode, encode

PACKAGES = {
    "s3": "s3fs",
    "s3a": "s3fs",
    "gs": "gcsfs",
    "gcs": "gcsfs",
    "abfs": "adlfs",
    "abfss": "adlfs",
    "az": "adlfs",
}
PART = 16 << 20
"""Bytes in memory for each part of a long transfer; with the client's own choice a few files at once take gigabytes."""
PARTS_MOST = 150 << 30
"""Bytes: S3 takes 10,000 parts."""
_OPTIONS: Mapping[str, Mapping[str, object]] = {
    "file": {"auto_mkdir": True},
    "s3": {"max_concurrency": 4, "default_block_size": PART},
}
FULL = frozenset({errno.ENOSPC, errno.EDQUOT})
Moved = Callable[[int], None]
"""Takes how many bytes of the file have moved so far."""


class Store:
    """The objects below one URL, by names relative to it."""

    def __init__(self, url: str) -> None:
        """Connect.

        Raises:
            SyncError: nothing that is installed here knows such a URL.
        """
        protocol = url.partition("://")[0]
        try:
            self._fs, root = fsspec.core.url_to_fs(url, **_OPTIONS.get(protocol.replace("s3a", "s3"), {}))
        except (ImportError, ValueError) as error:
            raise SyncError(_how_to_get(protocol, error), "needs") from error
        self._root = str(root).rstrip("/")
        self._is_local = protocol == "file"
        self._has_parts = PACKAGES.get(protocol) in {"s3fs", "gcsfs"}
        if self._is_local and not os.path.isdir(os.path.dirname(self._root)):
            raise FileNotFoundError(f"{os.path.dirname(self._root)} is no directory: is that disk mounted?")

    def _path(self, name: str) -> str:
        return f"{self._root}/{name}"

    def contents(self) -> Contents:
        """List what is there now: no client's cache may answer."""
        if self._is_local:  # fsspec looks at each file, and takes one that goes meanwhile for an absent directory
            return contents(os.listdir(self._root) if os.path.isdir(self._root) else ())
        self._fs.invalidate_cache()
        try:
            found = self._fs.ls(self._root, detail=False)
        except FileNotFoundError:  # nothing below this prefix; a bucket that is missing is noticed with the first write
            return contents(())
        return contents(str(path).rstrip("/").rpartition("/")[2] for path in found)

    def data(self) -> Mapping[str, int]:
        """List the files' names and sizes."""
        self._fs.invalidate_cache()
        try:
            found = self._fs.find(self._path(DATA), detail=True)
        except FileNotFoundError:
            return {}
        base = self._root.count("/") + 1
        return {"/".join(str(path).split("/")[base:]): int(about["size"] or 0) for path, about in found.items()}

    def write_claim(self, writer: Writer) -> None:
        """Write it: that shows, before anything starts, whether anything can be written there.

        On a disk that is full its name may be there all the same, and it is the name that counts.
        """
        if self._is_local:
            with naming(self._root):
                os.makedirs(self._root, exist_ok=True)
                _write(self._path(writer.claim), b"{}")
            return
        try:
            self._fs.pipe_file(self._path(writer.claim), b"{}")
        except FileNotFoundError as error:
            raise SyncError(f"nothing can be written there, is there such a bucket? ({error})") from error

    def write_manifest(self, manifest: Manifest) -> None:
        """Write it as a whole: an object is there or not; a file gets its name when it is on the disk."""
        path, text = self._path(manifest.generation.manifest), encode(manifest)
        if not self._is_local:
            self._fs.pipe_file(path, text)
            return
        new = f"{path}.{secrets.token_hex(4)}.new"
        try:
            with naming(self._root):
                _write(new, text)
            os.rename(new, path)
        except OSError:
            with suppress(OSError):
                os.unlink(new)
            raise

    def read_manifest(self, generation: Generation) -> Manifest:
        """Read it. Raises ValueError: it is torn."""
        return decode(generation, bytes(self._fs.cat_file(self._path(generation.manifest))))

    def put(self, path: str, name: str, moved: Moved) -> None:
        more: dict[str, object] = {}
        if self._has_parts and os.path.getsize(path) < PARTS_MOST:
            more["chunksize"] = PART
        with naming(self._root):
            self._fs.put_file(path, self._path(name), callback=_callback(moved), **more)
            if self._is_local:
                fd = os.open(self._path(name), os.O_RDONLY | os.O_CLOEXEC)
                try:
                    os.fsync(fd)
                finally:
                    os.close(fd)

    def get(self, name: str, path: str, moved: Moved) -> None:
        with naming(os.path.dirname(path)):
            self._fs.get_file(self._path(name), path, callback=_callback(moved))

    def may_hold(self, generation: Generation) -> bool:
        """Say whether its manifest, which could not be written, may be there now, or later, all the same."""
        return not self._is_local or os.path.lexists(self._path(generation.manifest))

    def discard(self, folder: str) -> None:
        """Remove what an upload that has failed has left in its *folder*, as far as that can be done."""
        with suppress(Exception):  # what a store's client raises is its own affair; the next upload removes the rest
            if self._is_local:
                shutil.rmtree(self._path(folder), ignore_errors=True)
            else:
                self._fs.invalidate_cache()
                for path in self._fs.find(self._path(folder)):
                    self._fs.rm_file(path)

    def remove(self, names: Iterable[str]) -> None:
        """Remove what is there of *names*."""
        folders = set()
        for name in names:
            folders.add(name.rpartition("/")[0])
            with suppress(FileNotFoundError):
                self._fs.rm_file(self._path(name))
        for folder in filter(None, folders):
            if self._is_local:
                with suppress(OSError):  # there is more in it
                    os.rmdir(self._path(folder))


@contextmanager
def naming(place: str) -> Iterator[None]:
    """Let an error about a disk that is full name *place*: who copies names what was read."""
    try:
        yield
    except OSError as error:
        if error.errno in FULL:
            raise OSError(error.errno, error.strerror or os.strerror(error.errno), place) from error
        raise


def _write(path: str, text: bytes) -> None:
    with open(path, "wb") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


def _callback(moved: Moved) -> object:
    return Callback(hooks={"moved": lambda _size, value, **_: moved(int(value))})


def _how_to_get(protocol: str, error: Exception) -> str:
    package = PACKAGES.get(protocol)
    if isinstance(error, ImportError) and package:
        return f"URLs with {protocol}:// need {package}: pip install {package}"
    return f"URLs with {protocol}:// cannot be used: {str(error).splitlines()[0] if str(error) else error!r}"
