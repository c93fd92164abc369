"""`preemptd notify`: over the link where a preemptd of the job can be reached, else by a signal file."""

import json
import os
import signal
import socket
import stat
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import pytest

from preemptd.link.peer import credentials
from preemptd.provider import State
from preemptd_providers._signal_file import addresses
from tests.linking import short_directory
from tests.signal_files import notice_of, surroundings, watch_of
from tests.watching import PREEMPTD, Watch, environment, trainer

pytestmark = pytest.mark.slow


@pytest.fixture
def short() -> Iterator[Path]:
    with short_directory() as directory:
        yield directory


def command(*arguments: object) -> list[str]:
    return [*PREEMPTD, "notify", *map(str, arguments)]


def notify(
    *arguments: object, env: Mapping[str, str] | None = None, umask: int = -1
) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        command(*arguments),
        env=environment(env),
        capture_output=True,
        text=True,
        check=False,
        timeout=50,
        umask=umask,
        stdin=subprocess.DEVNULL,
    )


def names(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


def said(directory: Path) -> dict[str, object]:
    (path,) = directory.iterdir()
    content = json.loads(path.read_text())
    assert isinstance(content, dict)
    return content


def by_file(directory: Path, *options: str, slurm: Mapping[str, str] | None = None, name: str = "job") -> Watch:
    """A `watch` that looks for signal files in *directory*."""
    env = {"PREEMPTD_SIGNAL_DIR": str(directory), **(slurm or {})}
    return Watch(directory.parent, trainer("USR1"), "--provider", "file", *options, env=env, name=name)


@pytest.fixture
def signals(short: Path) -> Path:
    (short / "signals").mkdir()
    return short / "signals"


# -- the file


def test_a_watch_that_looks_for_files_is_told_with_the_deadline_and_the_reason(signals: Path) -> None:
    with by_file(signals, "--job-id", "run42") as watch:
        watch.await_said("ready")
        ended = notify("--job", "run42", "--deadline", 60, "--reason", "drain", "--dir", signals)
        (notice,) = watch.await_line("notice")
        status = watch.wait()

    assert (ended.returncode, ended.stderr) == (0, "")
    assert ended.stdout == f"wrote {signals}/run42.preempt, for job run42\n"
    assert (status, len(watch.said("signal"))) == (75, 1)
    assert notice["source"] == f"{signals}/run42.preempt"
    assert 30 < float(str(notice["remaining"])) <= 60


ARRAY = {"SLURM_JOB_ID": "4711", "SLURM_ARRAY_JOB_ID": "4711", "SLURM_ARRAY_TASK_ID": "3"}
PROLOG = {"SLURM_JOB_ID": "12", "SLURM_SCRIPT_CONTEXT": "prolog_slurmd"}


@pytest.mark.parametrize(
    ("env", "name", "restart"),
    [
        ({"SLURM_JOB_ID": "12"}, "12.0.preempt", 0),
        ({"SLURM_JOB_ID": "12", "SLURM_RESTART_COUNT": "2"}, "12.2.preempt", 2),
        (ARRAY, "4711_3.0.preempt", 0),
        ({**ARRAY, "SLURM_JOB_ID": "4713", "SLURM_RESTART_COUNT": "1"}, "4711_3.1.preempt", 1),
        ({"SLURM_JOB_ID": "31", "SLURM_HET_JOB_ID": "30"}, "30.0.preempt", 0),
        (PROLOG, "12.preempt", None),
        ({**PROLOG, "SLURM_JOB_RESTART_COUNT": "2"}, "12.2.preempt", 2),
    ],
    ids=["first", "restarted", "array", "array-restarted", "het", "old-prolog", "prolog"],
)
def test_inside_of_a_job_it_means_that_job_and_that_attempt(
    tmp_path: Path, env: Mapping[str, str], name: str, restart: int | None
) -> None:
    ended = notify(env={**env, "PREEMPTD_SIGNAL_DIR": str(tmp_path)})

    assert (ended.returncode, names(tmp_path)) == (0, [name])
    assert said(tmp_path).get("restart") == restart
    assert ended.stdout.startswith(f"wrote {tmp_path}/{name}, for job {name.partition('.')[0]}")


@pytest.mark.parametrize("env", [{"SLURM_JOB_ID": "12"}, ARRAY, {"SLURM_JOB_ID": "12", "SLURM_RESTART_COUNT": "2"}])
def test_the_name_is_one_that_is_looked_for(tmp_path: Path, env: Mapping[str, str]) -> None:
    notify("--dir", tmp_path, env=env)
    attempt = int(env.get("SLURM_RESTART_COUNT", "0"))
    looked_for = addresses([str(tmp_path)], None, surroundings(tmp_path, environ=env, job_id=None, attempt=attempt))

    assert str(next(tmp_path.iterdir())) in [address.path for address in looked_for]


def test_another_job_than_the_one_we_are_in_is_meant_whatever_its_attempt(tmp_path: Path) -> None:
    notify("--job", "99", "--dir", tmp_path, env={"SLURM_JOB_ID": "12", "SLURM_RESTART_COUNT": "2"})

    assert names(tmp_path) == ["99.preempt"]
    assert said(tmp_path) == {"v": 1}


def test_what_one_attempt_said_preempts_no_later_one(tmp_path: Path) -> None:
    notify("--dir", tmp_path, env={"SLURM_JOB_ID": "12"})
    states = [watch_of(tmp_path, attempt=attempt).observe().state for attempt in (0, 1)]

    assert states == [State.NOTICE, State.CLEAR]


def test_a_node_is_announced_to_every_job_on_it(tmp_path: Path) -> None:
    ended = notify("--node", "n7", "--deadline", 30, "--dir", tmp_path, env={"SLURM_JOB_ID": "12"})
    notices = [
        notice_of(watch_of(tmp_path, job_id=job, environ={"SLURMD_NODENAME": "n7"}, attempt=attempt))
        for job, attempt in (("12", 0), ("13", 4))
    ]

    assert ended.stdout == f"wrote {tmp_path}/node-n7.preempt, for everything on node n7\n"
    assert all(notice.remaining is not None and 10 < notice.remaining <= 30 for notice in notices)


def test_a_cancelled_job_and_one_that_is_not_to_come_back_are_said_to_be_so(tmp_path: Path) -> None:
    notify("--job", "12", "--kind", "cancel", "--no-requeue", "--dir", tmp_path)

    assert said(tmp_path) == {"v": 1, "kind": "cancel", "requeue": False}


def test_a_reason_of_any_bytes_and_any_length_is_no_obstacle(tmp_path: Path) -> None:
    ended = subprocess.run(
        [*command("--job", "12", "--dir", tmp_path), b"--reason", b"\xff\n" + b"x" * 9000],
        env=environment(),
        check=False,
        timeout=50,
    )

    assert ended.returncode == 0
    assert str(said(tmp_path)["reason"]).startswith("\\udcff\nxxx")
    assert len(str(said(tmp_path)["reason"])) == 512


def test_the_file_can_be_read_by_the_job_under_any_umask(tmp_path: Path) -> None:
    notify("--job", "12", "--dir", tmp_path, umask=0o077)

    assert stat.S_IMODE((tmp_path / "12.preempt").stat().st_mode) == 0o644


def test_a_link_that_somebody_put_in_its_place_is_replaced_and_not_followed(tmp_path: Path) -> None:
    (tmp_path / "signals").mkdir()
    (tmp_path / "precious").write_text("precious")
    (tmp_path / "signals" / "12.preempt").symlink_to(tmp_path / "precious")
    notify("--job", "12", "--dir", tmp_path / "signals")

    assert (tmp_path / "precious").read_text() == "precious"
    assert not (tmp_path / "signals" / "12.preempt").is_symlink()


def test_many_writers_at_once_leave_one_whole_file_at_any_moment(tmp_path: Path) -> None:
    path = tmp_path / "12.preempt"
    writers = [
        subprocess.Popen(command("--job", "12", "--reason", "x" * 500, "--dir", tmp_path), env=environment())
        for _ in range(6)
    ]
    read = 0
    while any(writer.poll() is None for writer in writers):
        if path.exists():
            assert len(json.loads(path.read_text())["reason"]) == 500
            read += 1

    assert [writer.wait() for writer in writers] == [0] * 6
    assert read > 0
    assert names(tmp_path) == ["12.preempt"]


# -- the link


def test_from_inside_of_the_job_its_preemptd_is_told_over_the_link(short: Path) -> None:
    with Watch(short, trainer("USR1", save=1), "--link", str(short / "link")) as watch:
        watch.await_said("ready")
        ended = notify("--deadline", 60, "--reason", "drain", env={"PREEMPTD_LINK": str(short / "link")})
        (notice,) = watch.await_line("notice")
        status = watch.wait()

    assert (ended.returncode, ended.stderr) == (0, "")
    assert ended.stdout == f"told the preemptd at {short}/link\n"
    assert (notice["source"], status) == ("drain", 75)
    assert 30 < float(str(notice["remaining"])) <= 60


def test_the_preemptd_of_a_named_job_is_found_by_its_socket(short: Path) -> None:
    env = {"XDG_RUNTIME_DIR": str(short)}
    with Watch(short, trainer("USR1"), "--job-id", "run42", env=env) as watch:
        watch.await_said("ready")
        nobody = {**env, "PREEMPTD_SIGNAL_DIR": str(short / "none")}
        other, unknown = notify("--job", "run43", env=nobody), notify(env=nobody)
        told = watch.lines("notice")
        ended = notify("--job", "run42", env=env)
        status = watch.wait()

    assert (other.returncode, unknown.returncode, told) == (2, 2, [])
    assert (ended.returncode, status) == (0, 75)
    assert ended.stdout == f"told the preemptd at {short}/preemptd/run42.sock, for job run42\n"


@pytest.mark.parametrize("differs", [{"SLURM_ARRAY_TASK_ID": "2"}, {}], ids=["task", "submitted by the task"])
def test_all_preemptds_of_a_slurm_job_are_told_and_none_of_another(short: Path, differs: Mapping[str, str]) -> None:
    """Two tasks on one node, and the last task of an array, whose SLURM_JOB_ID is that of the array."""
    env = {"XDG_RUNTIME_DIR": str(short)}
    first, other = {**env, **ARRAY}, {**env, **ARRAY, **differs, "SLURM_JOB_ID": "4712"}
    options = "--provider", "file"
    with (
        Watch(short, trainer("USR1"), *options, env=first, name="a") as a,
        Watch(short, trainer("USR1"), *options, env=first, name="b") as b,
        Watch(short, trainer("USR1"), *options, env=other, name="c") as c,
    ):
        for watch in (a, b, c):
            watch.await_said("ready")
        ended = notify(env=first)
        statuses = [a.wait(), b.wait()]
        told = len(c.lines("notice"))

    assert (ended.returncode, statuses, told) == (0, [75, 75], 0)
    assert ended.stdout.count(".sock") == 2
    assert ended.stdout.endswith(", for job 4711_3\n")


def test_the_preemptd_that_a_job_was_submitted_from_is_not_the_one_to_tell(signals: Path) -> None:
    link = str(signals.parent / "link")
    env = {"PREEMPTD_LINK": link, "PREEMPTD_SIGNAL_DIR": str(signals), "SLURM_JOB_ID": "13"}
    with by_file(signals, "--link", link, slurm={"SLURM_JOB_ID": "12"}) as driver:
        driver.await_said("ready")
        ended = notify(env=env)
        status = notify("--link", link)
        driver.wait()

    assert (ended.returncode, names(signals)) == (0, ["13.0.preempt"])
    assert [line["source"] for line in driver.lines("notice")] == ["asked for over the link"]
    assert status.returncode == 0


def test_a_preemptd_that_hangs_is_told_by_a_file(signals: Path) -> None:
    link = str(signals.parent / "link")
    with by_file(signals, "--link", link, "--job-id", "run42") as watch:
        watch.await_said("ready")
        watch.signal(signal.SIGSTOP)
        env = {"PREEMPTD_LINK": link, "PREEMPTD_SIGNAL_DIR": str(signals)}
        named, mute = notify("--job", "run42", env=env), notify("--link", link)
        watch.signal(signal.SIGCONT)
        status = watch.wait()

    assert (named.returncode, named.stdout) == (0, f"wrote {signals}/run42.preempt, for job run42\n")
    assert (mute.returncode, mute.stderr) == (2, f"preemptd: no preemptd answers at {link}: timed out\n")
    assert (status, len(watch.said("signal"))) == (75, 1)


def test_what_the_link_has_no_words_for_goes_into_a_file(signals: Path) -> None:
    link = str(signals.parent / "link")
    env = {"PREEMPTD_LINK": link, "PREEMPTD_SIGNAL_DIR": str(signals), "SLURM_JOB_ID": "12"}
    with by_file(signals, "--link", link, slurm={"SLURM_JOB_ID": "12"}) as watch:
        watch.await_said("ready")
        ended, refused = notify("--kind", "cancel", env=env), notify("--no-requeue", "--link", link)
        (notice,) = [*watch.await_line("advice", timeout=20)]

    assert ended.stdout == f"wrote {signals}/12.0.preempt, for job 12, attempt 0\n"
    assert notice["source"] == f"{signals}/12.0.preempt"
    assert (refused.returncode, watch.said("signal")) == (2, [])


def test_the_signals_that_slurm_sends_to_all_of_a_job_do_not_keep_it_from_saying_it(short: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(short / "link"))
        listener.listen()
        process = subprocess.Popen(command("--link", short / "link"), env=environment(), stdout=subprocess.PIPE)
        sock, _ = listener.accept()
        pid, _ = credentials(sock)
        for signum in (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2, signal.SIGTERM):
            os.kill(pid, signum)
        sock.sendall(b'{"type": "status"}\n')
        status = process.wait(20)
        sock.close()
        assert process.stdout is not None
        process.stdout.close()

    assert status == 0


# -- the answer


def answer(directory: Path, name: str, state: str) -> None:
    (directory / f".{name}.new").write_text(json.dumps({"state": state, "t": time.time()}))
    (directory / f".{name}.new").rename(directory / name)


def waiting(directory: Path, *options: object) -> "subprocess.Popen[str]":
    program = command("--job", "12", "--dir", directory, "--wait", *options)
    process = subprocess.Popen(program, env=environment(), stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == f"wrote {directory}/12.preempt, for job 12\n"
    return process


@pytest.mark.parametrize(("state", "status"), [("requeued", 0), ("failed", 1)])
def test_who_waits_hears_the_jobs_last_word(tmp_path: Path, state: str, status: int) -> None:
    answer(tmp_path, "12.0.ack", "failed")
    os.utime(tmp_path / "12.0.ack", (1, 1))
    answer(tmp_path, "123.1.ack", "failed")
    process = waiting(tmp_path, 40)
    answer(tmp_path, "12.1.ack", "noticed")
    answer(tmp_path, "12.1.ack", state)
    out, _ = process.communicate(timeout=30)

    assert (out, process.returncode) == (f"12: {state}\n", status)


def test_who_waits_hears_that_it_was_noticed_if_there_is_no_more_to_say_in_time(tmp_path: Path) -> None:
    answer(tmp_path, "12.0.ack", "noticed")
    os.utime(tmp_path / "12.0.ack", (time.time() + 60, time.time() + 60))
    out, _ = waiting(tmp_path, 0.5).communicate(timeout=30)

    assert out == "12: noticed\n"


def test_who_waits_in_vain_is_told_so(tmp_path: Path) -> None:
    (tmp_path / "12.0.ack").write_text("[")
    (tmp_path / "12.1.ack").mkdir()
    process = waiting(tmp_path, 0.5)
    out, _ = process.communicate(timeout=30)

    assert (out, process.returncode) == ("12: no answer within 0.5 s\n", 1)


# -- traps


TRAP = """
trap 'preemptd notify --deadline 40 --reason trap' USR1
preemptd watch --provider file --journal "$JOURNAL" -- "$@" &
echo started
wait $!; wait $!; wait $!
"""


def test_a_trap_in_a_batch_script_tells_the_preemptd_that_the_script_started(short: Path, tmp_path: Path) -> None:
    programs = tmp_path / "bin"
    programs.mkdir()
    (programs / "preemptd").write_text(f'#!/bin/sh\nexec {" ".join(PREEMPTD)} "$@"\n')
    (programs / "preemptd").chmod(0o755)
    log = short / "log"
    env = {"XDG_RUNTIME_DIR": str(short), "SLURM_JOB_ID": "4711", "LOG": str(log), "JOURNAL": str(short / "journal")}
    env |= {"PATH": f"{programs}:{os.environ['PATH']}", "CHECKPOINTS": str(short)}
    script = ["bash", "-c", TRAP, "job.sh", *trainer("USR1")]
    with subprocess.Popen(script, env=environment(env), stdout=subprocess.PIPE, text=True) as batch:
        assert batch.stdout is not None
        try:
            next(line for line in batch.stdout if "ready" in line)
            batch.send_signal(signal.SIGUSR1)
            out, _ = batch.communicate(timeout=30)
        finally:
            batch.kill()
    events = [json.loads(line) for line in (short / "journal").read_text().splitlines()]

    assert batch.returncode == 75
    assert "told the preemptd at" in out
    assert [event["source"] for event in events if event["event"] == "notice"] == ["trap"]


# -- what cannot be done


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ([], "which job? Not inside of one"),
        (["--job", "12"], "there is no directory /"),
        (["--job", "12", "--dir", "/dev/null"], "there is no directory /dev/null (--dir)"),
        (["--job", "12/3", "--dir", "."], "job id '12/3': letters, digits"),
        (["--job", "../x", "--dir", "."], "job id '../x'"),
        (["--job", "", "--dir", "."], "job id ''"),
        (["--job", "a\nb", "--dir", "."], "job id 'a\\nb'"),
        (["--job", "12", "--dir", ".", "--deadline", "0"], "--deadline 0: seconds from now, more than 0"),
        (["--job", "12", "--dir", ".", "--deadline", "-5"], "--deadline -5"),
        (["--job", "12", "--dir", ".", "--deadline", "nan"], "--deadline nan"),
        (["--job", "12", "--dir", ".", "--deadline", "1e99"], "at most 30 days"),
        (["--job", "12", "--dir", ".", "--deadline", "soon"], "--deadline"),
        (["--job", "12", "--dir", ".", "--kind", "explode"], "--kind 'explode': one of preempt, cancel"),
        (["--node", "a/b", "--dir", "."], "--node 'a/b': no node can have this name"),
        (["--node", "n1", "--job", "12", "--dir", "."], "leave --job out"),
        (["--link", "none"], "no preemptd answers at none: "),
        (["--link", "none", "--dir", "."], "leave --dir, --node and --wait out"),
        (["--link", "none", "--wait", "1"], "leave --dir, --node and --wait out"),
        (["--node", "n1", "--wait", "1", "--dir", "."], "--wait is for the answer of one job"),
        (["--job", "12", "--wait", "0", "--dir", "."], "--wait 0: seconds"),
        (["--link", "none", "--kind", "cancel"], "leave --link out"),
    ],
)
def test_what_cannot_be_used_is_named_on_one_line(tmp_path: Path, arguments: Sequence[str], complaint: str) -> None:
    env = environment({"PREEMPTD_SIGNAL_DIR": str(tmp_path / "none")})
    ended = subprocess.run(
        command(*arguments), env=env, cwd=tmp_path, capture_output=True, text=True, check=False, timeout=50
    )

    assert (ended.returncode, ended.stdout) == (2, "")
    assert ended.stderr.startswith("preemptd: ")
    assert ended.stderr.count("\n") == 1
    assert complaint in ended.stderr
    assert names(tmp_path) == []


