import os
import signal
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest

from preemptd.events import Event, MarkingDone, RunMarked, RunsFound
from preemptd.model import Process
from preemptd.runs import discovery
from preemptd.runs.marker import Marker
from tests.standins.wandb_core_process import CoreStandIn, core_stand_ins
from tests.waiting import wait_until


class Heard(list[Event]):
    """What the marker has put so far."""

    def marked(self) -> list[str]:
        return [event.run.run_id for event in self if isinstance(event, RunMarked) and event.why is None]

    def refused(self) -> list[tuple[str, str]]:
        return [(event.run.run_id, event.why) for event in self if isinstance(event, RunMarked) and event.why]

    def done(self) -> list[int]:
        return [event.asked for event in self if isinstance(event, MarkingDone)]

    def found(self) -> list[str]:
        lists = [event.runs for event in self if isinstance(event, RunsFound)]
        return [run.run_id for run in lists[-1]] if lists else []


@pytest.fixture
def heard() -> Heard:
    return Heard()


@pytest.fixture
def marker(heard: Heard) -> Iterator[Marker]:
    marker = Marker(heard.append)
    marker.start()
    yield marker
    marker.stop()


@pytest.fixture
def core(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[CoreStandIn]:
    with core_stand_ins(tmp_path / "cores", getattr(request, "param", "good")) as cores:
        yield cores[0]


def mode(words: str) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("core", [words], indirect=True)


def bystander() -> Process:
    return Process(os.getpid(), 1, 1, 1, "S", "python", ("python", "train.py"))


def asks(core: CoreStandIn) -> int:
    return sum("attach" in frame for frame in core.frames)


def until(look: Callable[[], object]) -> None:
    wait_until(look)


def test_a_run_is_found_with_its_owner_and_directory(core: CoreStandIn, marker: Marker, heard: Heard) -> None:
    core.order("open abc")
    marker.look([bystander(), core.process()])
    until(heard.found)

    assert isinstance(heard[0], RunsFound)
    (run,) = heard[0].runs
    assert (run.run_id, run.core_pid, run.owner_pid) == ("abc", core.pid, os.getpid())
    assert run.directory.endswith("/wandb/run-20260102_030405-abc")


def test_a_known_run_is_marked_and_then_the_demand_is_done(core: CoreStandIn, marker: Marker, heard: Heard) -> None:
    core.order("open abc")
    marker.look([core.process()])
    until(heard.found)
    marker.mark(7)
    until(heard.done)
    until(lambda: len(core.frames) >= 3)  # it says so in a pipe, which we read later than its answers

    assert [type(event) for event in heard] == [RunsFound, RunMarked, MarkingDone]
    assert (heard.marked(), heard.done()) == (["abc"], [7])
    assert core.frames == [
        {"attach": "abc", "request_id": "attach"},
        {"preempting": "abc"},
        {"attach": "abc", "request_id": "marked"},
    ]


@mode("--tcp good")
def test_a_core_of_wandb_0_19_on_a_port_is_marked(core: CoreStandIn, marker: Marker, heard: Heard) -> None:
    core.order("open abc")
    marker.look([core.process()])
    marker.mark(1)
    until(heard.done)

    assert heard.marked() == ["abc"]


def test_without_a_core_marking_is_done_at_once(marker: Marker, heard: Heard) -> None:
    marker.look([bystander()])
    marker.mark(1)
    until(heard.done)

    assert heard == [MarkingDone(1)]


def test_a_core_without_runs_like_the_sweep_agents_is_left_alone(
    core: CoreStandIn, marker: Marker, heard: Heard
) -> None:
    marker.look([core.process()])
    marker.mark(1)
    until(heard.done)

    assert heard == [MarkingDone(1)]
    assert core.frames == []


def test_one_stopped_and_one_flooded_core_delay_none_of_twenty(tmp_path: Path, marker: Marker, heard: Heard) -> None:
    with core_stand_ins(tmp_path / "cores", *["good"] * 21, "full") as cores:
        for number, core in enumerate(cores):
            core.order(f"open run{number:02}")
        stopped, full = cores[20:]
        marker.look([core.process() for core in cores])
        until(lambda: len(heard.found()) == 22)
        stopped.signal(signal.SIGSTOP)
        asked = time.monotonic()
        marker.mark(1)
        until(lambda: len(heard.marked()) == 20)
        took = max(event.mono for event in heard if isinstance(event, RunMarked)) - asked
        done_early = heard.done()
        full.order("accept")
        until(lambda: "run21" in heard.marked())
        stopped.signal(signal.SIGCONT)
        until(heard.done)

        assert took < 2.5
        assert done_early == []
        assert sorted(heard.marked()) == [f"run{number:02}" for number in range(22)]
        assert heard.refused() == []


@mode("silent")
def test_a_silent_core_is_asked_again_until_the_escalation_ends(
    core: CoreStandIn, marker: Marker, heard: Heard
) -> None:
    core.order("open abc")
    marker.look([core.process()])
    marker.mark(1)
    until(lambda: asks(core) >= 3)
    marker.rest()
    core.order("open second")
    marker.look([core.process()])
    until(lambda: len(heard.found()) == 2)

    assert (heard.marked(), heard.refused(), heard.done()) == ([], [], [])
    assert not any("preempting" in frame for frame in core.frames)


@mode("breaks")
def test_a_connection_that_breaks_is_begun_anew(core: CoreStandIn, marker: Marker, heard: Heard) -> None:
    core.order("open abc")
    marker.look([core.process()])
    marker.mark(1)
    until(heard.done)

    assert heard.marked() == ["abc"]
    assert heard.refused() == []


@mode("drips")
def test_an_answer_in_single_bytes_is_understood(core: CoreStandIn, marker: Marker, heard: Heard) -> None:
    core.order("open abc")
    marker.look([core.process()])
    marker.mark(1)
    until(heard.done)

    assert heard.marked() == ["abc"]


@pytest.mark.parametrize("core", ["garbage", "huge"], indirect=True)
def test_an_answer_that_is_not_wandb_cores_is_reported_once(core: CoreStandIn, marker: Marker, heard: Heard) -> None:
    core.order("open abc")
    marker.look([core.process()])
    marker.mark(1)
    until(heard.done)
    core.order("open second")
    until(lambda: len(heard.refused()) == 2)

    assert [run_id for run_id, _ in heard.refused()] == ["abc", "second"]
    assert "protocol" in heard.refused()[0][1]
    assert heard.marked() == []


def test_a_run_that_appears_after_the_notice_is_marked_without_a_new_snapshot(
    core: CoreStandIn, marker: Marker, heard: Heard
) -> None:
    marker.look([core.process()])
    marker.mark(1)
    until(heard.done)
    core.order("open late")
    until(heard.marked)

    assert heard.marked() == ["late"]


def test_a_core_that_appears_after_the_notice_is_marked(core: CoreStandIn, marker: Marker, heard: Heard) -> None:
    marker.mark(1)
    until(heard.done)
    core.order("open late")
    marker.look([core.process()])
    until(heard.marked)

    assert heard.marked() == ["late"]


def test_telling_waits_for_a_run_whose_log_exists_before_wandb_core_serves_it(
    core: CoreStandIn, marker: Marker, heard: Heard
) -> None:
    core.order("file young")
    marker.look([core.process()])
    marker.mark(1)
    until(lambda: asks(core) >= 2)
    early = list(heard)
    core.order("serve young")
    until(heard.done)

    assert not any(isinstance(event, RunMarked | MarkingDone) for event in early)
    until(lambda: any("preempting" in frame for frame in core.frames))
    assert heard.marked() == ["young"]
    assert sum("preempting" in frame for frame in core.frames) == 1


def test_a_run_that_ended_while_it_was_known_is_not_asked_for(core: CoreStandIn, marker: Marker, heard: Heard) -> None:
    core.order("open old")
    marker.look([core.process()])
    until(heard.found)
    core.order("close old")
    core.order("open new")
    marker.mark(1)
    until(heard.done)

    assert heard.marked() == ["new"]
    assert not any(frame.get("preempting") == "old" for frame in core.frames)


def test_a_debug_log_of_a_run_that_ended_before_delays_nothing_and_says_nothing(
    core: CoreStandIn, marker: Marker, heard: Heard
) -> None:
    core.order("log old")
    marker.look([core.process()])
    marker.mark(1)
    until(heard.done)
    core.order("open new")
    until(heard.marked)

    assert heard.marked() == ["new"]
    assert heard.refused() == []


def test_a_run_without_a_transaction_log_is_marked(core: CoreStandIn, marker: Marker, heard: Heard) -> None:
    core.order("log bare")
    core.order("serve bare")
    marker.look([core.process()])
    marker.mark(1)
    until(heard.marked)

    assert heard.marked() == ["bare"]


@mode("silent")
def test_a_core_that_ends_unmarked_is_named(core: CoreStandIn, marker: Marker, heard: Heard) -> None:
    core.order("open abc")
    marker.look([core.process()])
    marker.mark(1)
    until(lambda: asks(core))
    core.kill()
    until(heard.done)

    assert heard.refused() == [("abc", "its wandb-core has ended")]
    assert heard.found() == []


def test_a_run_is_marked_once_an_escalation_and_again_in_the_next(
    core: CoreStandIn, marker: Marker, heard: Heard
) -> None:
    core.order("open abc")
    marker.look([core.process()])
    marker.mark(1)
    marker.mark(2)
    until(lambda: heard.done() == [1, 2])
    first = heard.marked()
    marker.rest()
    marker.mark(3)
    until(lambda: heard.done() == [1, 2, 3])

    assert first == ["abc"]
    assert heard.marked() == ["abc", "abc"]


def test_a_run_id_that_is_not_utf8_is_reported_and_nothing_is_sent(
    core: CoreStandIn, marker: Marker, heard: Heard
) -> None:
    core.order("bad-name")
    marker.look([core.process()])
    marker.mark(1)
    until(heard.done)

    assert heard.refused() == [("\udcff", "its id is not UTF-8")]
    assert core.frames == []


def test_a_core_that_a_torn_snapshot_misses_stays_known(core: CoreStandIn, marker: Marker, heard: Heard) -> None:
    core.order("open abc")
    marker.look([core.process()])
    until(heard.found)
    marker.look([])
    marker.mark(1)
    until(heard.done)

    assert heard.marked() == ["abc"]


def test_a_core_that_is_not_listening_yet_is_no_obstacle(tmp_path: Path, marker: Marker, heard: Heard) -> None:
    with core_stand_ins(tmp_path / "cores", "--not-listening good") as (core,):
        core.order("open abc")
        marker.look([core.process()])
        marker.mark(1)
        until(heard.done)

    assert heard.marked() == []


def test_a_socket_path_too_long_for_an_address_is_reached(tmp_path: Path, marker: Marker, heard: Heard) -> None:
    room = 107 - len(str(tmp_path)) - len("//core0/socket")
    with core_stand_ins(tmp_path / ("x" * room), "good") as (core,):
        core.order("open abc")
        marker.look([core.process()])
        marker.mark(1)
        until(heard.done)

        assert len(core.address) == 107
        assert heard.marked() == ["abc"]


@pytest.mark.usefixtures("needs_netns")
def test_a_core_in_another_mount_namespace_is_reached(tmp_path: Path, marker: Marker, heard: Heard) -> None:
    directory = tmp_path / "core"
    core = CoreStandIn(directory, namespaces=["--mount"], inside=f"mount -t tmpfs none '{directory}'")
    with closing(core):
        core.wait_ready()
        core.order("open abc")
        marker.look([core.process()])
        marker.mark(1)
        until(heard.done)

    assert not (directory / "socket").exists()
    assert heard.marked() == ["abc"]


@pytest.mark.usefixtures("needs_netns")
def test_a_port_of_another_network_namespace_is_named_and_never_spoken_to(
    tmp_path: Path, marker: Marker, heard: Heard
) -> None:
    ours = socket.create_server(("127.0.0.1", 0))
    ours.setblocking(False)
    options = [f"--tcp={ours.getsockname()[1]}"]
    core = CoreStandIn(tmp_path / "core", options=options, namespaces=["--net"], inside="ip link set lo up")
    with closing(core), ours:
        core.wait_ready()
        core.order("open abc")
        marker.look([core.process()])
        marker.mark(1)
        until(heard.done)

        assert heard.refused() == [("abc", "its wandb-core listens on a port of another network namespace")]
        with pytest.raises(BlockingIOError):
            ours.accept()


def test_after_stop_every_call_is_harmless(heard: Heard) -> None:
    marker = Marker(heard.append)
    marker.start()
    marker.stop()
    marker.stop()
    marker.look([])
    marker.mark(1)

    assert heard == []


@pytest.mark.parametrize(
    ("comm", "cmdline", "state", "expected"),
    [
        ("wandb-core", ("/venv/bin/wandb-core", "--pid", "1"), "S", True),
        ("wandb-core", ("/venv/bin/wandb-core",), "T", True),
        ("wandb-service(2", ("wandb-service(2-7-tcp-localhost-4711)",), "S", True),
        ("wandb-core", (), "S", True),
        ("wandb-core", (), "Z", False),
        ("wandb-symon", ("/venv/bin/wandb-symon",), "S", False),
        ("python", ("python", "wandb-core"), "S", False),
        ("less", ("less", "/tmp/wandb-core"), "S", False),
    ],
)
def test_wandb_core_is_known_by_its_program(comm: str, cmdline: tuple[str, ...], state: str, expected: bool) -> None:
    assert discovery.is_core(Process(9, 1, 1, 1, state, comm, cmdline)) is expected


def test_a_cores_own_copy_before_its_exec_is_no_second_core() -> None:
    core = Process(9, 1, 1, 1, "S", "wandb-core", ("wandb-core",))
    copy = Process(10, 1, 9, 1, "S", "wandb-core", ("wandb-core",))

    assert discovery.cores([core, copy]) == [core]
