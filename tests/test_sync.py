"""`preemptd watch --sync DIR=URL`, with a directory for an object store: what is restored, sent, and left alone."""

import json
import os
import re
import signal
import sys
import time
from pathlib import Path

import pytest

from tests.conftest import ROOT
from tests.metadata_server import FaultyGce
from tests.sync_machines import TRAIN, Machine, wished
from tests.test_watch import on_gce
from tests.waiting import wait_until
from tests.watching import Watch

pytestmark = pytest.mark.timeout(180)
slow = pytest.mark.slow


@pytest.fixture
def store(tmp_path: Path) -> Path:
    return tmp_path / "store"


@pytest.fixture
def here(tmp_path: Path, store: Path) -> Machine:
    return Machine(tmp_path / "here", str(store))


@pytest.fixture
def there(tmp_path: Path, store: Path) -> Machine:
    return Machine(tmp_path / "there", str(store))


def synced(watch: Watch, what: str) -> list[dict[str, object]]:
    return [line for line in watch.lines("sync") if line["what"] == what]


def manifests(store: Path) -> list[Path]:
    return sorted(store.glob("manifest-*.json"))


def objects(store: Path) -> set[str]:
    return {path.relative_to(store).as_posix() for path in (store / "data").rglob("*") if path.is_file()}


def needed(store: Path) -> set[str]:
    files = [each for path in manifests(store) for each in json.loads(path.read_text())["files"]]
    return {each["object"] for each in files if "object" in each}


def test_the_same_command_on_a_new_machine_goes_on_where_it_was(here: Machine, there: Machine) -> None:
    first = here.run(steps=3)
    second = there.run(steps=2)

    assert (first.process.returncode, second.process.returncode) == (0, 0)
    assert (first.out, second.out) == ("from 0 0\n", "from 3 1\n")
    assert set(there.files()) == {"last.ckpt", *(f"step-{number}.pt" for number in range(1, 6))}
    assert "nothing is there yet" in first.err
    assert "restored generation 1" in second.err


@slow
def test_what_has_not_changed_is_not_sent_again(here: Machine, there: Machine, store: Path) -> None:
    here.run(steps=3)
    (sent,) = synced(there.run(steps=1), "sent")

    assert sent["bytes"] == len("weights 4" * 1000) + len("4")
    assert sent["files"] == 5
    assert objects(store) == needed(store)


@slow
def test_two_generations_are_left_and_nothing_that_they_do_not_need(here: Machine, store: Path) -> None:
    for _ in range(4):
        here.run()

    assert [json.loads(path.read_text())["generation"] for path in manifests(store)] == [3, 4]
    assert objects(store) == needed(store)
    assert len(list(store.glob("claim-*"))) == 1


@slow
def test_a_command_that_ends_badly_is_kept_as_well_and_its_status_is_ours(here: Machine, there: Machine) -> None:
    first = here.run(steps=2, code=3)
    second = there.run()

    assert first.process.returncode == 3
    assert second.out == "from 2 1\n"


@slow
def test_a_checkpoint_is_sent_when_it_rests(here: Machine, store: Path) -> None:
    save = "import pathlib, time; pathlib.Path('ckpt').mkdir(); pathlib.Path('ckpt/a').write_text('a'); time.sleep(600)"
    with here.watch(command=[sys.executable, "-c", save]) as watch:
        wait_until(lambda: manifests(store), 40)
        watch.signal(signal.SIGTERM)
        status = watch.wait()

    assert status == 128 + signal.SIGTERM
    assert len(synced(watch, "sent")) == 1


@slow
def test_what_is_not_complete_by_its_name_is_not_sent_and_links_are(here: Machine, there: Machine) -> None:
    here.checkpoints.mkdir()
    for name in ("a.pt", "b.pt.tmp", "c.part", "d.new", ".hidden", "x.tmp/inside", "sub/e.pt"):
        path = here.checkpoints / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(name)
    (here.checkpoints / "latest").symlink_to("sub/e.pt")
    (here.checkpoints / "a.pt").chmod(0o600)
    here.run(steps=0)
    there.run(steps=0)

    assert there.files() == {"a.pt": "a.pt", "sub/e.pt": "sub/e.pt", "latest": "sub/e.pt"}
    assert os.readlink(there.checkpoints / "latest") == "sub/e.pt"
    assert (there.checkpoints / "a.pt").stat().st_mode & 0o777 == 0o600


