"""Where `preemptd watch --sync` keeps nothing: names that cannot be meant, and disks that are full."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.sync_machines import Machine, wished
from tests.watching import Watch, environment

pytestmark = pytest.mark.timeout(180)
INSIDE = "it would send itself"


@pytest.mark.parametrize(
    ("wishes", "said"),
    [
        (["g=HERE/g/remote"], INSIDE),
        (["g=HERE/g"], INSIDE),
        (["g=file://HERE/g/remote"], INSIDE),
        (["g/in=HERE/g"], INSIDE),
        (["link=HERE/real/remote"], INSIDE),
        (["real=HERE/link/remote"], INSIDE),
        (["d1=HERE/x", "d2=HERE/d1/remote"], INSIDE),
        (["d1=HERE/d2/remote", "d2=HERE/x"], INSIDE),
        (["d1=HERE/x", "d1=HERE/y"], "the directory is named twice"),
        (["d1=HERE/x", "d2=HERE/link/../x"], "the URL is named twice"),
        (["d1=HERE/x", "d2=HERE/x/y"], "one URL lies within the other"),
        (["file/x=HERE/x"], "/file is no directory"),
        (["/=HERE/x"], "the directory is /"),
        (["d1=/"], "the URL is /"),
        (["d1=file://tmp/x"], "file:// takes an absolute path"),
        (["d1=s3://"], "s3:// names no bucket"),
        (["d1=memory://x"], "nothing is kept at memory://"),
        (["d1=local://x"], "nothing is kept at local://"),
        (["d1=simplecache::file://x"], "nothing is kept at simplecache::file://"),
    ],
)
def test_what_can_never_be_kept_there_is_refused_and_nothing_is_written(
    tmp_path: Path, wishes: list[str], said: str
) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    (tmp_path / "file").touch()
    run = wished(tmp_path, *(wish.replace("HERE", str(tmp_path)) for wish in wishes))

    assert (run.returncode, len(run.stderr.splitlines())) == (2, 1), run.stderr
    assert said in run.stderr
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["file", "link", "real"]


@pytest.fixture
def store(tmp_path: Path) -> Path:
    return tmp_path / "store"


@pytest.fixture
def here(tmp_path: Path, store: Path) -> Machine:
    return Machine(tmp_path / "here", str(store))


SMALL_DISK = """
set -e
mount -t tmpfs -o size=128k tmpfs "$1"
store=$1 torn=$2
shift 2
if [ "$torn" ]; then
    "$@"
    touch "$store/claim-000001-aaaaaaaa.json"
    mkdir "$store/data/$torn"
    dd if=/dev/zero of="$store/data/$torn/000000" bs=1k 2> /dev/null || true
fi
"$@" && status=0 || status=$?
echo $status
cd "$store"
find . -type f | LC_ALL=C sort
"""
TORN = "000001-aaaaaaaa-00000001-bbbbbbbb"
SAVE_ONE_MORE = "(ckpt / str(len(list(ckpt.iterdir())))).write_text('a')"


def on_a_small_disk(machine: Machine, store: Path, save: str, *, torn: str = "") -> subprocess.CompletedProcess[str]:
    store.mkdir()
    train = f"import pathlib; ckpt = pathlib.Path('ckpt'); ckpt.mkdir(exist_ok=True); {save}"
    program = [
        *(*Watch.command("watch"), f"--sync=ckpt={store}", "--state-dir", str(machine.directory / "state")),
        *("--", sys.executable, "-c", train),
    ]
    return subprocess.run(
        ["unshare", "--mount", "bash", "-c", SMALL_DISK, "sh", str(store), torn, *program],
        cwd=machine.directory,
        env=environment(),
        capture_output=True,
        text=True,
        check=False,
        timeout=100,
    )


@pytest.mark.usefixtures("needs_root")
def test_an_upload_that_finds_the_disk_full_leaves_nothing_there_and_names_it(here: Machine, store: Path) -> None:
    save = "[(ckpt / str(n)).write_text('x' * 60_000) for n in range(6)]"
    ended = on_a_small_disk(here, store, save)
    status, *left = ended.stdout.splitlines()

    assert status == "74"
    assert f"the last state is not there: No space left on device: {store}\n" in ended.stderr
    assert [name.partition("-")[0] for name in left] == ["./claim"]


@pytest.mark.usefixtures("needs_root")
def test_a_disk_that_torn_uploads_have_filled_is_made_room_on(here: Machine, store: Path) -> None:
    ended = on_a_small_disk(here, store, SAVE_ONE_MORE, torn=TORN)
    status, *left = ended.stdout.splitlines()

    assert status == "0", ended.stderr
    assert "bytes that torn uploads had left there were removed" in ended.stderr
    assert [re.split("-0|/0", name)[0] for name in left] == ["./claim", "./data", "./data", "./manifest", "./manifest"]


@pytest.mark.usefixtures("needs_root")
def test_a_disk_that_others_have_filled_is_named_and_nothing_is_removed(here: Machine, store: Path) -> None:
    ended = on_a_small_disk(here, store, SAVE_ONE_MORE, torn="not-ours")
    status, *left = ended.stdout.splitlines()

    assert status == "2"
    assert f": No space left on device: {store}: make room there; while" in ended.stderr.splitlines()[-1]
    assert "./data/not-ours/000000" in left
    assert len([name for name in left if name.startswith("./manifest")]) == 1
