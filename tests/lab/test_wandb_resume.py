"""A preempted job that is started again goes on with its W&B run: the real `preemptd watch`, the real wandb."""

import json
import os
import signal
import subprocess
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path

import pytest

from preemptd.resumption.record import Record, variables
from tests.conftest import ROOT
from tests.lab.wandb_backend import WandbBackend
from tests.lab.wandb_watching import PATIENCE, Training, announce, every_version, patient, quickly, strings
from tests.metadata_server import FaultyGce
from tests.waiting import wait_until
from tests.watching import Watch, environment, read_lines

pytestmark = patient
SCRIPT = str(ROOT / "tests" / "standins" / "wandb_resume.py")
ENOUGH = 20


class Machine:
    """A machine that a job is started on, with a home of its own."""

    def __init__(self, home: Path, checkpoints: Path, python: str, env: Mapping[str, str]) -> None:
        home.mkdir(exist_ok=True)
        self.home = home
        self.checkpoints = checkpoints
        self._python = python
        self._env = {**env, "HOME": str(home), "XDG_STATE_HOME": str(home / "state"), "WANDB_DIR": str(home)}
        self._starts = 0

    def start(self, *script: str, watch: Sequence[str] = (), env: Mapping[str, str] | None = None) -> Training:
        self._starts += 1
        command = [self._python, SCRIPT, str(self.checkpoints), *script]
        return Training(self.home, command, *watch, env={**self._env, **(env or {})}, name=f"start-{self._starts}")


Make = Callable[..., Machine]


@pytest.fixture
def backend() -> Iterator[WandbBackend]:
    with WandbBackend() as backend:
        yield backend


@pytest.fixture
def machine(wandb_pythons: Mapping[str, str], backend: WandbBackend, tmp_path: Path) -> Make:
    def make(version: str, name: str = "machine", **env: str) -> Machine:
        return Machine(tmp_path / name, tmp_path / "checkpoints", wandb_pythons[version], {**backend.env(), **env})

    return make


def noticed(machine: Machine, *script: str, watch: Sequence[str], more: Mapping[str, str] | None = None) -> Training:
    """Run one attempt that ends by a notice."""
    with ExitStack() as stack:
        gce = stack.enter_context(FaultyGce())
        env = {"GCE_METADATA_HOST": gce.url.removeprefix("http://"), "NO_GCE_CHECK": "false", **(more or {})}
        attempt = stack.enter_context(machine.start(*script, watch=watch, env=env))
        attempt.await_said("step", ENOUGH)
        announce(gce)
        status = attempt.wait()
    print(attempt.err)
    assert status == 75
    return attempt


def ready(watch: Watch) -> tuple[str, bool, int]:
    (line,) = watch.said("ready")
    return strings(line["runs"])[0], bool(line["resumed"]), int(str(line["step"]))


def history(backend: WandbBackend, run_id: str) -> list[dict[str, int]]:
    return [json.loads(line) for line in backend.lines(run_id, "wandb-history.jsonl")]


@every_version
def test_a_preempted_job_that_is_started_again_goes_on_with_its_run(
    machine: Make, backend: WandbBackend, version: str
) -> None:
    here, job = machine(version), ("--job-id", "run42")
    first = noticed(here, watch=job)
    again = noticed(here, watch=job)
    (run_id, resumed, step), (same, goes_on, from_step) = ready(first), ready(again)
    lines = history(backend, run_id)

    assert (resumed, step, same, goes_on) == (False, 0, run_id, True)
    assert from_step >= ENOUGH
    assert [line["_step"] for line in lines] == list(range(len(lines)))
    assert [line["train_step"] for line in lines] == list(range(1, len(lines) + 1))
    assert [line["run_id"] for line in again.lines("resumes")] == [run_id]
    assert backend.unknown() == []


@quickly("0.31.0", "0.19.11")
def test_a_run_whose_end_was_mended_goes_on_as_well(machine: Make, backend: WandbBackend, version: str) -> None:
    here, job = machine(version), ("--job-id", "run42")
    run_id, _, _ = ready(noticed(here, "--code", "0", watch=job))
    codes = backend.exit_codes(run_id)
    same, resumed, _ = ready(noticed(here, watch=job))
    steps = [line["_step"] for line in history(backend, run_id)]

    assert codes == [0, 75]
    assert (same, resumed) == (run_id, True)
    assert steps == list(range(len(steps)))


