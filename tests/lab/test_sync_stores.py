"""`preemptd watch --sync` against servers that speak like S3 and GCS, over lines that are slow, full or cut."""

import random
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.metadata_server import FaultyGce
from tests.object_store import S3, Gcs, Line
from tests.sync_machines import Machine
from tests.test_watch import on_gce
from tests.waiting import wait_until
from tests.watching import Watch

pytestmark = [pytest.mark.xdist_group("object stores"), pytest.mark.timeout(180), pytest.mark.long]
PATIENCE = 90.0
SIZE = 2_000_000
GRACE = 8
# Both files are of one save: a mixture of two saves can be told. It waits to be told, or to be killed.
SAVE = f"""
import os, pathlib, signal, sys, time
checkpoints = pathlib.Path("ckpt")
checkpoints.mkdir(exist_ok=True)
state = checkpoints / "state"
step = int(state.read_text()) if state.exists() else 0
if step:
    weights = (checkpoints / "weights").read_bytes()
    assert weights == bytes([step]) * {SIZE}, "torn"
print("from", step, flush=True)
def save():
    for name, content in (("weights", bytes([step + 1]) * {SIZE}), ("state", str(step + 1).encode())):
        (checkpoints / (name + ".tmp")).write_bytes(content)
    for name in ("weights", "state"):
        (checkpoints / (name + ".tmp")).rename(checkpoints / name)
signal.signal(signal.SIGUSR1, lambda *_: (save(), os._exit(0)))
if sys.argv[1] == "save":
    save()
if sys.argv[1] == "wait":
    print("ready", flush=True)
    time.sleep(600)
"""


@pytest.fixture(scope="module")
def s3(sync_python: str) -> Iterator[S3]:
    with S3(sync_python) as server:
        yield server


class Site:
    """A URL, and machines with lines of their own to it."""

    def __init__(self, directory: Path, s3: S3, python: str) -> None:
        self._directory, self._s3, self._python = directory, s3, python
        self.prefix = f"{directory.parent.name}-{directory.name}"

    def machine(self, name: str, line: Line | None = None) -> Machine:
        url = f"{self._s3.url}/{self.prefix}"
        return Machine(self._directory / name, url, self._python, self._s3.env(line and line.port))

    def names(self, kind: str) -> list[str]:
        return [name for name in self._s3.names(f"{self.prefix}/") if name.startswith(f"{self.prefix}/{kind}")]


@pytest.fixture
def site(tmp_path: Path, s3: S3, sync_python: str) -> Site:
    return Site(tmp_path, s3, sync_python)


@pytest.fixture
def line(s3: S3) -> Iterator[Line]:
    with Line(s3.port) as line:
        yield line


def run(machine: Machine, how: str, *options: str) -> Watch:
    with started(machine, how, *options) as watch:
        watch.wait(PATIENCE)
    return watch


def started(machine: Machine, how: str, *options: str) -> Watch:
    return machine.watch(*options, command=[sys.executable, "-c", SAVE, how])


def last_line(watch: Watch) -> str:
    return watch.err.splitlines()[-1]


@pytest.mark.parametrize("kind", [S3, Gcs])
def test_a_job_goes_on_elsewhere_from_what_lies_there(tmp_path: Path, sync_python: str, kind: type[S3 | Gcs]) -> None:
    with kind(sync_python) as server:
        machines = [
            Machine(tmp_path / name, f"{server.url}/run", sync_python, server.env()) for name in ("here", "there")
        ]
        first, second = (run(machine, "save") for machine in machines)
        left = [name for name in server.names() if "/manifest-" in name]

    assert (first.process.returncode, second.process.returncode) == (0, 0), second.err
    assert (first.out, second.out) == ("from 0\n", "from 1\n")
    assert len(left) == 2


@pytest.mark.parametrize("seed", [*range(3), *(pytest.param(n, marks=pytest.mark.soak) for n in range(3, 40))])
def test_killed_at_any_moment_of_an_upload_what_is_restored_is_whole(site: Site, line: Line, seed: int) -> None:
    run(site.machine("here"), "save")
    line.rate = 2 * SIZE
    with started(site.machine("doomed", line), "save") as doomed:
        wait_until(lambda: doomed.lines("started"), PATIENCE)
        limit = line.carried + random.Random(seed).randrange(int(SIZE * 1.1))
        wait_until(lambda: line.carried >= limit or doomed.process.poll() is not None, PATIENCE, pause=0.001)
        doomed.process.kill()
        line.cut()
    there = run(site.machine("there"), "nothing")

    assert there.out in {"from 1\n", "from 2\n"}, there.err


def test_killed_in_the_middle_of_a_restore_it_begins_anew(site: Site, line: Line) -> None:
    run(site.machine("here"), "save")
    line.rate = SIZE
    there = site.machine("there", line)
    with started(there, "nothing") as killed:
        wait_until(lambda: line.carried > SIZE / 4, PATIENCE)
        killed.process.kill()
    placed = there.files()
    line.rate = 0
    again = run(there, "nothing")

    assert placed == {}
    assert again.out == "from 1\n"
    assert list(there.checkpoints.glob(".preemptd/incoming-*")) == []


