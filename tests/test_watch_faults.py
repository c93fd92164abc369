"""Metadata servers that fail in every way, under a whole `preemptd watch`: one notice where there is one, else none."""

import signal
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from preemptd.rehearsal.serving import Announcement, MetadataServer, Reply, Request
from tests.metadata_server import (
    Fault,
    FaultyEc2,
    FaultyGce,
    RollingEc2,
    announcement,
    body,
    drip,
    drip_body,
    hang,
    hang_up,
    redirect,
    status,
)
from tests.test_watch import on_ec2, on_gce
from tests.waiting import wait_until
from tests.watching import Watch, trainer

pytestmark = pytest.mark.slow

FAULTS: dict[str, Fault] = {
    "500": status(500),
    "429": status(429, {"Retry-After": "0"}),
    "403": status(403),
    "HTML with 200": body(b"<html>TRUE terminate 2030-01-01T00:00:00Z</html>"),
    "{}": body(b"{}"),
    "truncated JSON": body(b'{"action": "terminate", "time": "20'),
    "a redirect": redirect,
    "a hang-up": hang_up,
    "silence": hang,
    "a byte now and then": drip,
    "a body without end": drip_body,
}
NOTED = """
import signal, time
signal.signal(signal.SIGUSR1, lambda *_: print("told", flush=True))
print("ready", flush=True)
for _ in range(1000):
    time.sleep(0.05)
"""
"""A training that trains on after it was told, until it gets SIGHUP."""


@pytest.fixture
def ec2() -> Iterator[RollingEc2]:
    with RollingEc2(grace=60.0) as server:
        yield server


@pytest.fixture
def gce() -> Iterator[FaultyGce]:
    with FaultyGce(grace=60.0) as server:
        yield server


@pytest.fixture
def often(tmp_path: Path) -> Sequence[str]:
    """Options that make looks more frequent than anybody needs."""
    (tmp_path / "often.toml").write_text("[providers.ec2]\ninterval = 0.1\n")
    return "--provider", "ec2", "--config", str(tmp_path / "often.toml")


def states(watch: Watch) -> list[str]:
    return [str(line["state"]) for line in watch.lines("provider")]


def meets(server: FaultyEc2 | FaultyGce, fault: Fault | None, looks: int = 2) -> None:
    """Let *server* have *fault* for some looks of the watch."""
    before, server.fault = len(server.asked), fault
    wait_until(lambda: len(server.asked) >= before + looks)


def is_quiet(watch: Watch) -> bool:
    """Say whether there was no word of a notice, nor of trouble of our own."""
    return not any(watch.lines(event) for event in ("notice", "advice", "told", "revoked", "warning", "marked"))


def has_told_once(watch: Watch) -> bool:
    return (len(watch.lines("notice")), len(watch.lines("told")), len(watch.lines("revoked"))) == (1, 1, 0)


def test_through_every_fault_of_ec2_the_watch_goes_on_and_tells_once(
    tmp_path: Path, ec2: RollingEc2, often: Sequence[str]
) -> None:
    with Watch(tmp_path, ["python3", "-c", NOTED], *often, env=on_ec2(ec2)) as watch:
        wait_until(lambda: states(watch) == ["watching"])
        for number, name in enumerate(FAULTS, 1):
            ec2.fault = FAULTS[name]
            wait_until(lambda: states(watch).count("outage") == number)  # noqa: B023  # called before the next turn
            ec2.fault = None
            wait_until(lambda: states(watch).count("recovered") == number)  # noqa: B023
        ec2.forget_tokens()
        meets(ec2, status(404), looks=5)  # right after good answers this says what a good server would say
        meets(ec2, None)
        assert is_quiet(watch)

        ec2.fault = status(500)
        wait_until(lambda: states(watch).count("outage") == len(FAULTS) + 1)
        ec2.announcement.announce()
        ec2.fault = None
        watch.await_line("told")
        for fault in (None, status(404), body(b"{}"), status(403), None):  # its time rolls on at each look
            meets(ec2, fault)
        ec2.forget_tokens()
        meets(ec2, None, looks=5)
        watch.signal(signal.SIGHUP)
        assert watch.wait() == 75

    assert has_told_once(watch)
    assert watch.out.count("told") == 1
    assert states(watch) == ["watching", *["outage", "recovered"] * (len(FAULTS) + 2)]
    assert watch.lines("warning") == []


def test_through_faults_of_gce_the_watch_goes_on_and_tells_once(tmp_path: Path, gce: FaultyGce) -> None:
    """Each one is met where a hanging GET returns, which a server may do at any time."""
    gce.waits = False
    with Watch(tmp_path, ["python3", "-c", NOTED], "--provider", "gce", env=on_gce(gce)) as watch:
        wait_until(lambda: "watching" in states(watch))
        gce.fault_on = "instance/preempted"  # two keys are watched: what one has to say must not be taken for the other
        for number, name in enumerate(("500", "HTML with 200", "truncated JSON", "a redirect", "a hang-up"), 1):
            gce.fault = FAULTS[name]
            wait_until(lambda: states(watch).count("outage") == number)  # noqa: B023  # called before the next turn
            gce.fault = None
            wait_until(lambda: states(watch).count("recovered") == number)  # noqa: B023
        gce.fault_on = ""
        assert is_quiet(watch)
        gce.announcement.announce()
        watch.await_line("told")
        meets(gce, status(404))
        meets(gce, None)
        watch.signal(signal.SIGHUP)
        assert watch.wait() == 75

    assert has_told_once(watch)
    assert watch.out.count("told") == 1


