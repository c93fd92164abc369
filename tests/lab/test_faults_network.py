"""The network to the metadata fails, in every way, under a whole `preemptd watch`: a notice that comes is heard."""

import contextlib
import json
import os
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from preemptd.rehearsal.serving import Reply, Request
from tests.lab.net_weather import BLACK_HOLE, V4, Sky, World, inside
from tests.lab.test_watch_network import HIDE_DMI
from tests.metadata_server import FaultyEc2, FaultyGce
from tests.test_watch_faults import has_told_once, is_quiet
from tests.waiting import wait_until
from tests.watching import PREEMPTD, Watch, environment, trainer

BOUND = 10.0
"""Seconds from the end of a fault to the notice, as docs/how-it-works.md says: a pause of 5, the rest is for looks."""
LOSS = Sky(loss=0.4)
DELAY = Sky(delay=0.5, jitter=0.2)


class HopLimitedEc2(FaultyEc2):
    """The answer to the PUT, and that alone, gets *put_ttl* hops far."""

    put_ttl = 64

    def write(self, connection: socket.socket, request: Request, reply: Reply) -> None:
        ttl = self.put_ttl if request.method == "PUT" else 64
        connection.setsockopt(socket.IPPROTO_IP, socket.IP_TTL, ttl)
        super().write(connection, request, reply)

    def limit_hops(self) -> Callable[[], None]:
        """Let the tokens be void, and the new ones not arrive; return what makes it good again."""
        self.put_ttl = 1
        self.forget_tokens()

        def back() -> None:
            self.put_ttl = 64

        return back


SERVERS: dict[str, type[FaultyEc2 | FaultyGce]] = {"ec2": HopLimitedEc2, "gce": FaultyGce}
Fault = Callable[["Scene"], Callable[[], None]]
"""Begins, and returns what ends it."""


class Scene:
    """A cloud's metadata in a world of its own, and `preemptd watch` in there."""

    def __init__(self, cloud: str, directory: Path, stack: contextlib.ExitStack) -> None:
        self.cloud, self._directory, self._stack = cloud, directory, stack
        self.world = World(f"preemptdf{os.getpid()}")
        stack.callback(self.world.close)
        with inside(self.world.service):
            self.server = stack.enter_context(SERVERS[cloud](grace=60.0, address=V4, port=80))

    def watch(self) -> Watch:
        with inside(self.world.machine):
            watch = Watch(self._directory, trainer("USR1"), "--provider", self.cloud)
        return self._stack.enter_context(watch)

    def watch_that_probes(self) -> Watch:
        hidden = ["unshare", "--mount", "sh", "-c", HIDE_DMI, "sh"]
        allowed = {"AWS_EC2_METADATA_DISABLED": "false", "NO_GCE_CHECK": "false"}
        with inside(self.world.machine):
            watch = Watch(self._directory, trainer("USR1"), before=hidden, env=allowed)
        return self._stack.enter_context(watch)

    def limit_hops(self) -> Callable[[], None]:
        assert isinstance(self.server, HopLimitedEc2)
        return self.server.limit_hops()

    def listens(self) -> bool:
        """Say whether it is known by now that all is well; on GCE both hanging GETs are under way."""
        return self.server.waiting >= 2 if isinstance(self.server, FaultyGce) else len(self.server.asked) > 3


@pytest.fixture
def scene(needs_netns: None, tmp_path: Path) -> Iterator[Callable[[str], Scene]]:  # noqa: ARG001  # asked for, not used
    if not os.path.exists("/dev/net/tun"):
        pytest.skip("needs /dev/net/tun (in a container: run it privileged)")
    with contextlib.ExitStack() as stack:
        yield lambda cloud: Scene(cloud, tmp_path, stack)


def states(watch: Watch, state: str) -> list[str]:
    return [str(line["provider"]) for line in watch.lines("provider") if line["state"] == state]


def await_state(watch: Watch, state: str, count: int = 1) -> None:
    wait_until(lambda: len(states(watch, state)) >= count or watch.process.poll() is not None, 60, state)


def status(watch: Watch) -> list[dict[str, object]]:
    """Ask, as a person would: how the watches are whose silence is an outage."""
    link = str(watch.lines("started")[0]["link"])
    ask = [*PREEMPTD, "status", "--json", "--link", link]
    answer = subprocess.run(ask, env=environment(), capture_output=True, check=True, timeout=60)
    watches: list[dict[str, object]] = json.loads(answer.stdout)["watches"]
    return [one for one in watches if not one["secondary"]]


def heard_after(watch: Watch, since: float) -> float:
    """Return the seconds from *since* to the notice."""
    (notice,) = watch.await_line("notice", timeout=60)
    took = float(str(notice["mono"])) - since
    print("heard after", took)
    return took


