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
from typing import ClassVar, Literal

from pydantic import Field

from preemptd.notices import Kind, Level, Notice
from preemptd.provider import Commands, Observation, Options, Provider, Surroundings, Watch
from preemptd_providers._deadline_text import seconds_left

LONGEST_OUTPUT = 4 * 1024
REAPED_WITHIN = 1.0
"""Seconds for the end of what was killed: one that hangs in the kernel is waited for no longer."""


class ExecOptions(Options):
    """The table ``[providers.exec]``."""

    command: str = Field(min_length=1)
    """For ``/bin/sh -c``. Its first line may say when the end comes: a time, or the seconds that are left."""
    notice_status: int = Field(default=75, ge=1, le=125)
    """Not 1: that is how a script fails."""
    clear_status: int = Field(default=0, ge=0, le=125)
    """All other ends mean that nobody knows."""
    kind: Literal["preempt", "terminate", "stop", "hibernate", "maintenance"] = "preempt"
    level: Literal["act", "advise"] = "act"
    interval: float = Field(default=5.0, ge=1.0, le=3600.0)
    """Seconds from one start to the next."""
    within: float = Field(default=5.0, gt=0.0, le=60.0)
    """Seconds that it may take; then it is killed with all of its session."""


class CommandWatch(Watch):
    name = "exec:command"

    def __init__(self, options: ExecOptions, commands: Commands | None, lead: float) -> None:
        self.interval = options.interval
        self._options = options
        self._commands = commands
        self._lead = lead
        self._lock = threading.Lock()  # for the two below
        self._process: subprocess.Popen[bytes] | None = None
        self._closed = False

    def observe(self) -> Observation:
        process = self._start()
        if isinstance(process, str):
            return Observation.unknown(process)
        try:
            output = self._read(process)
        finally:
            status = self._end(process)
        if status == self._options.clear_status:
            return Observation.clear()
        if status == self._options.notice_status:
            return Observation.of(self._notice(output))
        if status is None:
            return Observation.unknown(f"the command was not done within {self._options.within:g} s")
        return Observation.unknown(f"the command ended with status {status}")

    def close(self) -> None:
        with self._lock:
            self._closed = True
            if self._process is not None:
                _kill(self._process)

    def _start(self) -> "subprocess.Popen[bytes] | str":
        if self._commands is None:
            return "commands are not run here"
        with self._lock:
            if self._closed:
                return "closed"
            try:
                process = self._commands.popen(("/bin/sh", "-c", self._options.command), stdout=subprocess.PIPE)
            except OSError as error:
                return f"the command cannot be run: {error.strerror}"
            self._process = process
        return process

    def _read(self, process: "subprocess.Popen[bytes]") -> bytes:
        """Read what it says until it has ended, or its time has."""
        out, said = process.stdout, b""
        ends = time.monotonic() + self._options.within
        while out is not None and (left := ends - time.monotonic()) > 0:
            if not select.select([out], [], [], left)[0]:
                break
            got = os.read(out.fileno(), LONGEST_OUTPUT)
            if not got:
                with suppress(subprocess.TimeoutExpired):
                    process.wait(max(0.0, ends - time.monotonic()))
                break
            said = (said + got)[:LONGEST_OUTPUT]
        return said

    def _end(self, process: "subprocess.Popen[bytes]") -> int | None:
        """Kill what still runs; return the status of one that had ended by itself."""
        status = process.poll()
        with self._lock:
            if status is None:
                _kill(process)
            self._process = None
        if status is None:
            with suppress(subprocess.TimeoutExpired):
                process.wait(REAPED_WITHIN)
        if process.stdout is not None:
            process.stdout.close()
        if process.returncode is not None and self._commands is not None:
            self._commands.release(process)
        return status

    def _notice(self, output: bytes) -> Notice:
        wishes = self._options
        first, _, _ = output.decode(errors="replace").strip().partition("\n")
        left = seconds_left(first, datetime.now(timezone.utc), timezone.utc) if first else None
        return Notice(
            provider="exec",
            event_id=f"exec:{wishes.kind}",
            kind=Kind(wishes.kind),
            level=Level(wishes.level),
            source="the command's exit status",
            observed=time.monotonic(),
            remaining=left,
            act_within=self._lead if wishes.level == "advise" and left is not None else None,
            detail=output.decode(errors="replace"),
        )


class Exec(Provider):
    name: ClassVar[str] = "exec"
    options_type: ClassVar[type[Options]] = ExecOptions
    opt_in = True

    def __init__(self, options: Options, surroundings: Surroundings) -> None:
        super().__init__(options, surroundings)
        assert isinstance(options, ExecOptions)  # noqa: S101  # what the registry checks
        self._watch = CommandWatch(options, surroundings.commands, surroundings.lead)

    def watches(self) -> Sequence[Watch]:
        return (self._watch,)

    def describe(self) -> str:
        return "a command of yours"

    def close(self) -> None:
        self._watch.close()


def _kill(process: "subprocess.Popen[bytes]") -> None:
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)  # not reaped yet: the number is still its own