@slow
def test_nothing_that_is_newer_here_is_written_over(here: Machine, there: Machine) -> None:
    here.run(steps=2)
    there.checkpoints.mkdir()
    (there.checkpoints / "last.ckpt").write_text("40")
    watch = there.run()

    assert watch.out == "from 40 1\n"
    assert "nothing is fetched, last.ckpt is newer here" in watch.err


@slow
def test_what_is_older_here_is_set_aside_and_the_rest_stays(here: Machine, there: Machine) -> None:
    there.checkpoints.mkdir()
    for name in ("last.ckpt", "mine.pt"):
        (there.checkpoints / name).write_text("0")
        os.utime(there.checkpoints / name, (1e9, 1e9))
    here.run(steps=2)
    watch = there.run(steps=0)
    (aside,) = (there.checkpoints / ".preemptd" / "replaced").rglob("last.ckpt")

    assert watch.out == "from 2 1\n"
    assert "; set aside in .preemptd/replaced: 1 file from here\n" in watch.err
    assert there.files().keys() == {"last.ckpt", "mine.pt", "step-1.pt", "step-2.pt"}
    assert aside.read_text() == "0"


@slow
def test_a_machine_that_comes_back_takes_what_another_one_has_done_since(here: Machine, there: Machine) -> None:
    here.run(steps=2)
    there.run(steps=2)
    again = here.run(steps=0)

    assert again.out == "from 4 1\n"
    assert not (here.checkpoints / ".preemptd" / "replaced").exists()


@slow
def test_a_generation_that_is_torn_is_passed_over(here: Machine, there: Machine, store: Path) -> None:
    here.run(steps=1)
    here.run(steps=1)
    (newest,) = {each["object"] for each in json.loads(manifests(store)[-1].read_text())["files"]} & {
        name for name in needed(store) if (store / name).read_text() == "2"
    }
    (store / newest).write_text("3")
    watch = there.run(steps=0)

    assert watch.out == "from 1 1\n"
    assert "generation 2 at" in watch.err
    assert "last.ckpt is not what was once sent" in watch.err
    assert list(there.checkpoints.glob(".preemptd/incoming-*")) == []


@slow
def test_where_nothing_is_whole_the_command_is_not_started(here: Machine, there: Machine, store: Path) -> None:
    here.run(steps=1)
    for name in objects(store):
        (store / name).unlink()
    watch = there.run()

    assert watch.process.returncode == 2
    assert watch.out == ""
    assert watch.err.splitlines()[-1].endswith("none of the 1 generations there is whole (the command was not started)")
    assert not there.files()


@slow
def test_a_manifest_that_names_files_elsewhere_is_passed_over(here: Machine, there: Machine, store: Path) -> None:
    here.run(steps=1)
    manifest = manifests(store)[0]
    manifest.write_text(manifest.read_text().replace('"step-1.pt"', '"../step-1.pt"'))
    watch = there.run()

    assert watch.process.returncode == 2
    assert not (there.directory / "step-1.pt").exists()


@slow
def test_a_machine_whose_place_was_taken_sends_nothing_more(here: Machine, there: Machine, store: Path) -> None:
    wait = [sys.executable, "-c", f"{TRAIN.replace('sys.exit', 'input')}".replace("input(", "print(time.sleep(600), ")]
    with here.watch(command=[*wait, "2", "0"]) as old:
        wait_until(lambda: manifests(store), 40)
        new = there.run(steps=1)
        newest = manifests(store)[-1].name
        (here.checkpoints / "late.pt").write_text("late")
        wait_until(lambda: [line for line in synced(old, "sent") if not line["ok"]], 40)
        old.signal(signal.SIGTERM)
        old.wait()

    assert new.out == "from 2 1\n"
    assert manifests(store)[-1].name == newest
    assert "another machine has begun with it since then" in old.err


