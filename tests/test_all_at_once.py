"""All providers at once on one machine: one escalation, the earliest deadline, and nobody waits for a neighbour."""

import itertools
import os
import signal
import statistics
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from preemptd.provider import Conclusion, Options, Outcome, Provider, Surroundings
from preemptd.watching import Turn
from preemptd_providers._gce_server import NO_HANG_BELOW
from tests.bench.providers import Idle
from tests.daemon_histories import World
from tests.everywhere import PROVIDERS, Everywhere
from tests.metadata_server import Fault, FaultyGce, drip, drip_body, hang, hang_up
from tests.plugin_packages import PluginPackages, plugins
from tests.test_provider_contract import closed_port
from tests.test_threads_refused import refuse
from tests.test_watch import on_gce
from tests.waiting import wait_until
from tests.watching import PREEMPTD, ROOT, Watch, trainer

__all__ = ["closed_port", "plugins"]

CREW = str(ROOT / "tests" / "standins" / "crew.py")
QUICK = {"ec2": 0.1, "azure": 1.0, "alibaba": 1.0, "tencent": 1.0, "byteplus": 1.0, "http": 1.0, "exec": 1.0}
"""Seconds from look to look."""

# By provider, the seconds that it leaves: some at once, the others one after the other, each with less than all before.
AT_ONCE = {"azure": 300.0, "ec2": 280.0, "tencent": 260.0, "gce": 240.0}
LATER = {"alibaba": 215.0, "byteplus": 190.0, "http": 165.0, "exec": 140.0, "file": 115.0}
NEAR = 8.0
"""Seconds by which a deadline may be wrong: servers name whole ones, and a busy machine reads their clocks late."""


class Crew(Watch):
    """One `watch` over a rank that asks and one that is signalled, who stay whatever is announced."""

    def __init__(self, directory: Path, *options: str, env: Mapping[str, str], name: str = "job") -> None:
        self.end = directory / f"{name}.end"
        command = [sys.executable, CREW, "link", "USR1"]
        mine = {"END": str(self.end), "PYTHONPATH": f"{env.get('PYTHONPATH', '')}:{ROOT}"}
        super().__init__(directory, command, *options, env={**env, **mine}, name=name)

    def wait(self, timeout: float = 30.0) -> int:
        self.end.touch()
        return super().wait(timeout)

    def watching(self) -> set[object]:
        return {line["provider"] for line in self.lines("provider") if line["state"] == "watching"}

    def acted(self) -> list[object]:
        return [line["provider"] for line in self.lines("notice") if line["acted"]]

    def known(self) -> list[float]:
        """List the deadlines, on the monotonic clock, that the rank has seen."""
        return [float(str(line["deadline"])) for line in self.said("open") if line["deadline"] is not None]

    def await_deadline(self, expected: float) -> None:
        wait_until(
            lambda: self.known() and abs(self.known()[-1] - expected) < NEAR, 30, f"{expected}: {self.said('open')}"
        )


@pytest.mark.slow
def test_notices_of_all_providers_are_one_escalation_to_the_earliest_deadline(tmp_path: Path) -> None:
    hooks = tmp_path / "hooks"
    hook = f'echo "$PREEMPTD_PROVIDER $PREEMPTD_DEADLINE" >> {hooks}'
    options = ["--grace", str(AT_ONCE["gce"]), "--on-notice", hook]
    with Everywhere(tmp_path, QUICK) as here, Crew(tmp_path, *here.options(), *options, env=here.env) as watch:
        watch.await_said("ready", 2)
        wait_until(lambda: watch.watching() >= set(PROVIDERS), 30, f"all watch: {watch.lines()}")
        began = time.monotonic()
        for name, grace in AT_ONCE.items():
            here.announce(name, grace)
        wait_until(lambda: set(watch.acted()) == set(AT_ONCE), 30, f"{watch.lines()}")
        watch.await_deadline(began + min(AT_ONCE.values()))
        for name, grace in LATER.items():
            ends = time.time() + grace
            here.announce(name, grace)
            watch.await_deadline(ends - time.time() + time.monotonic())
            assert abs(hooked(hooks, name) - ends) < NEAR
        here.announce("ec2", 60.0)
        watch.await_deadline(time.monotonic() + 60.0)

        known = watch.known()
        assert all(later < earlier + NEAR for earlier, later in itertools.pairwise(known)), known
        assert sorted(map(str, watch.acted())) == sorted([*AT_ONCE, *LATER, "ec2"])
        assert (len(watch.lines("told")), len(watch.said("signal"))) == (2, 1)
        withdrawn_one_after_the_other(here, watch)
        watch.signal(signal.SIGTERM)
        watch.await_line("told", 4)
        assert watch.wait() == 75
    assert watch.acted()[-1] == "sigterm"


