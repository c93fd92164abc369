"""The client under the real `preemptd watch`: advice, a notice that a rank gives itself, and its acknowledgements."""

import sys
import time
from pathlib import Path

import pytest

from preemptd.notices import Kind, Level
from tests.daemon_histories import World, notice
from tests.metadata_server import FaultyGce
from tests.waiting import wait_until
from tests.watching import Watch

TERMINATE = "TERMINATE_ON_HOST_MAINTENANCE"
MIGRATE = "MIGRATE_ON_HOST_MAINTENANCE"
SHOWS = """
import json, os, sys, time, preemptd as p
def note(what, **more):
    with open(os.environ["LOG"], "a") as log: log.write(json.dumps({"what": what, "pid": os.getpid(), **more}) + "\\n")
def shown(): a = p.advice(); return a and [a.event_id, a.kind, a.source, a.time_left and round(a.time_left, -3)]
p.should_preempt(); note("ready"); last = None
p.on_notice(lambda n: note("called", event_id=n.event_id))
while not p.should_preempt():
    if shown() != last: last = shown(); note("advice", shown=last)
    time.sleep(0.01)
note("told", shown=shown(), event_id=p.notice().event_id)
p.saved(7, "x")
time.sleep(0.3)
"""


def on_gce(server: FaultyGce) -> dict[str, str]:
    return {"GCE_METADATA_HOST": server.url.removeprefix("http://"), "NO_GCE_CHECK": "false"}


@pytest.mark.slow
def test_a_maintenance_is_advice_until_it_is_taken_back_or_its_time_has_come(tmp_path: Path) -> None:
    """A live migration is advice for good; an end in an hour is a notice when 3,595 seconds are left, in 5 seconds."""
    with FaultyGce(grace=3600.0) as server:
        server.announced = {"preempted": ("FALSE", "FALSE"), "maintenance-event": ("NONE", MIGRATE)}
        command = [sys.executable, "-c", SHOWS]
        with Watch(tmp_path, command, "--provider", "gce", "--lead", "3595", env=on_gce(server)) as watch:
            watch.await_said("ready")
            server.announcement.announce()
            watch.await_said("advice")
            server.announcement.revoke()
            watch.await_said("advice", 2)
            server.announced["maintenance-event"] = ("NONE", TERMINATE)
            server.announcement.announce()
            (told,) = watch.await_said("told", timeout=60)
            watch.await_said("called")
            status = watch.wait()

    migration = ["gce:maintenance-migrate", "migrate", "instance/maintenance-event", None]
    end = ["gce:maintenance-terminate", "maintenance", "instance/maintenance-event", 4000.0]
    assert [line["shown"] for line in watch.said("advice")][:3] == [migration, None, end]
    assert (told["shown"], told["event_id"]) == (None, end[0])
    assert [line["event_id"] for line in watch.said("called")] == [end[0]]
    journal = [line["event"] for line in watch.lines()]
    assert [event for event in journal if event in {"advice", "notice", "told", "seen", "saved"}] == [
        *("advice", "advice", "notice", "told", "seen", "saved")
    ]
    assert status == 75


NOTIFIES = """
import os, sys, time, preemptd as p
p.should_preempt()
if not os.fork():
    p.should_preempt(); time.sleep(0.2)
    if not p.notify(20, "rank 1 has been told"): os._exit(9)
while not p.should_preempt(): time.sleep(0.01)
assert p.notice().source == "rank 1 has been told", p.notice()
p.saved(3)
"""


def test_a_rank_that_has_heard_it_elsewhere_has_the_daemon_tell_all_ranks(tmp_path: Path) -> None:
    with Watch(tmp_path, [sys.executable, "-c", NOTIFIES]) as watch:
        status = watch.wait(60)

    (notice_line,) = watch.lines("notice")
    assert (notice_line["provider"], notice_line["source"]) == ("notify", "rank 1 has been told")
    assert len({line["pid"] for line in watch.lines("told")}) == 2
    assert {line["how"] for line in watch.lines("told")} == {"link"}
    assert len(watch.lines("saved")) == 2
    assert status == 75