def test_the_last_upload_that_fails_shows_in_the_status(here: Machine, store: Path) -> None:
    spoil = f"{TRAIN}".replace(
        "sys.exit",
        f"import shutil; shutil.rmtree({str(store)!r}); pathlib.Path({str(store)!r}).write_text(''); sys.exit",
    )
    with here.watch(command=[sys.executable, "-c", spoil, "1", "0"]) as watch:
        status = watch.wait()

    assert status == 74
    assert "the last state is not there" in watch.err


def transfer_of(watch: Watch) -> int:
    """Wait for the child process that fetches or sends; return its pid."""

    def look() -> int:
        children = Path(f"/proc/{watch.process.pid}/task/{watch.process.pid}/children").read_text().split()
        return next((int(pid) for pid in children if b"preemptd.sync" in Path(f"/proc/{pid}/cmdline").read_bytes()), 0)

    return wait_until(look, 40, "a transfer", pause=0.001)


def test_ctrl_c_ends_a_restore_that_hangs_and_the_command_is_not_started(here: Machine, there: Machine) -> None:
    here.run(steps=1)
    with there.watch() as watch:
        transfer = transfer_of(watch)
        os.kill(transfer, signal.SIGSTOP)
        watch.signal(signal.SIGINT)
        status = watch.wait()
    again = there.run(steps=0)

    assert status == 128 + signal.SIGINT
    assert watch.err.splitlines()[-1].endswith("stopped by SIGINT, the command was not started")
    assert watch.out == ""
    assert not Path(f"/proc/{transfer}").exists()
    assert again.out == "from 1 1\n"


def test_a_wish_that_cannot_be_understood_is_refused_before_anything_starts(here: Machine) -> None:
    for wish in ("ckpt", "ckpt=relative", "=s3://bucket", "ckpt=nowhere://bucket/run"):
        run = wished(here.directory, wish)

        assert (run.returncode, len(run.stderr.splitlines())) == (2, 1), run.stderr
    assert not (here.directory / "started").exists()


def test_two_directories_that_lie_within_one_another_are_refused(here: Machine, store: Path) -> None:
    watch = here.run(f"--sync=ckpt/sub={store}2")

    assert watch.process.returncode == 2
    assert "one directory lies within the other" in watch.err


@slow
def test_several_directories_are_kept_each_at_its_url(here: Machine, there: Machine, store: Path) -> None:
    for machine in (here, there):
        (machine.directory / "logs").mkdir()
    (here.directory / "logs" / "train.log").write_text("line\n")
    here.run(f"--sync=logs={store}-logs")
    there.run(f"--sync=logs={store}-logs", steps=0)

    assert (there.directory / "logs" / "train.log").read_text() == "line\n"
    assert there.files().keys() == {"last.ckpt", "step-1.pt"}


@slow
def test_a_log_that_grows_does_not_keep_a_checkpoint_from_being_sent(
    here: Machine, there: Machine, store: Path
) -> None:
    grow = (
        "import pathlib, time; d = pathlib.Path('ckpt'); d.mkdir(); (d / 'a.pt').write_text('a')\n"
        "with open(d / 'train.log', 'a', buffering=1) as log:\n"
        "    while True: log.write('line\\n'); time.sleep(0.001)"
    )
    with here.watch("--die-with-parent", command=[sys.executable, "-c", grow]) as watch:
        wait_until(lambda: manifests(store), 40)
        (started,) = watch.lines("started")
        os.kill(int(str(started["pid"])), signal.SIGKILL)
        watch.process.kill()
        watch.wait()
    there.run(steps=0)

    assert there.files()["a.pt"] == "a"
    assert set(there.files()["train.log"].splitlines()) <= {"line"}


