"""Plays one cell of the exit matrix: a script that is told by the real `preemptd watch` and ends in a given way."""

import os
import signal
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.conftest import ROOT
from tests.lab.wandb_backend import WandbBackend
from tests.lab.wandb_ending import SCRIPT, WAYS
from tests.lab.wandb_watching import Training, announce, strings
from tests.metadata_server import FaultyGce

STYLES = ("flag", "in the handler", "TERM", "blocked", "client")
"""How the script hears of it; the stand-in says what each does."""
POLICIES = ("preempted", "done")
"""Of `--exit-zero`."""
STATUS = {
    "falls_off": 0,
    "sys_exit_0": 0,
    "finish_then_143": 143,
    "early_sys_exit": 143,
    "raise_system_exit": 143,
    "builtin_exit": 3,
    "sys_exit_143": 143,
    "finish_143": 0,
    "exception": 1,
    "with_block": 0,
    "interrupt": 130,
    "os_exit": 143,
    "uncaught TERM": 143,
    "uncaught KILL": 137,
    "uncaught TERM, wandb-core too": 143,
}
"""The script's own exit status, 128 + N for a signal."""


@dataclass(frozen=True)
class Exit:
    """One cell."""

    way: str
    version: str
    style: str = "flag"
    policy: str = "preempted"

    @property
    def name(self) -> str:
        return "-".join((self.way, self.version, self.style, self.policy))

    @property
    def counts_as_done(self) -> bool:
        return self.policy == "done" and STATUS[self.way] == 0

    @property
    def reported(self) -> list[int]:
        """The exit codes that the server gets without us."""
        code = WAYS[self.way]
        return [] if code is None else [code]


@dataclass(frozen=True)
class Played:
    """How it went."""

    status: int
    """Ours."""
    own: int
    """The script's, as the journal has it."""
    codes: Sequence[int]
    """What the server has been sent, in order."""
    marked_first: bool
    """The mark was there before the run was complete."""
    repairs: Sequence[tuple[str, bool]]
    """How each repair was made, and whether it was."""
    took: float
    """Milliseconds of the repair; 0: there was none."""
    rows: int
    """Lines of history that the server has."""
    rate: object
    """The value of ``lr`` in the config that was sent last."""
    unknown: Sequence[str]
    text: str
    """What preemptd said."""


def play(cell: Exit, python: str, directory: Path) -> Played:
    with WandbBackend() as backend, FaultyGce(grace=30.0) as gce:
        env = {**backend.env(), "GCE_METADATA_HOST": gce.url.removeprefix("http://"), "NO_GCE_CHECK": "false"}
        env |= {"WANDB_DIR": str(directory), "PYTHONPATH": os.pathsep.join([str(ROOT), *_python_path()])}
        # Blocked from the start: `import wandb` has a thread, and it is to block the signal too.
        before = ["env", "--block-signal=USR1"] if cell.style == "blocked" else []
        command = [*before, python, SCRIPT, cell.way.partition(" ")[0], "--style", cell.style]
        with Training(directory, command, "--exit-zero", cell.policy, env=env) as watch:
            (ready,) = watch.await_said("ready")
            (run_id,) = strings(ready["runs"])
            announce(gce)
            if cell.way.startswith("uncaught"):
                kill(watch, int(str(ready["pid"])), cell.way)
            status = watch.wait()
        return _played(watch, backend, run_id, status)


def _python_path() -> Sequence[str]:
    return os.environ["PYTHONPATH"].split(os.pathsep) if os.environ.get("PYTHONPATH") else ()


def kill(watch: Training, pid: int, way: str) -> None:
    """Kill a told script from outside, as a platform or a scheduler does."""
    watch.await_said("waits")
    (marked,) = watch.await_line("marked")
    if "wandb-core" in way:
        os.kill(int(str(marked["core_pid"])), signal.SIGTERM)
    os.kill(pid, signal.SIGKILL if "KILL" in way else signal.SIGTERM)


def _played(watch: Training, backend: WandbBackend, run_id: str, status: int) -> Played:
    streams = [call for call in backend.calls if call.operation == "file_stream" and call.run_id == run_id]
    marks = [number for number, call in enumerate(streams) if call.body.get("preempting") is True]
    completes = [number for number, call in enumerate(streams) if call.body.get("complete") is True]
    repairs = watch.lines("repaired")
    return Played(
        status,
        int(str(watch.lines("exited")[0]["status"])),
        backend.exit_codes(run_id),
        bool(marks) and bool(completes) and marks[0] <= completes[0],
        [(str(line["how"]), bool(line["ok"])) for line in repairs],
        sum(float(str(line["ms"])) for line in repairs if line["how"] != "nothing"),
        len(backend.lines(run_id, "wandb-history.jsonl")),
        backend.config(run_id).get("lr", {}).get("value"),
        backend.unknown(),
        watch.err,
    )
