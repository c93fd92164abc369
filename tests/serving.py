"""Runs the real `preemptd daemon` beside trainings that a test starts itself."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType

from tests.waiting import wait_until
from tests.watching import PREEMPTD, environment, read_lines, trainer


class Serving:
    """One daemon with a journal, a signal file and a configuration; ends with the test, and so do its trainings."""

    def __init__(self, directory: Path, config: str, *options: str, env: Mapping[str, str] | None = None) -> None:
        self.directory = directory
        self.journal = directory / "daemon.journal"
        self.config = directory / "preemptd.toml"
        self.signals = directory / "signals"
        self.signals.mkdir(exist_ok=True)
        self.config.write_text(config)
        self.environ = environment(
            {
                "XDG_RUNTIME_DIR": str(directory),
                "XDG_STATE_HOME": str(directory / "state"),
                "PREEMPTD_SIGNAL_DIR": str(self.signals),
                **(env or {}),
            }
        )
        self._options = options
        self._trainings: list[subprocess.Popen[bytes]] = []
        self.process = self._start()

    def _start(self) -> "subprocess.Popen[bytes]":
        command = [*PREEMPTD, "daemon", "--config", str(self.config), "--journal", str(self.journal), *self._options]
        return subprocess.Popen(command, env=self.environ, stderr=subprocess.PIPE, cwd=self.directory)

    def __enter__(self) -> "Serving":  # noqa: PYI034  # typing.Self is newer than Python 3.10
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for process in (*self._trainings, self.process):
            if process.poll() is None:
                process.kill()
            _, err = process.communicate(timeout=30)
            print((err or b"").decode())  # pytest shows it when the test fails
        print(*self.lines(), sep="\n")

    def train(
        self, how: str, name: str = "a", save: float = 0.2, code: int = 0, *, env: Mapping[str, str] | None = None
    ) -> "Training":
        """Start a training of our own, and wait until it is ready."""
        log = self.directory / f"{name}.log"
        environ = {**environment(), "LOG": str(log), "CHECKPOINTS": str(self.directory), **(env or {})}
        process = subprocess.Popen(
            trainer(how, save, code), env=environ, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        self._trainings.append(process)
        training = Training(process, log)
        training.await_said("ready")
        return training

    def restart(self) -> None:
        """Start another daemon after this one has ended."""
        self.process.communicate(timeout=30)
        self.process = self._start()

    def lines(self, event: str | None = None) -> list[dict[str, object]]:
        return [line for line in read_lines(self.journal) if event is None or line["event"] == event]

    def await_line(
        self,
        event: str,
        count: int = 1,
        wanted: Callable[[dict[str, object]], bool] = lambda _: True,
        timeout: float = 30.0,
    ) -> list[dict[str, object]]:
        def found() -> list[dict[str, object]]:
            return [line for line in self.lines(event) if wanted(line)]

        wait_until(
            lambda: len(found()) >= count or self.process.poll() is not None, timeout, f"{event}: {self.lines()}"
        )
        assert len(found()) >= count, self.end()
        return found()

    def notify(self) -> None:
        """Raise the signal file of this machine."""
        new = self.signals / "new"
        new.touch()
        new.rename(self.signals / f"node-{os.uname().nodename}.preempt")

    def status(self) -> str:
        command = [sys.executable, "-m", "preemptd", "status", "--json"]
        return subprocess.run(command, env=self.environ, capture_output=True, text=True, check=True, timeout=30).stdout

    def signal(self, signum: signal.Signals) -> None:
        os.kill(self.process.pid, signum)

    def end(self, timeout: float = 30.0) -> tuple[int, str]:
        """Wait for its end; return status and what it said."""
        _, err = self.process.communicate(timeout=timeout)
        return self.process.returncode, err.decode()


class Training:
    def __init__(self, process: "subprocess.Popen[bytes]", log: Path) -> None:
        self.process = process
        self.pid = process.pid
        self._log = log

    def said(self, what: str | None = None) -> list[dict[str, object]]:
        return [line for line in read_lines(self._log) if what is None or line["what"] == what]

    def await_said(self, what: str, count: int = 1, timeout: float = 30.0) -> list[dict[str, object]]:
        wait_until(lambda: len(self.said(what)) >= count, timeout, f"the training said {what}")
        return self.said(what)
