"""A command of the user's that knows whether the end is near, and says so by its exit status."""

import os
import select
import signal
import subprocess
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from datetime import datetime, timezone
from typing import Annotated, ClassVar

from pydantic import AfterValidator, Field, model_validator

from preemptd.discretion import discreet
from preemptd.notices import Notice
from preemptd.provider import Observation, Options, Provider, Surroundings, Watch
from preemptd_providers._announcing import Announcer, Announcing

LONGEST_COMMAND = 64 * 1024
"""Bytes; the kernel takes no argument of more than 128 KiB."""
LONGEST_OUTPUT = 4 * 1024
"""Bytes: the first that it says, and the last that it complains of."""
READ_AT_ONCE = 64 * 1024
BREATH = 0.005
"""Seconds after each of these: 13 MB are read in one."""
LONGEST_COMPLAINT = 200
"""Characters of its last line on stderr, which tells people why nothing is known."""
MEANINGS = {126: ", cannot be executed", 127: ", not found"}
"""The shell's own."""
REAPED_WITHIN = 1.0
"""Seconds for the end of what was killed: one that hangs in the kernel is waited for no longer."""
SHORTEST_PAUSE = 0.001
LONGEST_PAUSE = 0.05
"""Seconds from look to look whether one that says nothing has ended."""


def _command(text: str) -> str:
    if not text.strip() or "\0" in text:
        raise ValueError("no command: it is blank, or has a null byte in it")
    if len(text.encode(errors="replace")) > LONGEST_COMMAND:
        raise ValueError(f"it is longer than {LONGEST_COMMAND // 1024} KiB: put it into a file")
    return text


class ExecOptions(Announcing):
    """The table ``[providers.exec]``."""

    command: Annotated[str, AfterValidator(_command)] = Field(repr=False)
    """For ``/bin/sh -c``. Its first line may say when the end comes: a time, or the seconds that are left."""
    notice_status: int = Field(default=75, ge=1, le=125)
    """Not 1: that is how a script fails."""
    clear_status: int = Field(default=0, ge=0, le=125)
    """All other ends mean that nobody knows."""
    interval: float = Field(default=5.0, ge=1.0, le=3600.0)
    """Seconds from the end of one to the next."""
    within: float = Field(default=5.0, gt=0.0, le=60.0)
    """Seconds that it may take; then it is killed. What it leaves is killed in any case, also in another session."""

    @model_validator(mode="after")
    def _is_unambiguous(self) -> "ExecOptions":
        if self.notice_status == self.clear_status:
            raise ValueError("notice_status and clear_status are the same status")
        return self


