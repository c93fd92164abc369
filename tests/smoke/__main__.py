"""`make smoke-wandb`: one preempted run and one preempted sweep run against the real W&B service, with your own key.

It says what W&B's public API shows of each run, what that should be, and where to look. Exit status 0: all as expected,
1: not, 2: it could not begin.
"""

import argparse
import importlib.util
import os
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path

from preemptd.diagnosis.credentials import has_key
from tests.lab.sweeping import Machine, training
from tests.watching import ROOT

TRAIN = str(ROOT / "tests" / "standins" / "wandb_resume.py")
ENOUGH = 20
"""Steps after which a training has sent something."""
ENDS = {"STEPS": "400"}
"""For the second start, which ends by itself."""
JOB = "smoke"
LOOK_EVERY = 1.0
"""Seconds between two questions to W&B."""
BEGINNING = 90.0
"""Seconds for a script, or an agent and its script, to begin."""


class Look:
    """What W&B's public API says, beside what it should say."""

    def __init__(self, project: str, patience: float) -> None:
        import wandb

        self._api = wandb.Api()
        self.project = project
        self.entity = str(self._api.default_entity)
        self.patience = patience
        self.failures: list[str] = []

    def path(self, run_id: str) -> str:
        return f"{self.entity}/{self.project}/{run_id}"

    def link(self, run_id: str) -> None:
        print(f"look at  {self._api.run(self.path(run_id)).url}", flush=True)

    def state(self, run_id: str, expected: str, when: str, past: str = "") -> None:
        """Ask until the run's state is *expected*, or patience is at its end; *past* shows that we came too late."""
        run, seen = self._api.run(self.path(run_id)), [""]
        end = time.monotonic() + self.patience
        while seen[-1] not in {expected, past or expected} and time.monotonic() < end:
            run.load(force=True)
            if run.state != seen[-1]:
                seen.append(run.state)
            if seen[-1] not in {expected, past}:
                time.sleep(LOOK_EVERY)
        self.that(f"{when}: {expected}", seen[-1] in {expected, past}, " -> ".join(seen[1:]))

    def that(self, what: str, right: bool, seen: object) -> None:
        print(f"{'as expected' if right else 'NOT AS EXPECTED':<16} {what} (seen: {seen})", flush=True)
        if not right:
            self.failures.append(what)


class Place:
    """A directory that stands for the machines: checkpoints, signal files, and one folder a machine."""

    def __init__(self, directory: Path, environ: Mapping[str, str], save_for: float) -> None:
        self._directory = directory
        self._signals = directory / "signals"
        self.checkpoints = directory / "checkpoints"
        self._signals.mkdir(parents=True)
        self.checkpoints.mkdir()
        self._environ = {**environ, "PREEMPTD_SIGNAL_DIR": str(self._signals), "CHECKPOINTS": str(self.checkpoints)}
        self.save_for = save_for

    def script(self, *more: str) -> list[str]:
        return [sys.executable, TRAIN, str(self.checkpoints), "--save-for", str(self.save_for), *more]

    def machine(self, name: str, command: list[str], **environ: str) -> Machine:
        """Start *command* as on a new machine, which has the checkpoints and nothing else."""
        where = self._directory / name
        where.mkdir()
        options = ["--provider", "file", "--job-id", JOB, "--grace", "120", "--state-dir", str(where / "state")]
        os.environ.pop("WANDB_SERVICE", None)  # wandb-core of the API here: the training is to have its own
        env = {**self._environ, "WANDB_DIR": str(where), **environ}
        return Machine(where, command, *options, "--checkpoint-dir", str(self.checkpoints), env=env)

    def preempt(self) -> None:
        (self._signals / f"{JOB}.preempt").touch()

    def calm(self) -> None:
        (self._signals / f"{JOB}.preempt").unlink()


def preempted(look: Look, place: Place, machine: Machine) -> str:
    """Preempt what trains on *machine*; return the id of its run."""
    machine.await_said("step", ENOUGH, BEGINNING)
    run_id, _, _ = machine.ready()[0]
    look.link(run_id)
    look.state(run_id, "running", "before the notice")
    place.preempt()
    machine.await_line("told")
    look.state(run_id, "preempting", "told, and saving", past="preempted")
    status = machine.wait(BEGINNING)
    look.that("preemptd's exit status: 75", status == 75, status)
    look.state(run_id, "preempted", "after the end")
    place.calm()
    return run_id