@quickly("0.31.0")
def test_a_job_that_was_done_begins_a_new_run(machine: Make, version: str) -> None:
    here, job = machine(version), ("--job-id", "run42")
    first = ready(noticed(here, watch=job))
    with here.start("--steps", "1", watch=job) as last:
        status = last.wait()
    with here.start("--steps", "1", watch=job) as new:
        new.wait()

    assert (status, ready(last)[:2]) == (0, (first[0], True))
    assert ready(new)[0] != first[0]


@every_version
def test_a_machine_that_has_nothing_but_the_checkpoints_goes_on_with_the_run(
    machine: Make, backend: WandbBackend, version: str
) -> None:
    here, there = machine(version), machine(version, "another")
    job = ("--job-id", "run42", "--checkpoint-dir", str(here.checkpoints))
    run_id, _, _ = ready(noticed(here, watch=job))
    same, resumed, step = ready(noticed(there, watch=job))
    steps = [line["_step"] for line in history(backend, run_id)]

    assert (same, resumed) == (run_id, True)
    assert step >= ENOUGH
    assert steps == list(range(len(steps)))
    assert not (there.home / "state" / "preemptd" / "wandb").exists()


@quickly("0.31.0", "0.19.11")
def test_two_ranks_that_both_begin_a_run_get_no_id(machine: Make, backend: WandbBackend, version: str) -> None:
    here, job = machine(version), ("--job-id", "run42")
    first = noticed(here, "--ranks", "2", watch=job)
    again = noticed(here, "--ranks", "2", watch=job)
    warnings = [str(line["text"]) for line in first.lines("warning") if "more than once" in str(line["text"])]

    assert len(warnings) == 1
    assert all(str(line["runs"]).strip("[]'") in warnings[0] for line in first.said("ready"))
    assert [line["resumed"] for line in again.said("ready")] == [False, False]
    assert len(backend.runs()) == 4


@quickly("0.31.0")
def test_an_id_that_the_user_has_set_is_used_at_every_start(machine: Make, version: str) -> None:
    here, job = machine(version, WANDB_RUN_ID="mine", WANDB_RESUME="allow"), ("--job-id", "run42")
    first, again = noticed(here, watch=job), noticed(here, watch=job)

    assert (ready(first)[:2], ready(again)[:2]) == (("mine", False), ("mine", True))
    assert again.lines("resumes") == []


@quickly("0.31.0")
def test_two_identical_commands_without_a_job_id_have_runs_of_their_own(machine: Make, version: str) -> None:
    here = machine(version)
    with here.start("--steps", "200") as one, here.start("--steps", "200") as two:
        one.await_said("step", ENOUGH)
        two.await_said("step", ENOUGH)
        assert (one.wait(), two.wait()) == (0, 0)
    runs = {ready(one)[0], ready(two)[0]}
    with here.start("--steps", "0") as later:
        later.wait()

    assert len(runs | {ready(later)[0]}) == 3


@quickly("0.31.0")
def test_a_requeued_slurm_job_goes_on_without_a_job_id(machine: Make, version: str) -> None:
    here = machine(version, SLURM_JOB_ID="4711", SLURM_PROCID="0")
    first = ready(noticed(here, watch=()))
    again = ready(noticed(here, watch=(), more={"SLURM_RESTART_COUNT": "1"}))

    assert again[:2] == (first[0], True)


@quickly("0.31.0")
@pytest.mark.parametrize("given_step", [False, True])
def test_what_was_logged_after_the_last_checkpoint_is_logged_twice_or_dropped(
    machine: Make, backend: WandbBackend, version: str, given_step: bool
) -> None:
    """Without ``step=`` the curve has both attempts; with it, wandb drops what the run has already."""
    here, job = machine(version, WANDB_X_FILE_STREAM_TRANSMIT_INTERVAL="1"), ("--job-id", "run42")
    options = ("--save-at", "10", *(["--given-step"] if given_step else []))
    with here.start(*options, "--die-at", "15", watch=job) as killed:
        killed.await_said("dies")
        (run_id,) = backend.runs()
        (ready_line,) = killed.said("ready")
        known = 14 if given_step else 15  # a row is sent when the next step begins
        wait_until(lambda: len(history(backend, run_id)) >= known)
        wait_until((here.home / "state" / "preemptd" / "wandb" / "run42.json").exists)
        os.kill(int(str(ready_line["pid"])), signal.SIGKILL)
        status = killed.wait()
    with here.start(*options, "--steps", "20", watch=job) as again:
        again.wait()
    steps = [line["train_step"] for line in history(backend, run_id)]

    assert status == 137
    assert ready(again) == (run_id, True, 10)
    assert steps == ([*range(1, 21)] if given_step else [*range(1, 16), *range(11, 21)])