def hooked(path: Path, name: str) -> float:
    """Return the deadline, in Unix time, that the hook was given for the notice of provider *name*."""

    def found() -> list[str]:
        lines = path.read_text().splitlines() if path.exists() else []
        return [line.partition(" ")[2] for line in lines if line.partition(" ")[0] == name]

    return float(wait_until(found, 30, f"hook of {name}")[0])


def withdrawn_one_after_the_other(here: Everywhere, watch: Crew) -> None:
    """Take all back, the earliest first: the others stay open, and with the last one it is over."""
    left = {**AT_ONCE, **LATER}
    for count, name in enumerate(("ec2", *reversed([each for each in left if each != "ec2"])), 1):
        assert watch.said("open")[-1]["deadline"] is not None, f"{name} is open"
        del left[name]
        here.revoke(name)
        watch.await_line("revoked", count)
    wait_until(lambda: watch.said("open")[-1]["deadline"] is None, 30, f"{watch.said('open')}")

    assert max(watch.known()) < watch.known()[-1] + NEAR  # azure's, the last that was left
    assert len(watch.lines("told")) == 2


# -- slow and dead neighbours ------------------------------------------------------------------------------------------

NEIGHBOURS = """
import time
from preemptd.provider import *

class Looks(Watch):
    def __init__(self, name, look):
        self.name, self.observe = name, look
    def observe(self):
        raise NotImplementedError

class Asleep(Provider):
    name = "asleep"
    def watches(self):
        return [Looks("asleep:forever", lambda: time.sleep(600.0))]

class Raising(Provider):
    name = "raising"
    def watches(self):
        return [Looks("raising:always", lambda: 1 / 0)]
"""
FAULTS: Mapping[str, Fault] = {
    "ec2": hang,
    "azure": hang,
    "alibaba": drip,
    "byteplus": hang_up,
    "http": drip_body,
}
PATIENT = {"ec2:spot/instance-action", "azure:scheduledevents"}
"""Watches that wait for a minute or two before they say that there is no answer."""
Watched = tuple[list[str], dict[str, str]]
"""Options and environment."""
ROUNDS = 5
LONG_HANG = NO_HANG_BELOW + 0.1
"""Seconds: what comes sooner is followed by a pause, for a server may not know how to wait."""
MANY = trainer("many")


@contextmanager
def neighbours(directory: Path, plugins: PluginPackages, dead: tuple[str, int]) -> Iterator[Watched]:
    """Yield options and environment that name every provider but `gce`: none of them gets an answer, most only wait."""
    plugins.add("neighbours", NEIGHBOURS, "asleep = neighbours:Asleep\nraising = neighbours:Raising")
    (directory / "file.leaving").symlink_to(directory / "nowhere")
    with Everywhere(directory, QUICK, "exec sleep 20") as here:
        for name, fault in FAULTS.items():
            here.servers[name].fault = fault
        env = {
            **here.env,
            "AWS_METADATA_SERVICE_TIMEOUT": "60",
            "PREEMPTD_TENCENT_ENDPOINT": "http://{}:{}".format(*dead),
            "PYTHONPATH": str(plugins.site),
        }
        names = [name for name in PROVIDERS if name != "gce"]
        yield ["--provider=asleep", "--provider=raising", *here.options(*names)], env