@pytest.mark.parametrize("name", ["404 to everything", "HTML with 200", "{}", "silence", "500"])
@pytest.mark.parametrize("cloud", ["ec2", "gce"])
def test_where_no_answer_is_ever_good_the_training_runs_and_it_is_said_once(
    tmp_path: Path, cloud: str, name: str, ec2: RollingEc2, gce: FaultyGce
) -> None:
    server: FaultyEc2 | FaultyGce = ec2 if cloud == "ec2" else gce
    server.fault = {**FAULTS, "404 to everything": status(404)}[name]
    server.announcement.announce()  # not that anybody could know
    environ = on_ec2(ec2) if cloud == "ec2" else on_gce(gce)
    with Watch(tmp_path, ["python3", "-c", NOTED], "--provider", cloud, env=environ) as watch:
        began = time.monotonic()
        watch.await_line("started")
        assert time.monotonic() - began < 5  # 0.3 on an idle machine: nobody waits for the server
        wait_until(lambda: "outage" in states(watch))
        meets(server, server.fault, looks=1)
        watch.signal(signal.SIGHUP)
        assert watch.wait() == 128 + signal.SIGHUP

    assert is_quiet(watch)
    said = [line["provider"] for line in watch.lines("provider")]
    assert len(said) == len(set(said))


def test_a_server_that_is_away_for_ten_seconds_across_the_trigger_costs_nothing_but_the_wait(
    tmp_path: Path, often: Sequence[str]
) -> None:
    with FaultyEc2(grace=60.0) as first, Watch(tmp_path, trainer("USR1"), *often, env=on_ec2(first)) as watch:
        watch.await_said("ready")
        wait_until(lambda: states(watch) == ["watching"])
        first.close()
        gone = time.monotonic()
        watch.await_line("provider", 2)
        wait_until(lambda: time.monotonic() - gone > 10)
        assert is_quiet(watch)
        with FaultyEc2(grace=50.0, port=first.port) as again:
            again.announcement.announce()
            status = watch.wait()

    assert status == 75
    assert has_told_once(watch)
    assert states(watch) == ["watching", "outage", "recovered"]
    assert 40 < float(str(watch.lines("notice")[0]["grace"])) <= 51  # by the second of its Date


class LyingProxy(MetadataServer):
    """A proxy that answers everything with a termination, as a captive portal does."""

    asked = 0

    def answer(self, request: Request) -> Reply:
        self.asked += 1
        page = b"TRUE" if "preempted" in request.path else b'{"action": "terminate", "time": "2030-01-01T00:00:00Z"}'
        return Reply(200, page, {"Metadata-Flavor": "Google", "X-aws-ec2-metadata-token-ttl-seconds": "21600"})


def test_a_proxy_is_never_asked_and_the_real_server_is_heard(tmp_path: Path, ec2: RollingEc2, gce: FaultyGce) -> None:
    silent: Announcement = announcement()
    with LyingProxy(silent) as proxy:
        names = ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy", "HTTPS_PROXY")
        environ = {**on_ec2(ec2), **on_gce(gce), **dict.fromkeys(names, proxy.url), "NO_PROXY": "", "no_proxy": ""}
        with Watch(tmp_path, trainer("USR1"), "--provider", "ec2", "--provider", "gce", env=environ) as watch:
            watch.await_said("ready")
            wait_until(lambda: states(watch).count("watching") == 2)
            wait_until(lambda: gce.waiting >= 1)
            assert is_quiet(watch)
            gce.announcement.announce()
            status = watch.wait()

        assert proxy.asked == 0
    assert status == 75
    assert has_told_once(watch)


def test_two_clouds_that_fail_at_once_are_two_outages_and_neither_ends_the_other(
    tmp_path: Path, ec2: RollingEc2, gce: FaultyGce, often: Sequence[str]
) -> None:
    gce.waits = False
    environ = {**on_ec2(ec2), **on_gce(gce)}
    with Watch(tmp_path, trainer("USR1"), *often, "--provider", "gce", env=environ) as watch:
        watch.await_said("ready")
        wait_until(lambda: states(watch).count("watching") == 2)
        ec2.fault = gce.fault = status(503)
        wait_until(lambda: "ec2" in outages(watch) and "gce" in outages(watch))
        gce.fault = None
        gce.announcement.announce()
        watch.await_line("told")
        watch_status = watch.wait()

    assert watch_status == 75
    assert has_told_once(watch)
    assert outages(watch).count("ec2") == 1


def outages(watch: Watch) -> list[str]:
    lines = watch.lines("provider")
    return [str(line["provider"]).partition(":")[0] for line in lines if line["state"] == "outage"]
