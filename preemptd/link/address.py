"""The file of a listening Unix socket: made, and taken away again, without touching what is not ours."""

import contextlib
import errno
import os
import socket
import stat

from preemptd.errors import ConfigError

LONGEST_PATH = 107
"""Bytes: sun_path has 108, the last one a zero."""
BACKLOG = 128


class Address:
    """*group*: id of a group whose members may connect too; None: only our own uid and root."""

    def __init__(self, path: str, group: int | None) -> None:
        self.path = os.path.abspath(path)
        self._group = group
        self._inode: tuple[int, int] | None = None
        self._made_directory = ""

    def listen(self) -> socket.socket:
        """Make the socket and listen on it.

        Raises:
            ConfigError: the path is too long, taken, another's, or cannot be made.
        """
        if len(os.fsencode(self.path)) > LONGEST_PATH:
            raise ConfigError(f"link path is longer than {LONGEST_PATH} bytes, choose a shorter --link: {self.path}")
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            self._make_directory()
            self._clear_stale()
            self._bind(listener)
        except (OSError, ValueError) as error:
            listener.close()
            self.remove()
            why = getattr(error, "strerror", None) or str(error)
            raise ConfigError(f"cannot make the link {self.path}: {why}") from error
        except ConfigError:
            listener.close()
            self.remove()
            raise
        return listener

    def remove(self) -> None:
        """Take away the socket, if it is still the one that we made, and the directory, if it was made for it."""
        if self._inode is not None:
            with contextlib.suppress(OSError):
                found = os.lstat(self.path)
                if (found.st_dev, found.st_ino) == self._inode:
                    os.unlink(self.path)
            self._inode = None
        if self._made_directory:
            with contextlib.suppress(OSError):
                os.rmdir(self._made_directory)
            self._made_directory = ""

    def _make_directory(self) -> None:
        directory = os.path.dirname(self.path)
        if os.path.lexists(directory):
            return
        os.makedirs(directory, mode=0o700)
        self._made_directory = directory
        if self._group is not None:
            os.chown(directory, -1, self._group)
            os.chmod(directory, 0o710)  # noqa: S103  # the group may pass, to reach the socket

    def _clear_stale(self) -> None:
        try:
            found = os.lstat(self.path)
        except FileNotFoundError:
            return
        if not stat.S_ISSOCK(found.st_mode):
            raise ConfigError(f"link path exists and is not a socket: {self.path}")
        if found.st_uid != os.geteuid():
            raise ConfigError(f"link path is a socket of another user (uid {found.st_uid}): {self.path}")
        if _somebody_listens(self.path):
            raise ConfigError(f"link path is in use by a running preemptd: {self.path}")
        os.unlink(self.path)

    def _bind(self, listener: socket.socket) -> None:
        listener.bind(self.path)
        made = os.lstat(self.path)
        self._inode = (made.st_dev, made.st_ino)
        if self._group is not None:
            os.chown(self.path, -1, self._group)
        # Until listen() nobody gets in: the mode that the umask left is never in force.
        os.chmod(self.path, 0o600 if self._group is None else 0o660)
        listener.setblocking(False)
        listener.listen(BACKLOG)


def _somebody_listens(path: str) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)
        # Anything but a refusal (EAGAIN: its backlog is full) means that there is a listener.
        return probe.connect_ex(path) != errno.ECONNREFUSED