def goes_on(look: Look, machine: Machine, run_id: str) -> None:
    """Watch the next start of the run, which ends by itself."""
    machine.await_said("ready", 1, BEGINNING)
    again, resumed, step = machine.ready()[0]
    look.that(f"the next start has the same run: {run_id}", again == run_id, again)
    look.that("resumed, behind its checkpoint", resumed and step > 0, f"step {step}")
    status = machine.wait(BEGINNING)
    look.that("preemptd's exit status: 0", status == 0, status)
    look.state(run_id, "finished", "after the second end")


def smoke_run(look: Look, place: Place) -> None:
    print("\na run, preempted by a signal file, and resumed on another machine", flush=True)
    with place.machine("one", place.script()) as machine:
        run_id = preempted(look, place, machine)
    with place.machine("two", place.script("--steps", ENDS["STEPS"])) as machine:
        goes_on(look, machine, run_id)


def smoke_sweep(look: Look, place: Place) -> None:
    import wandb

    print("\na sweep: the preempted run goes to the next agent", flush=True)
    save = f"--save-for {place.save_for}"
    config = {
        "method": "grid",
        "program": "train.py",
        "command": training(sys.executable, more=save),
        "parameters": {"lr": {"values": [0.1]}},
    }
    sweep = wandb.sweep(config, entity=look.entity, project=look.project)
    agent = [str(Path(sys.executable).with_name("wandb")), "agent", f"{look.entity}/{look.project}/{sweep}"]
    with place.machine("one", agent) as machine:
        run_id = preempted(look, place, machine)
    with place.machine("two", agent, **ENDS) as machine:
        goes_on(look, machine, run_id)


def refusal(environ: Mapping[str, str]) -> str | None:
    """Say why this cannot begin; None: it can."""
    if importlib.util.find_spec("wandb") is None:
        return "wandb is not installed here: pip install wandb"
    if environ.get("WANDB_MODE", "online") not in {"online", "shared"}:
        return f"WANDB_MODE={environ['WANDB_MODE']}: this test is about the service"
    if not has_key(os.getpid(), os.getuid(), [environ]):
        return "no W&B API key: set WANDB_API_KEY, or run `wandb login` (it makes two runs in a project of yours)"
    return None


def main() -> int:
    parser = argparse.ArgumentParser(prog="make smoke-wandb", description=__doc__, allow_abbrev=False)
    parser.add_argument("what", nargs="?", choices=["run", "sweep", "both"], default="both")
    parser.add_argument("--project", default="preemptd-smoke", help="where the runs go (default: %(default)s)")
    parser.add_argument("--patience", type=float, default=90.0, metavar="S", help="seconds that each state may take")
    parser.add_argument("--save-for", type=float, default=10.0, metavar="S", help="seconds that a save takes")
    wishes = parser.parse_args()
    if why := refusal(os.environ):
        print(f"smoke-wandb: {why}", file=sys.stderr)
        return 2
    try:
        look = Look(wishes.project, wishes.patience)
    except Exception as error:  # noqa: BLE001 - whatever wandb raises: no key that works, nobody there
        print(f"smoke-wandb: W&B cannot be asked: {' '.join(str(error).split())[:300]}", file=sys.stderr)
        return 2
    environ = {"WANDB_PROJECT": look.project, "WANDB_ENTITY": look.entity, "WANDB_SILENT": "true"}
    with tempfile.TemporaryDirectory(prefix="preemptd-smoke-") as scratch:
        for name, smoke in {"run": smoke_run, "sweep": smoke_sweep}.items():
            if wishes.what in {name, "both"}:
                smoke(look, Place(Path(scratch) / name, environ, wishes.save_for))
    print(f"\n{len(look.failures)} not as expected" if look.failures else "\nall as expected", flush=True)
    return 1 if look.failures else 0


sys.exit(main())
