"""Speaks to wandb-core over its local socket: the frames, and one conversation that marks one run.

A frame is ``W``, a little-endian u32 length, and a protobuf ServerRequest (from us) or ServerResponse (to us). The few
fields that are used here have the same numbers in wandb 0.17.9 to 0.31.0, so their bytes are made by hand.

``inform_finish`` and ``inform_teardown`` are never sent: the one behind an exit record loses it (wandb-core handles it
in another goroutine, seen with 0.31.0), the other ends every run that wandb-core has.
"""

import errno
import os
import socket
import struct
from collections.abc import Iterator
from enum import Enum

from preemptd.runs.run_settings import RunSettings, parse
from preemptd.runs.wire import field, fields, varint_field

Address = str | tuple[str, int]
"""Path of a Unix socket, or host and port."""

_RECORD_PUBLISH, _INFORM_ATTACH, _REQUEST_ID = 1, 5, 10  # ServerRequest; ServerResponse has 5 and 10 too
_EXIT, _PREEMPTING, _INFO, _STREAM_ID = 18, 23, 200, 1  # Record; its _Info
_CONTROL, _MAILBOX_SLOT = 16, 4  # Record; its Control
_EXIT_CODE = 1  # RunExitRecord
_HEADER = struct.Struct("<cI")
_MAX_ANSWER = 16 * 2**20
_MAX_SUN_PATH = 107


class CoreError(Exception):
    """What answers is not a wandb-core as we know it, or the run cannot be named to it: asking again is of no use."""


class Progress(Enum):
    WAITING = "waiting"
    BACKLOG_FULL = "backlog full"
    SERVED = "served"
    """Only when nothing but asking was wanted."""
    MARKED = "marked"
    TAKEN = "taken"
    """It has read the exit record."""
    EXITED = "exited"
    """It has carried the exit record out: everything is at the server."""


def attach_frame(run_id: str, request_id: str) -> bytes:
    """Ask whether wandb-core serves *run_id*: it answers with *request_id* if so, and is silent if not."""
    return _frame(field(_INFORM_ATTACH, _info(run_id)) + field(_REQUEST_ID, request_id.encode()))


def preempting_frame(run_id: str) -> bytes:
    """Publish what `Run.mark_preempting()` publishes. Never answered, and dropped in silence if the run is unknown."""
    return _frame(field(_RECORD_PUBLISH, field(_PREEMPTING, b"") + _info(run_id)))


def exit_frame(run_id: str, code: int) -> bytes:
    """Publish what ends a run with *code*; the first one counts. Answered when all is uploaded, with the id ``exit``.

    0.31 answers to the request's id, 0.19 and 0.22 to the record's mailbox slot only.
    """
    slot = field(_CONTROL, field(_MAILBOX_SLOT, b"exit"))
    record = slot + field(_EXIT, varint_field(_EXIT_CODE, code) if code else b"") + _info(run_id)
    return _frame(field(_RECORD_PUBLISH, record) + field(_REQUEST_ID, b"exit"))


