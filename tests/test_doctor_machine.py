"""`preemptd doctor` without a pid: what the platform answers, and what the running preemptds would do."""

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.doctors import doctor, run_doctor
from tests.linking import short_directory
from tests.metadata_server import Fault, FaultyEc2, FaultyGce, hang, status
from tests.test_watch import on_ec2, on_gce
from tests.watching import Watch, trainer

pytestmark = pytest.mark.slow


@pytest.fixture
def short() -> Iterator[Path]:
    with short_directory() as directory:
        yield directory


def test_a_machine_without_a_platform_and_without_preemptd_has_nothing_to_lose() -> None:
    found = doctor()
    text = run_doctor()

    assert (found.status, found.kinds()) == (0, {"no-platform", "no-preemptd"})
    assert found.said["job"] is None
    assert {"ec2", "gce", "file", "sigterm"} <= {one["name"] for one in found.said["machine"]["providers"]}
    assert text.stdout.splitlines()[-1] == "verdict     NOTHING would be lost: nothing is watched over here"


def test_a_platform_that_answers_is_named_with_its_endpoint_and_its_answer() -> None:
    with FaultyEc2() as ec2:
        found = doctor(env=on_ec2(ec2))
        (here,) = [one for one in found.said["machine"]["providers"] if one["here"]]

    assert (found.status, found.kinds()) == (0, {"no-preemptd"})
    assert (here["name"], here["why"]) == ("ec2", "AWS_EC2_METADATA_SERVICE_ENDPOINT is set")
    assert here["where"] == f"{ec2.url}: IMDSv2"
    assert [(one["watch"], one["state"], one["why"]) for one in here["watches"]] == [
        ("ec2:spot/instance-action", "clear", None),
        ("ec2:events/recommendations/rebalance", "clear", None),
        ("ec2:events/maintenance/scheduled", "clear", None),
    ]


def test_a_gce_machine_is_asked_for_each_of_its_keys() -> None:
    with FaultyGce() as gce:
        found = doctor(env=on_gce(gce))
        (here,) = [one for one in found.said["machine"]["providers"] if one["here"]]

    assert found.status == 0
    assert [one["state"] for one in here["watches"]] == ["clear"] * 4


@pytest.mark.parametrize(("fault", "why"), [(hang, "s"), (status(403), "403")])
def test_a_platform_that_does_not_answer_would_not_be_heard(fault: Fault, why: str) -> None:
    with FaultyEc2() as ec2:
        ec2.fault = fault
        found = doctor(env=on_ec2(ec2))

    assert (found.status, found.kinds(losing=True)) == (1, {"no-answer"})
    assert why in found.finding("no-answer")["text"]
    assert found.said["text"].startswith("LOST: a notice would not be heard: ec2:spot/instance-action: ")


def test_without_the_network_no_platform_is_asked() -> None:
    with FaultyEc2() as ec2:
        found = doctor("--no-probe", env=on_ec2(ec2))

    assert ec2.asked == []
    assert found.status == 0


def test_a_notice_that_is_pending_is_said() -> None:
    with FaultyEc2() as ec2:
        ec2.announcement.announce()
        found = doctor(env=on_ec2(ec2))

    assert "terminate, act" in found.finding("notice")["text"]


def test_the_preemptds_that_run_say_what_they_would_do(short: Path) -> None:
    with FaultyEc2() as ec2:
        env = {**on_ec2(ec2), "XDG_RUNTIME_DIR": str(short)}
        with (
            Watch(short, trainer("USR1"), env=env, name="a") as good,
            Watch(short, trainer("none"), env=env, name="b") as bad,
        ):
            lost = int(str(bad.await_said("ready")[0]["pid"]))
            told = int(str(good.await_said("ready")[0]["pid"]))
            for watch in (good, bad):
                watch.await_line("provider")
            found = doctor(env=env)
            text = run_doctor(env=env).stdout

            assert (found.status, found.kinds()) == (1, {"catches-nothing"})
            assert found.finding("catches-nothing")["pid"] == lost
            assert {one["pid"] for one in found.said["machine"]["jobs"]} == {lost, told}
            assert {one["pid"] for one in found.said["preemptds"]} == {lost, told}
            assert f"would tell: pid {told} (USR1); W&B runs: none" in text
            assert "ec2:spot/instance-action: clear, last good answer" in text


def test_a_preemptd_that_is_stopped_is_named_by_its_link(short: Path) -> None:
    env = {"XDG_RUNTIME_DIR": str(short)}
    with Watch(short, trainer("USR1"), "--job-id", "run42", env=env) as watch:
        watch.await_said("ready")
        watch.signal(signal.SIGSTOP)
        found = doctor(env=env)
        watch.signal(signal.SIGCONT)

        assert (found.status, found.kinds(losing=True)) == (1, {"mute-preemptd"})
        assert f"the preemptd at {short}/preemptd/run42.sock hangs" in found.said["text"]


def test_what_is_no_preemptd_is_passed_over(short: Path) -> None:
    (short / "preemptd").mkdir()
    (short / "preemptd" / "1.sock").touch()
    found = doctor(env={"XDG_RUNTIME_DIR": str(short)})

    assert found.said["preemptds"] == []
