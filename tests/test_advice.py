"""Advice from outside: everybody may hear of it; nobody is told, marked or ended by it unless the user wants that."""

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from preemptd.events import Inbox
from preemptd.notices import Kind, Level
from preemptd.parts import NoMarker
from tests.daemon_histories import World, notice
from tests.metadata_server import FaultyAzure, FaultyEc2, FaultyGce, status
from tests.test_hooks import NOTE, hooks, on_ec2, told
from tests.test_metrics import LISTEN, figures, get, port_of
from tests.waiting import wait_until
from tests.watching import PREEMPTD, Watch, environment, trainer
from tests.webhook_server import WebhookServer

HEARS = """
import json, os, time, preemptd
def note(what, **more):
    with open(os.environ["LOG"], "a") as log: log.write(json.dumps({"what": what, "pid": os.getpid(), **more}) + "\\n")
preemptd.should_preempt(); note("ready")
while preemptd.advice() is None: time.sleep(0.01)
note("advised", kind=preemptd.advice().kind, left=preemptd.advice().time_left)
while not os.path.exists("go"): time.sleep(0.01)
note("told" if preemptd.should_preempt() else "never told")
"""


@pytest.fixture
def ec2() -> Iterator[FaultyEc2]:
    with FaultyEc2(grace=20.0) as server:
        server.event = "rebalance"
        yield server


@pytest.mark.slow
def test_a_recommendation_is_heard_everywhere_and_changes_nothing(tmp_path: Path, ec2: FaultyEc2) -> None:
    with WebhookServer() as web:
        options = ("--on-advice", NOTE.format("advice"), "--on-notice", "echo > notice", *LISTEN, "--webhook", web.url)
        with Watch(tmp_path, [sys.executable, "-c", HEARS], *options, env=on_ec2(ec2)) as watch:
            watch.await_said("ready")
            ec2.announcement.announce()
            (advised,) = watch.await_said("advised")
            hooks(watch, "advice")
            web.await_events(1)
            counted = figures(port_of(watch))
            ask = [*PREEMPTD, "status"]
            shown = subprocess.run(ask, env=environment(on_ec2(ec2)), capture_output=True, text=True, check=True)
            (tmp_path / "go").touch()
            ended = watch.wait()
        events = web.events

    heard = told(tmp_path / "advice")
    assert "  advice ec2:rebalance: rebalance, no date is named\n" in shown.stdout
    assert (advised["kind"], advised["left"]) == ("rebalance", None)
    assert (heard["PREEMPTD_EVENT"], heard["PREEMPTD_KIND"]) == ("advice", "rebalance")
    assert (heard["PREEMPTD_PROVIDER"], heard["PREEMPTD_EVENT_ID"]) == ("ec2", "ec2:rebalance")
    assert not {"PREEMPTD_DEADLINE", "PREEMPTD_REMAINING"} & heard.keys()
    assert events == ["advice"]
    assert counted["preemptd_notices_total['advise', 'ec2', 'rebalance']"] == 1
    assert watch.said("never told")
    assert (ended, watch.lines("told"), watch.lines("marked"), watch.lines("notice")) == (0, [], [], [])
    assert not (tmp_path / "notice").exists()


def test_who_wants_it_has_it_acted_on(tmp_path: Path, ec2: FaultyEc2) -> None:
    options = ("--act-on", "freeze", "--act-on", "migrate,rebalance", "--on-advice", "echo > advice")
    with Watch(tmp_path, trainer("USR1"), *options, env=on_ec2(ec2)) as watch:
        watch.await_said("ready")
        ec2.announcement.announce()
        ended = watch.wait()

    (acted,) = watch.lines("notice")
    assert (acted["kind"], acted["level"], acted["acted"]) == ("rebalance", "act", True)
    assert watch.said("saved")
    assert (ended, watch.lines("advice"), (tmp_path / "advice").exists()) == (75, [], False)


@pytest.mark.slow
def test_advice_with_a_date_tells_the_hook_of_it_once_though_it_is_said_again(tmp_path: Path) -> None:
    with FaultyEc2(grace=3600.0) as ec2:
        ec2.event = "scheduled"
        (tmp_path / "often.toml").write_text("[providers.ec2]\nscheduled_interval = 1\n")
        options = ("--config", "often.toml", "--on-advice", f"echo >> count; {NOTE.format('advice')}")
        with Watch(tmp_path, trainer("none"), *options, env=on_ec2(ec2)) as watch:
            watch.await_said("ready")
            ec2.announcement.announce()
            hooks(watch, "advice")
            ec2.announcement.deadline = (ec2.announcement.deadline or 0.0) - 1000.0  # it comes earlier: news, no event
            watch.await_line("advice", 2)
            ec2.announcement.revoke()
            taken_back = watch.await_line("revoked")[0]
            ec2.announcement.announce()
            hooks(watch, "advice", 2)

    assert taken_back["level"] == "advise"
    assert 2000 < int(told(tmp_path / "advice")["PREEMPTD_REMAINING"]) <= 3600
    assert (tmp_path / "count").read_text() == "\n\n"


