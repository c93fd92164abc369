"""SLURM, or a shutdown, beside the cloud whose spot machine it is: one escalation, whoever announces first."""

import os
import signal
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest

from tests.metadata_server import FaultyEc2
from tests.slurm_world import SlurmWorld, row
from tests.test_all_at_once import NEAR, Crew
from tests.test_slurm_watch import catches, kinds, requeues
from tests.test_watch import on_ec2
from tests.waiting import wait_until
from tests.watching import Watch, trainer

pytestmark = pytest.mark.slow

CLOUD = 60.0
"""Seconds that EC2 leaves; SLURM leaves a third or three times as much: on a busy machine, too, they are told apart."""


@pytest.fixture
def ec2() -> Iterator[FaultyEc2]:
    with FaultyEc2(grace=CLOUD) as server:
        yield server


@pytest.fixture
def world(tmp_path: Path) -> SlurmWorld:
    return SlurmWorld(tmp_path)


def options(directory: Path) -> tuple[str, ...]:
    path = directory / "quick.toml"
    path.write_text("[providers.ec2]\ninterval = 0.1\n")
    return "--no-wandb", f"--config={path}"


def on_spot(world: SlurmWorld, ec2: FaultyEc2) -> Mapping[str, str]:
    """Lead to SLURM and the cloud, both of which are to be found: no test names them."""
    return {**world.environ(), **on_ec2(ec2), "PATH": f"{world.bin}{os.pathsep}{os.environ['PATH']}"}


def crew(world: SlurmWorld, ec2: FaultyEc2) -> Crew:
    """Start a rank that asks and one that is signalled, who stay until `wait`."""
    return Crew(world.directory, *options(world.directory), env=on_spot(world, ec2))


def ends(watch: Crew) -> dict[object, float]:
    """Return by provider the end, on the monotonic clock, that its last notice has, once it is decided."""
    lines = [line for line in watch.lines("notice") if line["acted"] and line["meaning"] != "undecided"]
    return {line["provider"]: float(str(line["mono"])) + float(str(line["grace"])) for line in lines}


def announce(watch: Crew, provider: str, act: Callable[[], None]) -> None:
    act()
    wait_until(lambda: provider in ends(watch), 30, f"{provider} has announced nothing")


def assert_one_escalation_to_the_earliest_end(watch: Crew) -> None:
    assert sorted(str(line["how"]) for line in watch.lines("told")) == ["USR1", "link"]
    assert len(watch.said("signal")) == 1
    assert watch.lines("revoked") == watch.lines("term") == []
    (exited,) = watch.lines("exited")
    assert abs(float(str(exited["mono"])) + float(str(exited["spare"])) - min(ends(watch).values())) < NEAR


@pytest.mark.parametrize("first", ["slurm", "ec2"])
@pytest.mark.parametrize(("grace", "earliest"), [(CLOUD / 3, "slurm"), (CLOUD * 3, "ec2")])
def test_slurm_and_the_cloud_announce_and_the_job_is_told_once_and_requeued_once(
    world: SlurmWorld, ec2: FaultyEc2, first: str, grace: float, earliest: str
) -> None:
    with crew(world, ec2) as watch:
        watch.await_said("ready", 2)
        wait_until(lambda: watch.watching() >= {"slurm", "ec2"}, 30)
        step = int(str(wait_until(lambda: world.calls("srun"), 30)[0]["pid"]))
        wait_until(lambda: catches(step, signal.SIGTERM), 30)

        def preempt() -> None:
            world.say(row=row(end=grace, preempted=-1))
            if first == "slurm":
                os.kill(step, signal.SIGTERM)  # SLURM's default: the batch script itself hears nothing
            else:
                watch.signal(signal.SIGUSR1)

        acts = [("slurm", preempt), ("ec2", ec2.announcement.announce)]
        for provider, act in acts if first == "slurm" else reversed(acts):
            announce(watch, provider, act)
        if (first, earliest) != ("slurm", "slurm"):  # the ranks, told already, hear when the end is another one
            watch.await_deadline(ends(watch)[earliest])
        status = watch.wait()

    assert min(ends(watch), key=ends(watch).__getitem__) == earliest
    assert_one_escalation_to_the_earliest_end(watch)
    assert status == 75
    assert requeues(world) == [["requeue", "12"]]
    assert "; requeued job 12 (preempt, restart 1)" in str(watch.lines("settled"))


