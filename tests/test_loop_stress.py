"""No wake-up of the loop is ever lost. A primitive that loses one in two thousand passes every other test."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT

ROUNDS = str(ROOT / "tests" / "standins" / "loop_rounds.py")


def run(python: str, rounds: int, patience: float, *, queue: bool = False) -> dict[str, float]:
    command = [python, ROUNDS, str(rounds), str(patience), *(["queue"] if queue else [])]
    environ = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=550, env=environ)
    assert done.returncode == 0, done.stderr
    result: dict[str, float] = json.loads(done.stdout)
    print(python, result)
    return result


def interpreter(version: str) -> str:
    """Find Python *version*; a shim may exist for one that does not run."""
    candidates = [shutil.which(f"python{version}"), *Path.home().glob(f".pyenv/versions/{version}.*/bin/python")]
    for candidate in map(str, filter(None, candidates)):
        said = subprocess.run([candidate, "--version"], capture_output=True, text=True, check=False).stdout
        if said.startswith(f"Python {version}."):
            return candidate
    pytest.skip(f"needs Python {version}")


def test_a_hundred_thousand_signals_there_and_back_lose_none() -> None:
    """It takes about 3 s; CI runs it on each Python."""
    result = run(sys.executable, 100_000, patience=5.0)

    assert (result["rounds"], result["stuck"], result["twice"]) == (100_000, 0, 0)


@pytest.mark.soak
@pytest.mark.timeout(600)
@pytest.mark.parametrize("version", ["3.10", "3.11", "3.12", "3.13"])
def test_of_a_million_none_is_a_second_late(version: str) -> None:
    result = run(interpreter(version), 1_000_000, patience=1.0)

    assert (result["rounds"], result["stuck"], result["twice"]) == (1_000_000, 0, 0)
    assert result["max_ms"] < 1000


@pytest.mark.soak
def test_the_same_rounds_find_a_loop_that_does_lose_some() -> None:
    result = run(sys.executable, 100_000, patience=0.05, queue=True)

    assert result["stuck"] > 0