DEFERS = """
import json, os, time, preemptd as p
p.should_preempt()
with p.defer():
    p.notify(15, "by itself")
    while p.notice() is None: time.sleep(0.01)
    time.sleep(2.0); inside = p.should_preempt()
open("found", "w").write(json.dumps([inside, p.should_preempt()]))
p.saved(1)
"""


def test_who_is_in_a_critical_section_has_heard_it_and_gets_no_signal(tmp_path: Path) -> None:
    with Watch(tmp_path, [sys.executable, "-c", DEFERS]) as watch:
        status = watch.wait(60)

    assert (tmp_path / "found").read_text() == "[false, true]"
    assert [line["how"] for line in watch.lines("told")] == ["link"]
    assert (len(watch.lines("seen")), watch.lines("escalated"), status) == (1, [], 75)


# -- what the daemon says over the link --------------------------------------------------------------------------


def advised(world: World) -> list[tuple[object, object]]:
    return [(message["type"], message["event_id"]) for message in world.link.announced]


def test_advice_that_becomes_a_notice_beside_an_earlier_one_is_taken_back_as_advice() -> None:
    """Who is told hears of the notice with the earliest deadline: of the other one nobody would hear what it became."""
    with World() as world:
        world.listens()
        world.arrives(notice("first", remaining=10.0))
        wait_until(world.notices)
        world.arrives(notice("second", remaining=30.4, level=Level.ADVISE, act_within=30.0))
        wait_until(lambda: len(world.wrote("notice")) == 2)
        wait_until(lambda: len(advised(world)) == 2)
        told = {message["event_id"] for _, message in world.link.said}

    assert advised(world) == [("notice", "second"), ("revoked", "second")]
    assert told == {"first"}


def test_advice_that_is_a_notice_by_itself_is_told_at_the_level_of_one() -> None:
    with World() as world:
        world.listens()
        world.arrives(notice(remaining=10.0, level=Level.ADVISE, act_within=30.0))
        wait_until(world.notices)

    assert [message["level"] for _, message in world.link.said if message["type"] == "notice"] == ["act"]
    assert advised(world) == []


def test_a_maintenance_that_is_put_off_is_taken_back_and_acted_on_at_its_new_time() -> None:
    dated = {"level": Level.ADVISE, "act_within": 30.0, "kind": Kind.MAINTENANCE}
    with World() as world:
        world.listens()
        world.arrives(notice("m1", remaining=30.2, **dated))  # told in a fifth of a second
        wait_until(world.notices)
        world.arrives(notice("m1", remaining=900.0, **dated))
        wait_until(lambda: world.wrote("revoked"))
        wait_until(lambda: len(world.wrote("advice")) == 2)
        world.arrives(notice("m1", remaining=30.2, **dated))
        wait_until(lambda: len(world.notices()) == 2)

    assert [line["event"] for line in world.lines.lines if line["event"] in {"advice", "notice", "revoked"}] == [
        *("advice", "notice", "revoked", "advice", "advice", "notice")
    ]


@pytest.mark.parametrize(("remaining", "left"), [(None, None), (500.0, 500.0)])
def test_advice_goes_to_all_with_the_time_that_is_left(remaining: float | None, left: float | None) -> None:
    with World() as world:
        world.arrives(notice("a1", remaining=remaining, level=Level.ADVISE, kind=Kind.MAINTENANCE))
        wait_until(lambda: world.link.announced)
        (message,) = world.link.announced

    assert message["remaining"] == (left if left is None else pytest.approx(left, abs=20))
    assert (message["level"], message["kind"], message["wandb"]) == ("advise", "maintenance", None)


def test_that_a_job_is_cancelled_is_no_advice_to_it() -> None:
    with World() as world:
        world.arrives(notice("c1", level=Level.ADVISE, kind=Kind.CANCELLED))
        wait_until(lambda: world.wrote("advice"))
        time.sleep(0.1)

    assert world.link.announced == []