class CommandWatch(Watch):
    name = "exec:command"

    def __init__(self, options: ExecOptions, surroundings: Surroundings) -> None:
        self.interval = options.interval
        self._options = options
        self._scripts = surroundings.scripts
        self._announcer = Announcer("exec", options, surroundings, None)
        self._lock = threading.Lock()  # for the two below
        self._process: subprocess.Popen[bytes] | None = None
        self._closed = False

    def observe(self) -> Observation:
        process = self._start()
        if isinstance(process, str):
            return Observation.unknown(process)
        try:
            said, complained = self._read(process)
        finally:
            status = self._end(process)
        if status == self._options.clear_status:
            return Observation.clear()
        if status == self._options.notice_status:
            return Observation.of(self._notice(said))
        return Observation.unknown(self._why(status) + _last_line(complained))

    def close(self) -> None:
        with self._lock:
            self._closed = True
            if self._process is not None:
                _kill(self._process)

    def _start(self) -> "subprocess.Popen[bytes] | str":
        if self._scripts is None:
            return "commands are not run here"
        with self._lock:
            if self._closed:
                return "closed"
            try:
                command, pipe = ("/bin/sh", "-c", self._options.command), subprocess.PIPE
                process = self._scripts.popen(command, stdout=pipe, stderr=pipe)
            except OSError as error:
                return f"the command cannot be run: {error.strerror}"
            self._process = process
        return process

    def _read(self, process: "subprocess.Popen[bytes]") -> tuple[bytes, bytes]:
        """Read what it says and complains of until it has ended, or its time has: what it left may go on saying."""
        out, err = (stream.fileno() for stream in (process.stdout, process.stderr) if stream is not None)
        said, pause = {out: b"", err: b""}, SHORTEST_PAUSE
        poll = select.poll()
        for stream in said:
            poll.register(stream, select.POLLIN)
        ends = time.monotonic() + self._options.within
        while (left := ends - time.monotonic()) > 0:
            ended = _has_ended(process)  # asked first: what it has said by then is in the pipe
            ready = poll.poll(0 if ended else min(pause, left) * 1000)
            for stream, _ in ready:
                got = os.read(stream, READ_AT_ONCE)
                whole = said[stream] + got
                said[stream] = whole[:LONGEST_OUTPUT] if stream == out else whole[-LONGEST_OUTPUT:]
                if not got:
                    poll.unregister(stream)
            if ended and not ready:
                break
            pause = SHORTEST_PAUSE if ready else min(2 * pause, LONGEST_PAUSE)
            if ready and len(said[out]) >= LONGEST_OUTPUT:
                time.sleep(BREATH)  # one that says without end is not to have all of our time
        return said[out], said[err]

    def _end(self, process: "subprocess.Popen[bytes]") -> int | None:
        """Kill what still runs of it; return the status of one that had ended by itself."""
        ended = _has_ended(process)
        with self._lock:
            _kill(process)
            self._process = None
        with suppress(subprocess.TimeoutExpired):
            process.wait(REAPED_WITHIN)
        for stream in (process.stdout, process.stderr):
            if stream is not None:
                stream.close()
        if process.returncode is not None and self._scripts is not None:
            self._scripts.release(process)
        return process.returncode if ended else None

    def _why(self, status: int | None) -> str:
        if status is None:
            return f"the command was not done within {self._options.within:g} s"
        return f"the command ended with status {status}{MEANINGS.get(status, '')}"

    def _notice(self, output: bytes) -> Notice:
        text = output.decode(errors="replace")
        first, _, _ = text.strip().partition("\n")
        end = self._announcer.end(first, datetime.now(timezone.utc), timezone.utc)
        return self._announcer.notice("the command's exit status", time.monotonic(), end, text)


class Exec(Provider):
    name: ClassVar[str] = "exec"
    options_type: ClassVar[type[Options]] = ExecOptions
    opt_in = True

    def __init__(self, options: Options, surroundings: Surroundings) -> None:
        super().__init__(options, surroundings)
        assert isinstance(options, ExecOptions)  # noqa: S101  # what the registry checks
        self._watch = CommandWatch(options, surroundings)

    def watches(self) -> Sequence[Watch]:
        return (self._watch,)

    def describe(self) -> str:
        return "a command of yours"

    def close(self) -> None:
        self._watch.close()


def _has_ended(process: "subprocess.Popen[bytes]") -> bool:
    """Say so without reaping it: until then nobody else can get its number, which is that of its group."""
    return os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None


def _last_line(complained: bytes) -> str:
    """Return the last line of it for people, behind a colon; empty: there is none."""
    line = complained.decode(errors="replace").strip().rpartition("\n")[2][-2 * LONGEST_COMPLAINT :]
    shown = "".join(letter if letter.isprintable() else " " for letter in discreet(line))[:LONGEST_COMPLAINT]
    return f": {shown}" if shown else ""


def _kill(process: "subprocess.Popen[bytes]") -> None:
    """Kill its group: also what one that has ended left in the background. Only while it is not reaped."""
    with suppress(ProcessLookupError, PermissionError):  # it may have become another user (sudo)
        os.killpg(process.pid, signal.SIGKILL)