@pytest.mark.slow
def test_slow_and_dead_providers_delay_neither_the_start_nor_a_notice_of_another(
    tmp_path: Path, plugins: PluginPackages, closed_port: tuple[str, int]
) -> None:
    with (
        FaultyGce() as gce,
        neighbours(tmp_path, plugins, closed_port) as (options, env),
        Watch(tmp_path, MANY, "--provider=gce", env=on_gce(gce), name="alone") as alone,
        Watch(tmp_path, MANY, *options, "--provider=gce", env={**env, **on_gce(gce)}, name="among") as among,
    ):
        for watch in (alone, among):
            watch.await_said("ready")
            await_provider(watch, "gce", "watching")
        told = [told_after(gce, (alone, among), number) for number in range(1, ROUNDS + 1)]
        await_provider(among, "tencent:termination-time", "outage")
        ended(alone, among)
        before = list(itertools.takewhile(lambda line: line["event"] != "started", among.lines()))

    usual, delayed = (statistics.median(times) for times in zip(*told, strict=True))
    assert delayed < 5 * usual + 1.0, told  # a look at any of the neighbours takes two seconds or more
    assert not {line["provider"] for line in before if line.get("state") == "outage"} & PATIENT
    (began,) = (float(str(line["mono"])) for line in before if line.get("provider") == "sigterm")
    assert float(str(among.lines("started")[0]["mono"])) - began < 0.3 + 10


def ended(*watches: Watch) -> None:
    for watch in watches:
        for pid in watch.training():
            os.kill(pid, signal.SIGKILL)
    for watch in watches:
        watch.wait()


def await_provider(watch: Watch, name: str, state: str) -> None:
    wait_until(
        lambda: any((line["provider"], line["state"]) == (name, state) for line in watch.lines("provider")),
        30,
        f"{name}: {state} in {watch.lines('provider')}",
    )


def told_after(gce: FaultyGce, watches: Sequence[Watch], number: int) -> list[float]:
    """Announce it the *number*-th time; return after how many seconds each was told, and take it back."""
    wait_until(lambda: gce.waiting >= 2 * len(watches), 30, "both keys of each hang")
    time.sleep(LONG_HANG)
    began = time.monotonic()
    gce.announcement.announce()
    lines = [watch.await_line("told", number)[-1] for watch in watches]
    gce.announcement.revoke()
    for watch in watches:
        watch.await_line("revoked", number)
    return [float(str(line["mono"])) - began for line in lines]


# -- what it costs -----------------------------------------------------------------------------------------------------

A_MINUTE = {"ec2": 100, "gce": 10, "azure": 60, "alibaba": 15, "tencent": 15, "byteplus": 15, "http": 15}
"""Requests; docs/benchmarks.md has what is measured."""


@pytest.mark.slow
def test_all_together_ask_no_more_often_than_they_say_and_take_little_of_the_processor(tmp_path: Path) -> None:
    with ExitStack() as stack:
        idle = Idle(PREEMPTD, tmp_path / "idle", PROVIDERS, stack)
        wait_until(idle.watches, 60)
        looks = idle.here.servers["ec2"].asked
        wait_until(lambda: len(looks) > 10, 60, "it has imported all that it will ever import")
        began, before = time.monotonic(), len(looks)
        idle.begin()
        wait_until(lambda: len(looks) > before + 10, 60, "some seconds")
        took = time.monotonic() - began
        cost, requests = idle.cost(took), idle.requests()

    asked = {name: sum(number for (of, _), number in requests.items() if of == name) for name in A_MINUTE}
    assert {name: number for name, number in asked.items() if number > A_MINUTE[name] * took / 60 + 5} == {}
    assert cost.processor < 10 * 0.5


# -- the last act ------------------------------------------------------------------------------------------------------

SETTLING = """
import os, time
from preemptd.errors import ProviderError
from preemptd.provider import *

class Slow(Provider):
    name = "slow"
    def settle(self, conclusion, budget):
        ends = time.monotonic() + 30.0
        while not os.path.exists(os.environ["SETTLED"]):
            if time.monotonic() > ends:
                return "slow: nobody else was let in"
            time.sleep(0.01)
        return "slow: done"

class Failing(Provider):
    name = "failing"
    def settle(self, conclusion, budget):
        open(os.environ["SETTLED"], "x").close()
        raise ProviderError("failing: cannot settle")

class Broken(Provider):
    name = "broken"
    def settle(self, conclusion, budget):
        raise KeyError("a bug")
"""