def test_a_directory_that_may_not_be_written_to_is_named(short: Path) -> None:
    short.chmod(0o555)
    unprivileged = ["setpriv", "--inh-caps", "-all", "--bounding-set", "-dac_override"] if os.geteuid() == 0 else []
    ended = subprocess.run(
        [*unprivileged, *command("--job", "12", "--dir", short)],
        env=environment(),
        capture_output=True,
        text=True,
        check=False,
        timeout=50,
    )
    short.chmod(0o755)

    assert ended.returncode == 2
    assert ended.stderr == f"preemptd: {short} may not be written to by user {os.geteuid()} (--dir)\n"


FULL = """
set -e
mount -t tmpfs -o size=16k tmpfs "$1"
dd if=/dev/zero of="$1/filler" bs=1k 2> /dev/null || true
shift 1
"$@"
"""


@pytest.mark.usefixtures("needs_root")
@pytest.mark.parametrize(
    ("kind", "status", "left"), [("preempt", 0, ["12.preempt 0", "filler 16384"]), ("cancel", 2, ["filler 16384"])]
)
def test_on_a_full_disk_an_empty_file_says_now_but_never_to_a_cancelled_job(
    tmp_path: Path, kind: str, status: int, left: list[str]
) -> None:
    listing = ["bash", "-c", '"$@" >&2; echo $?; cd $DIR; shopt -s dotglob; stat -c "%n %s" *', "sh"]
    program = command("--job", "12", "--deadline", 60, "--kind", kind, "--dir", tmp_path)
    ended = subprocess.run(
        ["unshare", "--mount", "bash", "-c", FULL, "sh", str(tmp_path), *listing, *program],
        env=environment({"DIR": str(tmp_path)}),
        capture_output=True,
        text=True,
        check=False,
        timeout=50,
    )

    assert "No space left on device" in ended.stderr
    assert ended.stdout.splitlines() == [str(status), *left]


def test_it_is_said_at_once(tmp_path: Path) -> None:
    """A trap runs it in a job that is dying; KillWait is 5 s at the least."""
    began = time.monotonic()
    notify("--job", "12", "--dir", tmp_path)

    assert time.monotonic() - began < 5
