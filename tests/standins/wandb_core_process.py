"""Runs the stand-in for wandb-core as a process that looks like one in /proc."""

import json
import os
import queue
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from preemptd.model import Process
from preemptd.procfs import process_id

PROGRAM = Path(__file__).with_name("wandb_core.py")
# A program whose name is not python's does not find its library by itself.
AS_CORE = ["env", f"PYTHONHOME={sys.base_prefix}", f"PYTHONPLATLIBDIR={sys.platlibdir}", "bash", "-c"]
EXEC = 'exec -a "$0" "$@"'


class CoreStandIn:
    """One running stand-in. *namespaces* are options of unshare; *inside* is a command to run there first."""

    def __init__(
        self,
        directory: Path,
        mode: str = "good",
        options: Sequence[str] = (),
        namespaces: Sequence[str] = (),
        inside: str = "true",
    ) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        python = os.path.realpath(sys.executable)
        command = [str(directory / "wandb-core"), python, "-S", "-s", str(PROGRAM), str(directory), *options, mode]
        unshare = ["unshare", *namespaces] if namespaces else []
        self._popen = subprocess.Popen(
            [*unshare, *AS_CORE, f"{inside} && {EXEC}", *command],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self._lines: queue.SimpleQueue[str] = queue.SimpleQueue()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        self._frames: list[dict[str, str]] = []
        self.pid = self._popen.pid

    def wait_ready(self) -> "CoreStandIn":
        self.address = self._expect("ready")
        return self

    def order(self, order: str) -> None:
        """Send *order* and wait until it was obeyed."""
        assert self._popen.stdin is not None
        self._popen.stdin.write(f"{order}\n")
        self._popen.stdin.flush()
        self._expect(f"did {order}")

    @property
    def frames(self) -> list[dict[str, str]]:
        """Every whole frame that it has read so far."""
        while not self._lines.empty():
            self._keep(self._lines.get())
        return self._frames

    def process(self) -> Process:
        """Return what a snapshot of /proc says of it."""
        found = process_id(self.pid)
        assert found is not None
        command = tuple(Path(f"/proc/{self.pid}/cmdline").read_text().split("\0")[:-1])
        return Process(found.pid, found.start, os.getpid(), os.getpgrp(), "S", "python", command)

    def signal(self, signum: int) -> None:
        self._popen.send_signal(signum)

    def kill(self) -> None:
        self._popen.kill()
        self._popen.wait()

    def close(self) -> None:
        self.kill()
        self._reader.join()
        for stream in (self._popen.stdin, self._popen.stdout):
            assert stream is not None
            stream.close()

    def _read(self) -> None:
        assert self._popen.stdout is not None
        for line in self._popen.stdout:
            self._lines.put(line.rstrip("\n"))

    def _expect(self, start: str) -> str:
        end = time.monotonic() + 20
        while True:
            line = self._lines.get(timeout=max(0.01, end - time.monotonic()))
            if line.startswith(start):
                return line[len(start) :].strip()
            self._keep(line)

    def _keep(self, line: str) -> None:
        if line.startswith("{"):
            self._frames.append(json.loads(line))


@contextmanager
def core_stand_ins(directory: Path, *modes: str) -> Iterator[list[CoreStandIn]]:
    """Start one stand-in a mode, all at the same time, and wait until all are ready."""
    stand_ins: list[CoreStandIn] = []
    try:
        for number, mode in enumerate(modes):
            *options, mode_name = mode.split()
            stand_ins.append(CoreStandIn(directory / f"core{number}", mode_name, options))
        for stand_in in stand_ins:
            stand_in.wait_ready()
        yield stand_ins
    finally:
        for stand_in in stand_ins:
            stand_in.close()
        shutil.rmtree(directory, ignore_errors=True)
