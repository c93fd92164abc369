"""Checkpoints on disk: whole or not there, whatever happens to the process, the disk, or the files."""

import json
import logging
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from preemptd.integrations.durable_files import fault_of, opened, write
from preemptd.integrations.generations import Generation, Generations, run_ids
from preemptd.integrations.manifest import CheckpointError, Fingerprint, Manifest, decode, encode
from tests.conftest import ROOT

NOTHING = Fingerprint("0" * 64, 0)
MANIFEST = Manifest("run", 7, 2, 100, 2, 0.5, {}, dict.fromkeys(["shared.pt", "rank-0.pt", "rank-1.pt"], NOTHING))


def save(generations: Generations, step: int, attempt: int = 1, keep: int = 2) -> Path:
    number, path = generations.claim()
    files = {
        name: write(f"{path}/{name}", lambda file: file.write(b"%d" % step * 100))
        for name in ("shared.pt", "rank-0.pt")
    }
    manifest = Manifest(generations.run_id, number, attempt, step, 1, 0.1, {"loss": 0.5}, files)
    generations.commit(manifest)
    generations.prune(keep, manifest)
    return Path(path)


def steps(generations: Generations) -> list[int]:
    """List the steps of those with a manifest, the latest first."""
    return [manifest.step for _, manifest in generations.latest_first()]


def is_whole(path: str, files: Mapping[str, Fingerprint]) -> bool:
    for name, expected in files.items():
        with opened(f"{path}/{name}") as file:
            if fault_of(file, expected):
                return False
    return True


@pytest.fixture
def generations(tmp_path: Path) -> Generations:
    return Generations(tmp_path / "checkpoints", "run")


@pytest.mark.parametrize("how", ["kill", "torn", "ENOSPC", "EIO", "EROFS"])
def test_wherever_a_save_is_stopped_a_whole_checkpoint_is_there_and_none_older_than_the_one_before(
    tmp_path: Path, how: str
) -> None:
    command = [sys.executable, "-m", "tests.standins.generations_killed", str(tmp_path), how]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    *lines, end = map(json.loads, done.stdout.splitlines())
    *stopped, last = lines

    assert done.returncode == 0, done.stderr
    assert len(stopped) > 20
    assert last["became"] == "unharmed"
    assert {line["became"] for line in stopped} == ({"killed"} if how in {"kill", "torn"} else {"failed", "fine"})
    assert all(line["found"] == line["step"] for line in lines if line["became"] in {"fine", "unharmed"})
    assert all(line["found"] >= line["step"] - 1 for line in lines)
    assert end == {"left": [3, 3]}