@slow
def test_the_page_shows_what_the_journal_says_and_what_lies_there(here: Machine, store: Path) -> None:
    page = (ROOT / "docs" / "sync.md").read_text()
    (shown,) = [json.loads(line) for line in page.splitlines() if line.startswith('{"event": "sync"')]
    there = re.findall(r"^((?:claim|manifest|data)\S+)  ", page, re.MULTILINE)
    (sent,) = synced(here.run(), "sent")
    lies = [path.relative_to(store).as_posix() for path in store.rglob("*") if path.is_file()]

    assert shown.keys() == sent.keys()
    assert {re.sub("[0-9a-f]", "0", name) for name in there} == {
        re.sub("[0-9a-f]", "0", re.sub(r"\d$", "0", name)) for name in lies
    }


@slow
def test_a_training_that_still_runs_is_taken_over_and_nothing_is_fetched(here: Machine, store: Path) -> None:
    save = "import pathlib, time; pathlib.Path('ckpt').mkdir(); pathlib.Path('ckpt/a').write_text('a'); time.sleep(600)"
    command = ["sh", "-c", 'exec "$0" "$@" >/dev/null 2>&1', sys.executable, "-c", save]
    with here.watch(command=command) as first:
        wait_until(lambda: manifests(store), 40)
        first.process.kill()
    with here.watch(command=command) as second:
        (line,) = second.await_line("started")
        (here.checkpoints / "b").write_text("b")
        wait_until(lambda: len(manifests(store)) == 2, 40)
        os.kill(int(str(line["pid"])), signal.SIGKILL)
        second.wait()

    assert line["adopted"]
    assert len(synced(second, "left")) == 1
    assert [json.loads(path.read_text())["generation"] for path in manifests(store)] == [1, 2]


@slow
def test_a_file_that_is_written_in_place_is_sent_when_it_is_closed(here: Machine, store: Path) -> None:
    code = (
        "import pathlib, time\n"
        "checkpoints = pathlib.Path('ckpt')\n"
        "checkpoints.mkdir()\n"
        "with (checkpoints / 'a').open('w') as file:\n"
        "    file.write('half')\n"
        "    file.flush()\n"
        "    print('open', flush=True)\n"
        "    while not pathlib.Path('more').exists(): time.sleep(0.05)\n"
        "    file.write(' and whole')\n"
    )
    with here.watch(command=[sys.executable, "-c", code]) as watch:
        wait_until((here.checkpoints / "a").exists, 40)
        looked = time.monotonic() + 7  # three looks
        wait_until(lambda: time.monotonic() > looked, 40)
        early = manifests(store)
        (here.directory / "more").touch()
        watch.wait()

    assert early == []
    assert [(store / name).read_text() for name in objects(store)] == ["half and whole"]


@slow
def test_a_checkpoint_is_sent_at_once_when_the_training_says_that_it_is_complete(here: Machine, store: Path) -> None:
    code = (
        "import pathlib, preemptd, time\n"
        "checkpoints = pathlib.Path('ckpt')\n"
        "checkpoints.mkdir()\n"
        "(checkpoints / 'a').write_text('a')\n"
        "lock = (checkpoints / 'lock').open('w')\n"  # which keeps it from looking complete
        "preemptd.saved(1, 'ckpt/a')\n"
        "time.sleep(600)\n"
    )
    with here.watch(command=[sys.executable, "-c", code]) as watch:
        wait_until(lambda: manifests(store), 40)
        saved, sent = watch.lines("saved"), watch.await_line("sync", 2)
        watch.signal(signal.SIGTERM)
        watch.wait()

    assert len(saved) == 1
    assert [line["what"] for line in sent] == ["nothing", "sent"]


@slow
def test_a_notice_that_comes_while_it_restores_holds_the_command_back(here: Machine, there: Machine) -> None:
    here.run()
    with FaultyGce(grace=60.0) as gce:
        there.env |= on_gce(gce)
        with there.watch("--when-pending", "exit") as watch:
            transfer = transfer_of(watch)
            os.kill(transfer, signal.SIGSTOP)
            gce.announcement.announce()
            os.kill(transfer, signal.SIGCONT)
            status = watch.wait()
    there.env.clear()

    assert (status, watch.out) == (75, "")
    assert len(synced(watch, "restored")) == 1
    assert there.run(steps=0).out == "from 1 1\n"