def test_a_job_whose_machine_the_cloud_takes_is_requeued_though_slurm_knows_of_nothing(
    world: SlurmWorld, ec2: FaultyEc2
) -> None:
    only = "--requeue-on=preempt"
    with Watch(world.directory, trainer("USR1"), *options(world.directory), only, env=on_spot(world, ec2)) as watch:
        watch.await_said("ready")
        ec2.announcement.announce()
        status = watch.wait()

    assert [line["provider"] for line in watch.lines("notice")] == ["ec2"]
    assert [line["event_id"] for line in watch.lines("told")] == ["ec2:terminate"]
    assert [len(watch.said(what)) for what in ("signal", "saved")] == [1, 1]
    assert status == 75
    assert requeues(world) == [["requeue", "12"]]
    assert "; requeued job 12 (preempt, restart 1)" in str(watch.lines("settled"))


def test_a_job_that_is_cancelled_on_a_machine_that_goes_does_not_come_back(world: SlurmWorld, ec2: FaultyEc2) -> None:
    with crew(world, ec2) as watch:
        watch.await_said("ready", 2)
        ec2.announcement.announce()
        watch.await_line("told", 2)
        world.say(row=row("COMPLETING", end=0))
        watch.signal(signal.SIGTERM)
        wait_until(lambda: "cancelled" in kinds(watch), 30)
        watch.wait()

    assert len(watch.lines("told")) == 2
    assert requeues(world) == []
    assert "; not requeued: cancelled" in str(watch.lines("settled"))


@pytest.mark.parametrize("order", [("ec2", "shutdown"), ("shutdown", "ec2"), ("ec2", "sigterm")], ids=" then ".join)
def test_the_shutdown_that_the_cloud_has_announced_is_no_second_escalation(
    tmp_path: Path, ec2: FaultyEc2, order: tuple[str, str]
) -> None:
    systemctl = tmp_path / "systemctl"
    systemctl.write_text("#!/bin/sh\n[ $1 = is-system-running ] && echo stopping\n")
    systemctl.chmod(0o755)
    env = {**on_ec2(ec2), "PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}"}
    named, cloud = [f"--provider={name}" for name in order], ec2.announcement.announce
    with Crew(tmp_path, *options(tmp_path), *named, env=env) as watch:
        watch.await_said("ready", 2)
        for name in order:
            announce(watch, name, cloud if name == "ec2" else lambda: watch.signal(signal.SIGTERM))
        status = watch.wait()

    assert tuple(watch.acted()) == order
    assert_one_escalation_to_the_earliest_end(watch)
    assert status == 75


def test_a_sigterm_on_a_machine_that_goes_ends_no_save_and_the_job_comes_back(
    world: SlurmWorld, ec2: FaultyEc2
) -> None:
    command = trainer("USR1", save=2)
    with Watch(world.directory, command, *options(world.directory), env=on_spot(world, ec2)) as watch:
        watch.await_said("ready")
        ec2.announcement.announce()
        watch.await_said("signal")
        watch.signal(signal.SIGTERM)
        status = watch.wait()

    assert len(watch.said("saved")) == 1
    assert status == 75
    assert requeues(world) == [["requeue", "12"]]


def test_what_slurm_announces_besides_is_no_reason_to_leave_a_preempted_job(world: SlurmWorld, ec2: FaultyEc2) -> None:
    command, only = trainer("USR1", save=1), "--requeue-on=preempt"
    with Watch(world.directory, command, *options(world.directory), only, env=on_spot(world, ec2)) as watch:
        watch.await_said("ready")
        ec2.announcement.announce()
        watch.await_said("signal")
        world.say(row=row(end=100))  # the time limit
        watch.signal(signal.SIGUSR1)
        status = watch.wait()

    assert kinds(watch)[-1] == "time-limit"
    assert status == 75
    assert requeues(world) == [["requeue", "12"]]