FAULTS: dict[str, tuple[str, Fault]] = {
    "REJECT": ("ec2", lambda s: s.world.filter(f"ip daddr {V4} meta l4proto tcp reject with tcp reset")),
    "REJECT, administratively": ("ec2", lambda s: s.world.filter(f"ip daddr {V4} reject with icmp admin-prohibited")),
    "DROP": ("ec2", lambda s: s.world.filter(f"ip daddr {V4} drop")),
    "no route": ("ec2", lambda s: s.world.route()),
    "a blackhole route": ("ec2", lambda s: s.world.route("blackhole")),
    "hop limit 1": ("ec2", lambda s: s.limit_hops()),
    "a black hole below hanging GETs": ("gce", lambda s: s.world.under(BLACK_HOLE)),
}


@pytest.mark.parametrize("name", FAULTS)
def test_meanwhile_it_is_said_that_nobody_answers_and_then_the_notice_is_heard_in_time(
    name: str, scene: Callable[[str], Scene]
) -> None:
    cloud, fault = FAULTS[name]
    here = scene(cloud)
    watch = here.watch()
    await_state(watch, "watching")
    wait_until(here.listens)
    back = fault(here)
    watches = 2 if cloud == "gce" else 1
    await_state(watch, "outage", watches)
    here.server.announcement.announce()
    said = status(watch)
    wait_until(lambda: min(float(str(one["last_good_s"])) for one in status(watch)) > 3, pause=0.5)  # it tries again
    assert is_quiet(watch)
    assert [one["state"] for one in said] == ["unknown"] * watches
    back()
    ended = time.monotonic()

    assert heard_after(watch, ended) < BOUND
    assert watch.wait() == 75
    assert has_told_once(watch)
    assert len(states(watch, "outage")) == watches


@pytest.mark.parametrize(("cloud", "route"), [("ec2", "blackhole"), ("gce", "unreachable")])
def test_where_nobody_answers_from_the_start_the_training_runs_and_the_notice_is_heard_in_time(
    cloud: str, route: str, scene: Callable[[str], Scene]
) -> None:
    here = scene(cloud)
    back = here.world.route(route)
    watch = here.watch()
    await_state(watch, "outage")
    watch.await_said("ready")
    here.server.announcement.announce()
    said = status(watch)
    back()
    ended = time.monotonic()

    assert {(one["state"], one["last_good_s"]) for one in said} == {("unknown", None)}
    assert heard_after(watch, ended) < BOUND
    assert watch.wait() == 75
    assert has_told_once(watch)


@pytest.mark.parametrize("cloud", ["ec2", "gce"])
def test_a_cloud_that_nobody_knows_of_and_that_is_not_reached_at_the_start_is_found_soon_after(
    cloud: str, scene: Callable[[str], Scene]
) -> None:
    here = scene(cloud)
    back = here.world.under(BLACK_HOLE)
    watch = here.watch_that_probes()
    await_state(watch, "none")
    watch.await_said("ready")
    back()
    await_state(watch, "watching")
    here.server.announcement.announce()

    assert heard_after(watch, time.monotonic()) < BOUND
    assert watch.wait() == 75
    assert [line["provider"] for line in watch.lines("provider")] == [None, cloud]


@pytest.mark.parametrize("cloud", ["ec2", "gce"])
@pytest.mark.parametrize("sky", [LOSS, DELAY], ids=["40 % loss", "500 ms delay with jitter"])
def test_a_bad_network_makes_no_notice_and_keeps_none_back_beyond_its_end(
    cloud: str, sky: Sky, scene: Callable[[str], Scene]
) -> None:
    """Both ways: what is asked has to get there, and the answer back."""
    here = scene(cloud)
    watch = here.watch()
    await_state(watch, "watching")
    wait_until(here.listens)
    back = here.world.under(sky)
    looks, began = len(here.server.asked), time.monotonic()
    wait_until(lambda: len(here.server.asked) > looks + 2 or time.monotonic() > began + 4)
    assert is_quiet(watch)
    here.server.announcement.announce()
    raised = time.monotonic()
    wait_until(lambda: watch.lines("notice") or time.monotonic() > raised + 8)  # mostly it gets through
    back()
    ended = time.monotonic()

    assert heard_after(watch, ended) < BOUND
    assert watch.wait() == 75
    assert has_told_once(watch)


def test_a_black_hole_that_is_over_before_it_is_noticed_costs_nothing_but_its_time(
    scene: Callable[[str], Scene],
) -> None:
    here = scene("gce")
    watch = here.watch()
    await_state(watch, "watching")
    wait_until(here.listens)
    back = here.world.under(BLACK_HOLE)
    here.server.announcement.announce()
    began = time.monotonic()
    wait_until(lambda: time.monotonic() > began + 1.5)
    back()
    ended = time.monotonic()

    assert heard_after(watch, ended) < BOUND
    assert watch.wait() == 75
    assert has_told_once(watch)
