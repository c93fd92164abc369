"""Five hundred targets of one daemon: each is told, once."""

import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.serving import Serving
from tests.waiting import wait_until
from tests.watching import ROOT, environment

MANY = 500
pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]


@contextmanager
def trainings(count: int, log: Path) -> Iterator[list[int]]:
    command = [sys.executable, str(ROOT / "tests" / "standins" / "many_trainers.py"), str(count), str(log)]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment()
    ) as parent:
        assert parent.stdout is not None
        assert parent.stdin is not None
        try:
            yield [int(parent.stdout.readline()) for _ in range(count)]
        finally:
            parent.stdin.close()


def told(log: Path) -> list[int]:
    return [int(line.split()[0]) for line in log.read_text().splitlines()] if log.exists() else []


def states(serving: Serving) -> list[str]:
    return [target["state"] for target in json.loads(serving.status())["targets"]]


def test_each_of_five_hundred_targets_is_told_once(tmp_path: Path) -> None:
    log = tmp_path / "told"
    with trainings(MANY, log) as pids:
        targets = "".join(f"[[target]]\npid = {pid}\n" for pid in pids)
        config = f'provider = ["file"]\ngrace = 60\nno_wandb = true\n{targets}'
        with Serving(tmp_path, config) as serving:
            serving.await_line("serving", timeout=120)
            wait_until(lambda: states(serving) == ["running"] * MANY, 120, "status shows them all", pause=0.5)
            serving.notify()
            wait_until(lambda: len(told(log)) >= MANY, 120, "all are told", pause=0.1)
            serving.signal(signal.SIGTERM)
            status, _ = serving.end(60)

    assert sorted(told(log)) == sorted(pids)
    assert sorted(line["pid"] for line in serving.lines("told")) == sorted(pids)  # type: ignore[type-var]
    assert status == 0