def test_nothing_has_its_name_before_it_is_on_the_disk_and_the_manifest_comes_last(
    generations: Generations, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[str] = []

    def noted(name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any) -> Any:
            calls.append(f"{name} {Path(args[0]).name}" if name != "fsync" else f"fsync {_name_of(args[0])}")
            return real(*args)

        return call

    for name in ("mkdir", "fsync", "rename"):
        monkeypatch.setattr(os, name, noted(name, getattr(os, name)))
    save(generations, 1)

    assert calls[-13:] == [
        *("mkdir run", "fsync checkpoints", "mkdir generation-00000001", "fsync run"),
        *("fsync shared.pt.tmp", "rename shared.pt.tmp", "fsync generation-00000001"),
        *("fsync rank-0.pt.tmp", "rename rank-0.pt.tmp", "fsync generation-00000001"),
        *("fsync manifest.json.tmp", "rename manifest.json.tmp", "fsync generation-00000001"),
    ]


def _name_of(fd: int) -> str:
    return Path(os.readlink(f"/proc/self/fd/{fd}")).name


def test_the_latest_is_the_one_saved_last_whatever_its_step_and_the_clock_say(generations: Generations) -> None:
    first = save(generations, 2_000_000)
    second = save(generations, 1_000_000)
    os.utime(first / "manifest.json", (4e9, 4e9))  # a clock that was set back
    os.utime(second / "manifest.json", (1, 1))

    assert steps(generations) == [1_000_000, 2_000_000]
    assert steps(generations)[0] == 1_000_000


def test_the_last_two_are_kept_and_no_more(generations: Generations) -> None:
    for step in range(5):
        save(generations, step)

    assert steps(generations) == [4, 3]
    assert sorted(os.listdir(generations.path)) == ["generation-00000004", "generation-00000005"]


def test_a_thousand_of_them_are_listed_and_pruned(generations: Generations, caplog: pytest.LogCaptureFixture) -> None:
    path = save(generations, 0)
    manifest = decode((path / "manifest.json").read_bytes())
    for number in range(2, 1001):
        copy = path.with_name(f"generation-{number:08d}")
        copy.mkdir()
        for name in ("shared.pt", "rank-0.pt"):
            (copy / name).hardlink_to(path / name)
        (copy / "manifest.json").write_bytes(encode(replace(manifest, generation=number, step=number - 1)))
    save(generations, 1000)

    assert steps(generations) == [1000, 999]
    assert caplog.text == ""


def test_two_that_save_at_the_same_time_get_a_directory_each(generations: Generations) -> None:
    claimed: list[int] = []
    threads = [
        threading.Thread(target=lambda: claimed.extend(generations.claim()[0] for _ in range(50))) for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert sorted(claimed) == list(range(1, 201))


def test_a_copy_of_the_job_that_was_given_up_neither_counts_nor_removes_what_its_successor_saved(
    generations: Generations, caplog: pytest.LogCaptureFixture
) -> None:
    save(generations, 10, attempt=1)
    save(generations, 11, attempt=2)
    save(generations, 12, attempt=2)
    save(generations, 5, attempt=1, keep=1)
    save(generations, 6, attempt=1, keep=1)

    assert steps(generations) == [12, 11, 6]
    assert generations.next_attempt() == 3
    assert caplog.text.count("another attempt of run run saves in") == 2


def test_a_save_that_is_under_way_elsewhere_is_left_alone(generations: Generations) -> None:
    save(generations, 1)
    _, path = generations.claim()
    write(f"{path}/shared.pt", lambda file: file.write(b"half of it"))
    save(generations, 2)

    assert os.listdir(path) == ["shared.pt"]
    save(generations, 3)
    save(generations, 4)
    assert not os.path.exists(path)


def test_a_save_that_began_before_the_listing_was_read_is_found_when_all_others_are_gone(
    generations: Generations,
) -> None:
    save(generations, 1)
    save(generations, 2)
    looking = generations.latest_first()
    assert next(looking)[1].step == 2
    save(generations, 3)
    save(generations, 4)  # which removes the two that were listed

    assert [manifest.step for _, manifest in looking] == [1, 4, 3]


def tear(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def put_in_its_place(make: Callable[[Path], object]) -> Callable[[Path], None]:
    def replace_it(path: Path) -> None:
        away = path.with_suffix(".away")
        path.rename(away)
        make(path)

    return replace_it


def flip(path: Path) -> None:
    text = bytearray(path.read_bytes())
    text[len(text) // 2] ^= 1
    path.write_bytes(text)


DAMAGES: dict[str, Callable[[Path], object]] = {
    "torn": tear,
    "a flipped bit": flip,
    "empty": lambda path: path.write_bytes(b""),
    "gone": lambda path: path.unlink(),
    "longer": lambda path: path.write_bytes(path.read_bytes() + b" x"),
    "a directory": put_in_its_place(Path.mkdir),
    "a FIFO": put_in_its_place(os.mkfifo),
    "a symbolic link": put_in_its_place(lambda path: path.symlink_to(path.with_suffix(".away"))),
}


@pytest.mark.parametrize("name", ["shared.pt", "rank-0.pt"])
@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_file_is_known(generations: Generations, damage: str, name: str) -> None:
    path = save(generations, 1)
    DAMAGES[damage](path / name)
    (_, manifest), *_ = generations.latest_first()

    try:
        assert not is_whole(str(path), manifest.files)
    except OSError as error:
        assert error.strerror  # noqa: PT017  # as good as a fault: there is a reason to name


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_manifest_is_skipped_with_one_line_and_goes_when_it_is_old(
    generations: Generations, caplog: pytest.LogCaptureFixture, damage: str
) -> None:
    save(generations, 1)
    path = save(generations, 2)
    DAMAGES[damage](path / "manifest.json")
    found = next(generations.latest_first())[1]
    generations.account(found.generation, ())

    assert found.step == 1
    assert [record.levelno for record in caplog.records] == [logging.WARNING]
    assert str(path) in caplog.text
    for step in range(3, 6):
        save(generations, step)
    assert steps(generations) == [5, 4]
    assert damage == "a directory" or not (path / "shared.pt").exists()  # ours is no directory, so it stays


def hostile(**changes: Any) -> Callable[[Path], object]:
    """Make what rewrites a manifest, with a hash that fits."""

    def rewrite(path: Path) -> None:
        path.write_bytes(encode(replace(decode(path.read_bytes()), **changes)))

    return rewrite


HOSTILE: dict[str, Callable[[Path], object]] = {
    "a path that leads away": hostile(files={"shared.pt": NOTHING, "../../../etc/passwd": NOTHING}),
    "an absolute path": hostile(files={"shared.pt": NOTHING, "/etc/passwd": NOTHING}),
    "more ranks than files": hostile(world_size=10**12),
    "no ranks": hostile(world_size=0, files={"shared.pt": NOTHING}),
    "a rank that is no number": hostile(files={"shared.pt": NOTHING, "rank-x.pt": NOTHING}),
    "an empty list": hostile(files={}),
    "a hash that is none": hostile(files={"shared.pt": Fingerprint("x" * 64, 0), "rank-0.pt": NOTHING}),
    "another run": hostile(run_id="run_2"),
    "another generation": hostile(generation=7),
    "a step that is none": hostile(step="7"),
    "a truth value": hostile(attempt=True),
    "deep nesting": lambda path: path.write_bytes(b'{"a":' * 100_000),
    "a huge number": lambda path: path.write_bytes(b"9" * 100_000),
    "a list": lambda path: path.write_bytes(b"[]"),
    "NUL": lambda path: path.write_bytes(b"\0" * 10_000),
    "no UTF-8": lambda path: path.write_bytes(b'{"\xff": 1}'),
    "a later format": lambda path: path.write_text(path.read_text().replace('checkpoint": 1', 'checkpoint": 2')),
    "another step": lambda path: path.write_text(path.read_text().replace('"step": 2', '"step": 3')),
    "endless": lambda path: os.truncate(path, 2**40),
}


@pytest.mark.parametrize("attack", HOSTILE)
def test_a_hostile_manifest_is_skipped_and_nothing_in_it_is_believed(generations: Generations, attack: str) -> None:
    save(generations, 1)
    path = save(generations, 2)
    HOSTILE[attack](path / "manifest.json")

    assert steps(generations) == [1]


def test_foreign_files_stay_where_they_are(generations: Generations) -> None:
    path = save(generations, 1)
    notes = [path / "notes.txt", Path(generations.path) / "README", Path(generations.path) / "generation-00000009"]
    for note in notes:
        note.write_text("mine")
    for name in (
        "generation-1",
        "generation-x",
        "generation-000000002",
        "generation-\u0661\u0662\u0663\u0664\u0665\u0666\u0667\u0668",
    ):
        (Path(generations.path) / name).mkdir()
    for step in range(2, 5):
        save(generations, step)

    assert steps(generations) == [4, 3]
    generations.remove()
    assert all(note.read_text() == "mine" for note in notes)
    assert len(os.listdir(generations.path)) == 7


def test_what_a_symbolic_link_leads_to_is_neither_loaded_nor_removed(generations: Generations, tmp_path: Path) -> None:
    elsewhere = Generations(tmp_path / "elsewhere", "run")
    path = save(elsewhere, 99)
    save(generations, 1)
    link = Path(generations.path) / "generation-00000000"
    link.symlink_to(path)
    for step in range(2, 5):
        save(generations, step)
    generations.remove()

    assert steps(elsewhere) == [99]
    assert link.is_symlink()


def test_the_directory_itself_may_be_a_symbolic_link(tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    (tmp_path / "checkpoints").symlink_to(tmp_path / "disk")
    generations = Generations(tmp_path / "checkpoints", "run")
    save(generations, 1)

    assert steps(Generations(tmp_path / "disk", "run")) == [1]
    generations.remove()
    assert list((tmp_path / "disk").iterdir()) == []


def test_removing_takes_this_run_and_no_other(tmp_path: Path) -> None:
    """The peer's glob of `run_*.pt` took those of `run_2`, too."""
    run, other = Generations(tmp_path, "run"), Generations(tmp_path, "run_2")
    save(run, 1)
    save(other, 2)
    run.remove()

    assert steps(other) == [2]
    assert run_ids(tmp_path) == ["run_2"]


def test_the_runs_that_have_a_checkpoint_are_listed(tmp_path: Path) -> None:
    save(Generations(tmp_path, "b"), 1)
    save(Generations(tmp_path, "a"), 1)
    Generations(tmp_path, "torn").claim()
    (tmp_path / ".hidden").mkdir()
    (tmp_path / "file").write_text("")

    assert run_ids(tmp_path) == ["a", "b"]
    assert run_ids(tmp_path / "missing") == []


def test_where_all_that_was_saved_is_damaged_nobody_begins_anew_unasked(generations: Generations) -> None:
    path = save(generations, 1)
    tear(path / "manifest.json")

    with pytest.raises(CheckpointError, match="remove them to begin anew"):
        generations.account(None, ())


def test_where_the_first_save_was_torn_there_is_nothing_to_load(
    generations: Generations, caplog: pytest.LogCaptureFixture
) -> None:
    generations.claim()
    generations.account(None, ())

    assert "its save did not come to its end" in caplog.text


def test_a_full_disk_is_said_once_the_file_is_written_to_its_end(tmp_path: Path) -> None:
    """Whoever writes must not see an exception in the middle: torch's C++ writer does not bear it."""
    code = f"import resource; resource.setrlimit(resource.RLIMIT_FSIZE, ({2**20}, {2**20}))\n"
    code += "from preemptd.integrations.generations import write\n"
    code += "def dump(file):\n    for _ in range(9): file.write(bytes(2**20))\n    print('to its end')\n"
    code += f"try: write({str(tmp_path / 'x')!r}, dump)\nexcept OSError as error: print(error.strerror)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)

    assert done.stdout.splitlines() == ["to its end", "File too large"]
    assert [path.name for path in tmp_path.iterdir()] == ["x.tmp"]


def test_large_pieces_are_hashed_right_beside_the_writing(tmp_path: Path) -> None:
    pieces = [os.urandom(size) for size in (10, 2**20, 3 * 2**20 + 1, 100, 2**19)]
    fingerprint = write(str(tmp_path / "x"), lambda file: [file.write(piece) for piece in pieces])

    assert (tmp_path / "x").read_bytes() == b"".join(pieces)
    with opened(str(tmp_path / "x")) as file:
        assert fault_of(file, fingerprint) == ""


def test_metadata_that_nobody_could_read_again_is_refused(generations: Generations) -> None:
    number, path = generations.claim()
    for name in MANIFEST.files:
        Path(path, name).touch()
    manifest = replace(MANIFEST, generation=number, metadata={"a": "x" * 2**24})

    with pytest.raises(CheckpointError, match="keep large things in a state_dict"):
        generations.commit(manifest)
    generations.abandon(number)
    assert os.listdir(generations.path) == []


@pytest.mark.parametrize("content", [None, b"of another save"])
def test_what_not_all_ranks_have_written_into_one_directory_is_not_made_whole(
    generations: Generations, content: bytes | None
) -> None:
    number, path = generations.claim()
    for name in ("shared.pt", "rank-0.pt"):
        Path(path, name).touch()
    if content is not None:
        Path(path, "rank-1.pt").write_bytes(content)

    with pytest.raises((CheckpointError, FileNotFoundError)):
        generations.commit(replace(MANIFEST, generation=number))
    assert steps(generations) == []


def test_a_whole_checkpoint_is_not_given_up_when_something_fails_later(generations: Generations) -> None:
    save(generations, 1)
    generations.abandon(1)

    assert steps(generations) == [1]


def test_a_moved_directory_is_found_where_it_is_now(generations: Generations, tmp_path: Path) -> None:
    save(generations, 1)
    shutil.move(tmp_path / "checkpoints", tmp_path / "moved")
    moved = Generations(tmp_path / "moved", "run")

    assert moved.listed() == [
        Generation(1, f"{tmp_path}/moved/run/generation-00000001", moved.listed()[0].manifest, "")
    ]
    assert steps(moved) == [1]