# -- what the code and the environment say ---------------------------------------------------------------------------

NEW, GOES_ON, FAILS = "a new run", "goes on", "fails"
IN_CODE = {
    "{}": (NEW, GOES_ON),
    '{"resume": "allow"}': (NEW, GOES_ON),
    '{"resume": "auto"}': (NEW, GOES_ON),
    '{"resume": true}': (NEW, GOES_ON),
    '{"resume": "must"}': (FAILS, FAILS),
    '{"resume": "never"}': (NEW, FAILS),
    '{"id": "mine"}': (NEW, GOES_ON),
    '{"id": "mine", "resume": "allow"}': (NEW, GOES_ON),
    '{"id": "mine", "resume": "must"}': (FAILS, FAILS),
    '{"id": "mine", "resume": "never"}': (NEW, FAILS),
}
"""Arguments of wandb.init to what becomes of the first start, and of the next one, which gets the id."""
IN_ENVIRONMENT = {
    ("WANDB_RUN_ID=mine",): (NEW, NEW),
    ("WANDB_RUN_ID=mine", "WANDB_RESUME=allow"): (NEW, GOES_ON),
    ("WANDB_RESUME=must",): (FAILS, FAILS),
    ("WANDB_RESUME=allow",): (NEW, NEW),
    ("WANDB_RESUME=never",): (NEW, NEW),
}
"""The same for what the user has set."""
BOTH = [(init, (), found) for init, found in IN_CODE.items()] + [("{}", env, f) for env, f in IN_ENVIRONMENT.items()]


@pytest.mark.parametrize(("init", "said", "expected"), BOTH)
@quickly("0.31.0")
def test_what_code_and_environment_say_comes_first(
    wandb_pythons: Mapping[str, str],
    backend: WandbBackend,
    tmp_path: Path,
    init: str,
    said: Sequence[str],
    expected: tuple[str, str],
    version: str,
) -> None:
    user = dict(text.split("=") for text in said)
    found: list[str] = []
    for attempt in ("first", "next"):
        given = variables(user, Record(next(iter(backend.runs()), None)))
        log = tmp_path / attempt
        env = environment({**backend.env(), **user, **given, "WANDB_DIR": str(tmp_path), "LOG": str(log)})
        command = [wandb_pythons[version], SCRIPT, str(tmp_path), "--steps", "1", "--init", init]
        subprocess.run(command, env=env, check=False, capture_output=True, timeout=PATIENCE)
        resumed = [line["resumed"] for line in read_lines(log) if line["what"] == "ready"]
        found.append(GOES_ON if True in resumed else NEW if False in resumed else FAILS)

    assert tuple(found) == expected


# -- offline ----------------------------------------------------------------------------------------------------------


@every_version
def test_offline_runs_are_parts_of_one_run_where_sync_puts_them_together(machine: Make, version: str) -> None:
    here, job = machine(version, WANDB_MODE="offline"), ("--job-id", "run42")
    first, again = noticed(here, watch=job), noticed(here, watch=job)

    joins = version == "0.31.0"
    assert (ready(again)[0] == ready(first)[0]) == joins
    assert [text.partition(":")[0] for text in offline_warnings(first)] == ["this wandb is older than 0.31"] * (
        not joins
    )


@quickly("0.31.0")
def test_an_offline_run_whose_first_checkpoint_is_that_of_the_notice_is_resumed(machine: Make, version: str) -> None:
    """Its id is written with that checkpoint, and wandb-core may have ended by then."""
    here = machine(version, WANDB_MODE="offline")
    job = ("--job-id", "run42", "--checkpoint-dir", str(here.checkpoints))
    first = noticed(here, "--leave-open", watch=job)
    again = noticed(here, "--leave-open", watch=job)

    assert ready(again)[0] == ready(first)[0]
    assert offline_warnings(first) + offline_warnings(again) == []


def offline_warnings(attempt: Training) -> list[str]:
    return [str(line["text"]) for line in attempt.lines("warning") if "offline run" in str(line["text"])]