class CountingMarker(NoMarker):
    def __init__(self, inbox: Inbox) -> None:
        super().__init__(inbox.put)
        self.asked = 0

    def mark(self, asked: int) -> None:
        self.asked += 1
        super().mark(asked)


@pytest.mark.parametrize(("act_on", "marks"), [((), False), (("migrate",), False), (("rebalance",), True)])
def test_runs_are_marked_only_for_the_kinds_that_are_acted_on(act_on: tuple[str, ...], marks: bool) -> None:
    made: list[CountingMarker] = []

    def marker(inbox: Inbox) -> CountingMarker:
        made.append(CountingMarker(inbox))
        return made[0]

    with World(marker=marker, act_on=act_on) as world:
        world.listens()
        world.arrives(notice("ec2:rebalance", None, level=Level.ADVISE, kind=Kind.REBALANCE))
        wait_until(lambda: world.wrote("notice" if marks else "advice"))
        wait_until(lambda: bool(world.notices()) == marks)

    assert bool(made[0].asked) == marks
    assert bool(world.notices()) == marks


def test_a_kind_that_is_no_advice_is_refused(tmp_path: Path) -> None:
    with Watch(tmp_path, ["touch", "ran"], "--act-on", "rebalance,terminate") as watch:
        ended = watch.wait()

    assert ended == 2
    assert re.search(r"act-on = .*'rebalance,terminate'.*: Input should be 'rebalance', ", watch.err)
    assert len(watch.err.splitlines()) == 1
    assert not (tmp_path / "ran").exists()


def test_what_comes_seldom_and_is_not_answered_is_no_outage(tmp_path: Path) -> None:
    with FaultyGce() as gce:
        gce.fault, gce.fault_on = status(500), "stop-state"
        env = {"GCE_METADATA_HOST": gce.url.removeprefix("http://"), "NO_GCE_CHECK": "false"}
        with Watch(tmp_path, trainer("USR1"), *LISTEN, "--provider", "gce", env=env) as watch:
            watch.await_said("ready")
            port = port_of(watch)
            wait_until(lambda: "GET /computeMetadata/v1/instance/shutdown-details/stop-state" in gce.asked_paths()[2:])
            wait_until(lambda: get(port, "/healthz")[0] == 200)
            watches = {entry["watch"]: entry for entry in json.loads(get(port, "/healthz")[1])["watches"]}
            gce.announcement.announce()
            ended = watch.wait()

    assert watches["gce:instance/shutdown-details/stop-state"]["ok"] is True
    assert [line["state"] for line in watch.lines("provider")] == ["watching"]
    assert (ended, "stop-state" in watch.err) == (75, False)


def test_maintenance_that_is_first_heard_of_when_it_begins_is_a_notice_everywhere(tmp_path: Path) -> None:
    with FaultyAzure() as azure:
        azure.fields.update(EventType="Reboot", EventStatus="Started", NotBefore="")
        options = ("--provider", "azure", "--on-advice", "touch advised", "--on-notice", "touch noticed")
        env = {"PREEMPTD_AZURE_ENDPOINT": azure.url}
        with Watch(tmp_path, trainer("USR1"), *options, env=env) as watch:
            watch.await_said("ready")
            azure.announcement.announce()
            ended = watch.wait()

    assert (ended, [line["level"] for line in watch.lines("notice")]) == (75, ["act"])
    assert (watch.lines("advice"), (tmp_path / "advised").exists(), (tmp_path / "noticed").exists()) == (
        [],
        False,
        True,
    )


def test_azure_may_begin_when_all_is_saved_if_the_command_line_says_so(tmp_path: Path) -> None:
    with FaultyAzure(grace=60.0) as azure:
        options = ("--provider", "azure", "--azure-approve")
        with Watch(tmp_path, trainer("link"), *options, env={"PREEMPTD_AZURE_ENDPOINT": azure.url}) as watch:
            watch.await_said("ready")
            azure.announcement.announce()
            ended = watch.wait()
        approved = azure.approved

    assert (ended, approved) == (75, ["A1"])
    assert "Preempt approved" in watch.err
