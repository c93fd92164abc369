"""Ranks of real torch, over gloo: told at random moments, they stop at the same step, and none hangs."""

import contextlib
import json
import os
import random
import signal
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from preemptd.events import Event, LinkAsked
from preemptd.link.server import Server
from tests.conftest import ROOT
from tests.linking import notice, short_directory
from tests.waiting import wait_until

RANKS = str(ROOT / "tests" / "standins" / "agreeing_ranks.py")
QUIET = {"OMP_NUM_THREADS": "1", "TORCH_CPP_LOG_LEVEL": "ERROR", "PYTHONPATH": str(ROOT)}


class Daemon:
    """Stands where the ranks' daemon stands: a real link, whose notices are the test's."""

    def __init__(self, directory: Path) -> None:
        self.passed_on: list[object] = []
        self.server = Server(str(directory / "link"), self._take, "9.9", attempt=1, group=None)

    def __enter__(self) -> "Daemon":  # noqa: PYI034  # typing.Self is newer than Python 3.10
        self.server.open()
        self.server.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.server.close()

    def await_links(self, pids: Sequence[int]) -> None:
        wait_until(
            lambda: {process.pid for process in self.server.linked} >= set(pids), timeout=100, what="all are linked"
        )

    def tell(self, pids: Sequence[int], event_id: str = "e", left: float = 30.0) -> None:
        for process in self.server.linked:
            if process.pid in pids:
                self.server.tell(process, notice(event_id, remaining=left))

    def revoke(self, event_id: str) -> None:
        self.server.announce({"type": "revoked", "event_id": event_id})

    def _take(self, event: Event) -> None:
        if isinstance(event, LinkAsked):
            self.passed_on.append(event.fields.get("reason"))
            self.server.answer(event.peer, {"type": "status"})


@contextmanager
def daemon() -> Iterator[Daemon]:
    with short_directory() as directory, Daemon(directory) as running:
        yield running


@contextmanager
def running(command: Sequence[str], **environ: str) -> Iterator["subprocess.Popen[str]"]:
    env = {**os.environ, **QUIET, **environ}
    with subprocess.Popen(
        command, env=env, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True
    ) as process:
        try:
            yield process
        finally:
            if process.poll() is None:
                os.killpg(process.pid, 9)


def lines(process: "subprocess.Popen[str]", count: int) -> list[dict[str, Any]]:
    assert process.stdout is not None
    found = []
    for _ in range(count):
        line = process.stdout.readline()
        assert line, process.stderr and process.stderr.read()
        found.append(json.loads(line))
    return found


def play(python: str, ranks: int, rounds: int, seed: int, *options: str) -> list[tuple[dict[str, Any], ...]]:
    """Return, for each round, what the ranks said when they stopped."""
    chance = random.Random(seed)
    stopped = []
    command = [python, RANKS, str(ranks), str(rounds), str(seed), *options]
    with daemon() as told, running(command, PREEMPTD_LINK=told.server.path) as process:
        for number in range(rounds):
            pids = [line["begins"] for line in lines(process, ranks)]
            told.await_links(pids)
            time.sleep(chance.choice([0, chance.uniform(0, 0.3)]))
            told.tell(chance.sample(pids, chance.choice([1, 1, chance.randint(1, ranks)])), f"e{number}")
            stopped.append(tuple(lines(process, ranks)))
            told.revoke(f"e{number}")
        assert process.wait(150) == 0
    return stopped


def assert_all_stop_together(stopped: Sequence[tuple[dict[str, Any], ...]]) -> None:
    assert [sorted(line["stops"] for line in lines) for lines in stopped] == [
        [lines[0]["stops"]] * len(lines) for lines in stopped
    ]


@pytest.mark.timeout(400)
@pytest.mark.parametrize(("ranks", "rounds"), [(2, 25), (4, 25)])
def test_all_ranks_stop_at_the_same_step_whoever_is_told_and_whenever(
    torch_python: str, ranks: int, rounds: int
) -> None:
    stopped = play(torch_python, ranks, rounds, seed=ranks)

    assert len(stopped) == rounds
    assert_all_stop_together(stopped)


@pytest.mark.timeout(400)
def test_the_same_with_a_file_for_a_store(torch_python: str, tmp_path: Path) -> None:
    stopped = play(torch_python, 2, 3, 7, "--file", str(tmp_path / "store"))

    assert_all_stop_together(stopped)