def test_each_provider_settles_and_none_takes_the_time_of_another(tmp_path: Path, plugins: PluginPackages) -> None:
    names = ("slow", "failing", "broken")
    plugins.add("settling", SETTLING, "\n".join(f"{name} = settling:{name.title()}" for name in names))
    with Everywhere(tmp_path, QUICK) as here:
        env = {**here.env, "PYTHONPATH": str(plugins.site), "SETTLED": str(tmp_path / "settled")}
        options = [f"--provider={name}" for name in names]
        with Watch(tmp_path, trainer("link"), *options, *here.options(), "--azure-approve", env=env) as watch:
            watch.await_said("ready")
            here.announce("azure", 60.0)
            assert watch.wait(60) == 75

    assert here.azure.approved == ["A1"]
    (settled,), (let_go,) = watch.lines("settled"), watch.lines("let-go")
    assert "slow: done" in str(settled["why"]).split("; ")
    assert let_go["why"] == "Preempt approved"
    warnings = " ".join(str(line["text"]) for line in watch.lines("warning"))
    assert "failing: cannot settle" in warnings
    assert "provider broken failed: KeyError('a bug')" in warnings


class Acting(Provider):
    """Settles as it is told to."""

    name = "acting"

    def __init__(self, act: Callable[[float], str]) -> None:
        super().__init__(Options(), Surroundings({}))
        self._act = act

    def settle(self, conclusion: Conclusion, budget: float) -> str:  # noqa: ARG002  # how it ended makes no difference
        return self._act(budget)


class NeedsTime(Acting):
    settles_within = 3.0


class LetsGo(Acting):
    settles_last = True


ENDED = Conclusion(Outcome(0), preempted=True, unsaved="")


def test_who_does_not_come_to_an_end_with_its_last_act_is_waited_for_no_longer_than_its_time() -> None:
    hangs = threading.Event()
    providers = {"hangs": Acting(lambda _: str(hangs.wait(60))), "quick": Acting(lambda budget: f"had {budget:.1f} s")}
    with World(providers=providers) as world:
        began = time.monotonic()
        done = world.daemon.settle(ENDED, 0.3)
        took = time.monotonic() - began
        hangs.set()

        assert done == ["had 0.3 s"]
        assert took < 30
        (warning,) = wait_until(lambda: world.wrote("warning"))
    assert warning["text"] == "provider hangs is not done after 0.3 s: it is waited for no longer"


def test_what_may_end_the_machine_comes_last_and_who_needs_time_first() -> None:
    acts: list[str] = []

    def act(name: str, pause: float) -> str:
        time.sleep(pause)
        acts.append(name)
        return name

    providers: Mapping[str, Provider] = {
        "approves": LetsGo(lambda _: act("approved", 0.0)),
        "reports": Acting(lambda _: act("reported", 0.0)),
        "requeues": NeedsTime(lambda _: act("requeued", 0.2)),
    }
    with World(providers=providers) as world:
        first = world.daemon.settle(ENDED, 5.0, (Turn.FIRST,))
        then = world.daemon.settle(ENDED, 5.0)
        last = world.daemon.settle(ENDED, 5.0, (Turn.LAST,))
    with World(providers=providers) as world:
        at_once = world.daemon.settle(ENDED, 5.0)

    assert (first, then, last) == (["requeued"], ["reported"], ["approved"])
    assert at_once == ["requeued", "reported"]
    assert acts == ["requeued", "reported", "approved", "requeued", "reported"]


def test_last_acts_for_which_there_is_no_thread_are_done_one_after_the_other(monkeypatch: pytest.MonkeyPatch) -> None:
    providers = {"one": Acting(lambda _: "one"), "two": Acting(lambda _: "two")}
    with World(providers=providers) as world, monkeypatch.context() as refused:
        refused.setattr(threading.Thread, "start", refuse)
        done = world.daemon.settle(ENDED, 5.0)

    assert done == ["one", "two"]