class Conversation:
    """Marks one run over a connection of its own, never blocking, and ends it if *code* is given.

    Attach and its answer come first, for a record for a run that wandb-core does not know yet is dropped in silence;
    then the record with a second attach behind it, whose answer proves that the record was read (a connection is
    served in order). Only whole frames leave: wandb-core stops serving, and the training dies, on one it cannot parse.
    """

    def __init__(self, address: Address, run_id: str, code: int | None = None, *, only_ask: bool = False) -> None:
        """Make it; with *only_ask* it ends with the first answer, and nothing is written to the run."""
        self._only_ask = only_ask
        try:
            self._attach = attach_frame(run_id, "attach")
            self._attach_again = attach_frame(run_id, "marked")
        except UnicodeEncodeError:
            raise CoreError("its id is not UTF-8") from None
        self._record = preempting_frame(run_id) + (exit_frame(run_id, code) if code is not None else b"")
        self._read_means = Progress.MARKED if code is None else Progress.TAKEN
        self._address = address
        self._connected = False
        self._known = False
        self._unsent = b""
        self._received = bytearray()
        self.settings = RunSettings()
        """What it has answered; empty before."""
        self.sock = socket.socket(socket.AF_UNIX if isinstance(address, str) else socket.AF_INET)
        self.sock.setblocking(False)

    @property
    def wants_to_write(self) -> bool:
        return bool(self._unsent)

    def connect(self) -> Progress:
        """Connect and ask. Raises OSError (nobody there) and CoreError."""
        code = _connect(self.sock, self._address)
        if code == errno.EAGAIN:  # a Unix socket whose backlog is full fails at once, whatever the timeout
            return Progress.BACKLOG_FULL
        if code not in (0, errno.EISCONN, errno.EINPROGRESS):
            raise OSError(code, os.strerror(code))
        self._connected = True
        self._unsent = self._attach
        return self.go_on() if code != errno.EINPROGRESS else Progress.WAITING

    def ask_again(self) -> Progress:
        """Repeat the attach that has no answer, unless bytes of an earlier one still wait to be sent."""
        if not self._connected:
            return self.connect()
        if not self._unsent:
            self._unsent = self._attach_again if self._known else self._attach
        return self.go_on()

    def go_on(self) -> Progress:
        """Send and read what can be without waiting. Raises OSError (the connection ended) and CoreError."""
        self._send()
        progress = Progress.WAITING
        for request_id in self._answers():
            if request_id == b"attach" and not self._known:
                self._refuse_ourselves()
                self._known = True
                if self._only_ask:
                    return Progress.SERVED
                self._unsent += self._record + self._attach_again
                self._send()
            elif request_id == b"marked" and self._known:
                progress = self._read_means
            elif request_id == b"exit" and self._known:
                return Progress.EXITED
        return progress

    def close(self) -> None:
        """Hang up. A frame that is cut off by that is dropped by wandb-core (tried with 0.19.11, 0.22.3 and 0.31.0)."""
        self.sock.close()

    def _refuse_ourselves(self) -> None:
        """Raise if the connection is to itself, as TCP may connect to a free port: it would hear its own question."""
        if self.sock.family == socket.AF_INET and self.sock.getsockname() == self.sock.getpeername():
            raise ConnectionRefusedError(errno.ECONNREFUSED, "nobody listens there")

    def _send(self) -> None:
        try:
            while self._unsent:
                self._unsent = self._unsent[self.sock.send(self._unsent, socket.MSG_NOSIGNAL) :]
        except BlockingIOError:
            pass

    def _answers(self) -> Iterator[bytes]:
        """Yield the request id of each answer."""
        try:
            while chunk := self.sock.recv(65536):
                self._received += chunk
                yield from self._whole_answers()
        except BlockingIOError:
            return
        raise ConnectionResetError(errno.ECONNRESET, "wandb-core closed the connection")

    def _whole_answers(self) -> Iterator[bytes]:
        while len(self._received) >= _HEADER.size:
            magic, size = _HEADER.unpack_from(self._received)
            if magic != b"W" or size > _MAX_ANSWER:
                raise CoreError("what answers on wandb-core's socket does not speak its protocol")
            if len(self._received) < _HEADER.size + size:
                return
            message = bytes(self._received[_HEADER.size : _HEADER.size + size])
            del self._received[: _HEADER.size + size]
            try:
                answer = dict(fields(message))
            except ValueError as error:
                raise CoreError(f"an answer of wandb-core cannot be parsed: {error}") from error
            request_id = answer.get(_REQUEST_ID)
            attached = answer.get(_INFORM_ATTACH)
            if isinstance(attached, bytes):
                self.settings = parse(attached)
            if isinstance(request_id, bytes) and isinstance(attached, bytes) != (request_id == b"exit"):
                yield request_id


def _connect(sock: socket.socket, address: Address) -> int:
    """Start to connect; return an errno. A path that is too long for a socket address goes through its directory."""
    if not isinstance(address, str) or len(os.fsencode(address)) <= _MAX_SUN_PATH:
        return sock.connect_ex(address)
    directory = os.open(os.path.dirname(address), os.O_PATH | os.O_CLOEXEC)
    try:
        return sock.connect_ex(f"/proc/self/fd/{directory}/{os.path.basename(address)}")
    finally:
        os.close(directory)


def _frame(message: bytes) -> bytes:
    return _HEADER.pack(b"W", len(message)) + message


def _info(run_id: str) -> bytes:
    return field(_INFO, field(_STREAM_ID, run_id.encode()))