@pytest.mark.soak
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("ranks", [2, 4, 8])
def test_the_same_at_many_more_moments(torch_python: str, ranks: int) -> None:
    stopped = play(torch_python, ranks, 300, seed=100 + ranks)

    assert_all_stop_together(stopped)


class Apart:
    """Three ranks without collectives, at work."""

    def __init__(self, python: str, told: Daemon) -> None:
        self._told = told
        self._running = running([python, RANKS, "3", "1", "0", "--apart"], PREEMPTD_LINK=told.server.path)

    def __enter__(self) -> "Apart":  # noqa: PYI034  # typing.Self is newer than Python 3.10
        self.process = self._running.__enter__()
        said = lines(self.process, 6)
        self.pids = [line["begins"] for line in sorted(said, key=lambda line: line["rank"]) if "begins" in line]
        self._told.await_links(self.pids)
        return self

    def __exit__(self, *_: object) -> None:
        self._running.__exit__(None, None, None)
        for pid in self.pids:  # who was never told would work for ever
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def stops(self, count: int) -> dict[int, int]:
        """Map ranks to the call at which they stopped."""
        return {line["rank"]: line["stops"] for line in lines(self.process, count)}


@pytest.mark.timeout(400)
def test_those_who_live_stop_together_when_a_rank_has_crashed(torch_python: str) -> None:
    with daemon() as told, Apart(torch_python, told) as ranks:
        os.kill(ranks.pids[2], signal.SIGKILL)
        told.tell([ranks.pids[0]], left=6.0)
        stops = ranks.stops(2)

    assert stops.keys() == {0, 1}
    assert stops[0] == stops[1]
    assert told.passed_on == ["rank 0 has been told"]


@pytest.mark.timeout(400)
def test_all_who_know_of_it_stop_when_the_store_dies_while_they_agree(torch_python: str) -> None:
    with daemon() as told, Apart(torch_python, told) as ranks:
        os.kill(ranks.pids[2], signal.SIGSTOP)  # so that there is no agreement yet
        told.tell([ranks.pids[0]], left=90.0)
        wait_until(lambda: told.passed_on, timeout=60, what="rank 1 has heard of it")
        ranks.process.kill()  # it serves the store
        stops = ranks.stops(2)
        os.kill(ranks.pids[2], signal.SIGCONT)

    assert stops.keys() == {0, 1}


@pytest.mark.timeout(400)
def test_a_rank_that_is_told_stops_by_itself_when_the_store_hangs(torch_python: str) -> None:
    with daemon() as told, Apart(torch_python, told) as ranks:
        os.kill(ranks.process.pid, signal.SIGSTOP)  # it serves the store
        told.tell([ranks.pids[1]], left=6.0)
        stops = ranks.stops(1)

    assert stops.keys() == {1}


@pytest.mark.timeout(400)
def test_without_a_group_of_several_a_rank_goes_by_its_own_notice(torch_python: str, tmp_path: Path) -> None:
    facts = str(ROOT / "tests" / "standins" / "agreeing_facts.py")
    ranks = [[torch_python, facts, rank, str(tmp_path)] for rank in "01"]
    with running(ranks[0]) as first, running(ranks[1]) as second:
        found = [lines(process, 1)[0] for process in (first, second)]
        ended = [(process.wait(150), process.stderr and process.stderr.read()) for process in (first, second)]

    for fact in (
        "without torch.distributed",
        "without a group",
        "in a group of rank 0",
        "after the group",
        "no thread to be had",
    ):
        assert [facts[fact] for facts in found] == [False, False]
    assert ["cannot agree with the others" in (err or "") for _, err in ended] == [True, True]
    assert [facts["alone in a group"] for facts in found] == [[False, 0]] * 2  # and no thread
    assert [facts["child"] for facts in found] == [[False, False]] * 2
    assert [facts[f"time {time}"] for facts in found for time in range(3)] == [0] * 6
    assert [facts["threads at the end"] for facts in found] == [0, 0]
    assert [facts["the store's server has ended"] for facts in found] == [True, True]
    assert found[0]["stopped at"] == found[1]["stopped at"]
    assert [facts["a second user stops as well"] for facts in found] == [True, True]
    assert [facts["source"] for facts in found] == ["the test says so", "rank 0 has been told"]
    assert [code for code, _ in ended] == [0, 0], ended