def test_a_server_that_goes_in_the_middle_of_a_restore_leaves_nothing_and_nothing_starts(
    site: Site, line: Line
) -> None:
    run(site.machine("here"), "save")
    line.rate = SIZE
    there = site.machine("there", line)
    with started(there, "nothing") as watch:
        wait_until(lambda: line.carried > SIZE / 4, PATIENCE)
        line.cut()
        status = watch.wait(PATIENCE)

    assert (status, watch.out, there.files()) == (2, "", {})
    assert last_line(watch).startswith(f"preemptd: --sync ckpt={there.url}: ")


def test_a_server_that_goes_in_the_middle_of_the_last_upload_shows_in_the_status(site: Site, line: Line) -> None:
    run(site.machine("here"), "save")
    line.rate = SIZE
    with started(site.machine("second", line), "save") as watch:
        wait_until(lambda: watch.lines("started"), PATIENCE)
        limit = line.carried + SIZE / 4
        wait_until(lambda: line.carried > limit, PATIENCE)
        line.cut()
        status = watch.wait(PATIENCE)
    there = run(site.machine("there"), "nothing")

    assert status == 74
    assert "the last state is not there" in watch.err
    assert there.out == "from 1\n"


def test_a_bucket_that_is_full_shows_in_the_status_and_the_state_before_stays(site: Site, line: Line) -> None:
    run(site.machine("here"), "save")
    line.full = True
    full = run(site.machine("second", line), "save")
    there = run(site.machine("there"), "nothing")

    assert full.process.returncode == 74
    assert "The quota of this bucket is used up" in full.err
    assert there.out == "from 1\n"


def test_a_line_too_slow_for_the_grace_ends_in_time_and_the_job_comes_back_to_the_state_before(
    site: Site, line: Line
) -> None:
    run(site.machine("here"), "save")
    with FaultyGce() as gce:
        slow = site.machine("slow", line)
        slow.env |= on_gce(gce)
        with started(slow, "wait", "--grace", str(GRACE)) as watch:
            wait_until(lambda: watch.lines("started") and gce.waiting >= 1, PATIENCE)
            line.rate = SIZE // 100
            gce.announcement.announce()
            status = watch.wait(PATIENCE)
    (notice,) = watch.lines("notice")
    (settled,) = watch.lines("settled")
    there = run(site.machine("there"), "nothing")

    assert status == 75, watch.err
    assert "the last state is not there: the time was over" in watch.err
    assert float(str(settled["mono"])) - float(str(notice["mono"])) < 3 * GRACE
    assert there.out == "from 1\n"


def test_what_is_saved_at_a_notice_is_sent_before_the_end(site: Site) -> None:
    with FaultyGce() as gce:
        here = site.machine("here")
        here.env |= on_gce(gce)
        with started(here, "wait", "--grace", "60") as watch:
            wait_until(lambda: watch.lines("started") and gce.waiting >= 1, PATIENCE)
            wait_until((here.directory / "ckpt").exists, PATIENCE)
            gce.announcement.announce()
            status = watch.wait(PATIENCE)
    there = run(site.machine("there"), "nothing")

    assert status == 75, watch.err
    assert there.out == "from 1\n"


def test_a_bucket_that_is_missing_is_named_and_nothing_starts(s3: S3, tmp_path: Path, sync_python: str) -> None:
    watch = run(Machine(tmp_path / "here", "s3://absent/run", sync_python, s3.env()), "save")

    assert (watch.process.returncode, watch.out, len(watch.err.splitlines())) == (2, "", 1), watch.err
    assert "is there such a bucket?" in watch.err


def test_credentials_that_are_wrong_are_named_and_nothing_starts_and_none_is_shown(
    tmp_path: Path, sync_python: str
) -> None:
    with S3(sync_python, checks=True) as server:
        env = server.env()
        watch = run(Machine(tmp_path / "here", f"{server.url}/run", sync_python, env), "save")

    assert (watch.process.returncode, watch.out, len(watch.err.splitlines())) == (2, "", 1), watch.err
    assert "PermissionError" in watch.err
    assert not any(
        env[name] in watch.err + str(watch.lines()) for name in env if name.startswith("AWS_") and "KEY" in name
    )


def test_a_package_that_is_missing_is_named_and_nothing_starts(tmp_path: Path, sync_python: str) -> None:
    watch = run(Machine(tmp_path / "here", "az://container/run", sync_python), "save")

    assert (watch.process.returncode, watch.out, len(watch.err.splitlines())) == (2, "", 1), watch.err
    assert "pip install adlfs" in watch.err


def test_ctrl_c_ends_the_last_upload(site: Site, line: Line) -> None:
    with started(site.machine("here", line), "save") as watch:
        wait_until(lambda: watch.lines("started"), PATIENCE)
        line.rate = SIZE // 100
        limit = line.carried + 20_000
        wait_until(lambda: line.carried > limit, PATIENCE)
        watch.signal(signal.SIGINT)
        status = watch.wait(PATIENCE)

    assert status == 128 + signal.SIGINT
    assert "the last state is not there: SIGINT came" in watch.err
    assert site.names("manifest-") == []
