"""`preemptd watch --sync` is killed (-9) at any moment: what is restored then is one whole state, and no mixture."""

import random
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.sync_machines import Machine
from tests.waiting import wait_until
from tests.watching import Watch

FILES = 30
# All files of one save hold the same number; a training that finds a mixture says so.
SAVE = f"""
import pathlib, sys
checkpoints = pathlib.Path("ckpt")
found = sorted(int(path.read_text()[0]) for path in checkpoints.glob("shard-*")) if checkpoints.exists() else []
print("torn" if found and (len(set(found)) > 1 or len(found) != {FILES}) else "from", *set(found), flush=True)
checkpoints.mkdir(exist_ok=True)
for number in range({FILES} if sys.argv[1] else 0):
    (checkpoints / f"shard-{{number}}.tmp").write_text(sys.argv[1] * 20_000)
for number in range({FILES} if sys.argv[1] else 0):
    (checkpoints / f"shard-{{number}}.tmp").rename(checkpoints / f"shard-{{number}}")
"""
pytestmark = [pytest.mark.slow, pytest.mark.timeout(180)]
moments = pytest.mark.parametrize(
    "seed", [*range(4), *(pytest.param(n, marks=pytest.mark.soak) for n in range(4, 100))]
)


def started(machine: Machine, save: str = "") -> Watch:
    return machine.watch(command=[sys.executable, "-c", SAVE, save])


def run(machine: Machine, save: str = "") -> str:
    with started(machine, save) as watch:
        assert watch.wait() == 0, watch.err
    return watch.out.strip()


def kill_when(watch: Watch, reached: Callable[[], bool]) -> None:
    wait_until(lambda: reached() or watch.process.poll() is not None, 40, pause=0.0005)
    watch.process.kill()
    watch.wait()


def count(directory: Path, pattern: str) -> int:
    return sum(path.is_file() for path in directory.glob(pattern))


@moments
def test_killed_while_it_sends_the_state_before_or_this_one_is_restored(tmp_path: Path, seed: int) -> None:
    store, moment = tmp_path / "store", random.Random(seed).randrange(FILES, 2 * FILES + 2)
    run(Machine(tmp_path / "here", str(store)), "1")
    with started(Machine(tmp_path / "doomed", str(store)), "2") as doomed:
        kill_when(doomed, lambda: count(store, "data/*/*") + len(list(store.glob("manifest-*"))) - 1 >= moment)
    after = run(Machine(tmp_path / "there", str(store)))

    assert after in {"from 1", "from 2"}


@moments
def test_killed_while_it_restores_it_begins_anew(tmp_path: Path, seed: int) -> None:
    store, moment = tmp_path / "store", random.Random(seed).randrange(2 * FILES)
    run(Machine(tmp_path / "here", str(store)), "1")
    there = Machine(tmp_path / "there", str(store))
    with started(there) as killed:
        kill_when(
            killed,
            lambda: (
                count(there.checkpoints, ".preemptd/incoming-*/*") + 2 * count(there.checkpoints, "shard-*") >= moment
            ),
        )
    after = run(there)

    assert killed.out.strip() in {"", "from 1"}
    assert after == "from 1"


@moments
def test_killed_while_it_brings_an_old_directory_up_to_date_it_begins_anew(tmp_path: Path, seed: int) -> None:
    store, moment = tmp_path / "store", random.Random(seed).randrange(FILES)
    old, other = Machine(tmp_path / "old", str(store)), Machine(tmp_path / "other", str(store))
    run(old, "1")
    run(other, "2")
    with started(old) as killed:
        kill_when(killed, lambda: count(old.checkpoints, ".preemptd/incoming-*/*") >= moment)
    after = run(old)

    assert killed.out.strip() in {"", "from 2"}
    assert after == "from 2"
