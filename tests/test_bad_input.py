"""What cannot be used is named on one line, ends with 2 (126, 127 for the command), and leaves nothing behind."""

import fcntl
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

from tests.linking import short_directory
from tests.metadata_server import FaultyEc2
from tests.test_watch import on_ec2
from tests.waiting import wait_until
from tests.watching import PREEMPTD, Watch, environment, trainer

ADDRESS = "AWS_EC2_METADATA_SERVICE_ENDPOINT"


def run(
    folder: Path, *arguments: str, env: Mapping[str, str] | None = None, **files: str
) -> subprocess.CompletedProcess[str]:
    """Run preemptd in *folder*, with one file for each of *files* in it."""
    for name, text in files.items():
        (folder / name).write_bytes(text.encode("latin-1"))
    return subprocess.run(
        [*PREEMPTD, *arguments],
        env=environment({"XDG_RUNTIME_DIR": str(folder / "run"), "TMPDIR": str(folder / "tmp"), **(env or {})}),
        cwd=folder,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        errors="surrogateescape",
        check=False,
        timeout=60,
    )


def one_line(text: str) -> bool:
    return text.startswith("preemptd: ") and text.endswith("\n") and text.count("\n") == 1 and "Traceback" not in text


def left_in(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("run", "tmp", "directory"):
        (tmp_path / name).mkdir()
    (tmp_path / "file").touch()
    return tmp_path


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["nonsense"], "No such command 'nonsense'"),
        (["watch"], "no command: preemptd watch"),
        (["watch", "--"], "no command: preemptd watch"),
        (["watch", "--nonsense", "--", "touch", "ran"], "No such option: --nonsense"),
        (["watch", "--no\nsense", "--", "touch", "ran"], "No such option"),
        (["watch", "--grace"], "'--grace' requires an argument"),
        (["watch", "--grace", "soon", "--", "touch", "ran"], "'--grace'"),
        (["watch", "--grace", "-1", "--", "touch", "ran"], "grace = -1.0"),
        (["watch", "--grace", "nan", "--", "touch", "ran"], "grace = nan"),
        (["watch", "--lead", "inf", "--", "touch", "ran"], "lead = inf"),
        (["watch", "--signal", "KILL", "--", "touch", "ran"], "signal = 'KILL'"),
        (["watch", "--signal-target", "all", "--", "touch", "ran"], "signal-target = 'all'"),
        (["watch", "--preempted-exit-code", "256", "--", "touch", "ran"], "preempted-exit-code = 256"),
        (["watch", "--job-id", "../x", "--", "touch", "ran"], "job-id = '../x'"),
        (["watch", "--job-id", "", "--", "touch", "ran"], "job-id = ''"),
        (["watch", "--provider", "nonsense", "--", "touch", "ran"], "no provider is called 'nonsense'"),
        (["watch", "--provider", "a\nb", "--", "touch", "ran"], "no provider is called 'a\\nb'"),
        (["watch", "--config", "none.toml", "--", "touch", "ran"], "none.toml cannot be read: No such file"),
        (["watch", "--config", "directory", "--", "touch", "ran"], "directory cannot be read: Is a directory"),
        (["watch", "--link", "file", "--", "touch", "ran"], "exists and is not a socket"),
        (["watch", "--link", "file/link", "--", "touch", "ran"], "Not a directory"),
        (["watch", "--link", "/proc/none/link", "--", "touch", "ran"], "cannot make the link"),
        (["watch", "--link", "x" * 200, "--", "touch", "ran"], "longer than 107 bytes"),
        (["watch", "--link", "", "--", "touch", "ran"], "link = ''"),
        (["status"], "no preemptd of yours runs here"),
        (["status", "--link", "none"], "no preemptd answers at none"),
        (["status", "--link", "file"], "no preemptd answers at file"),
        (["status", "--link", "x" * 200], "no preemptd answers at xxx"),
        (["providers", "--nonsense"], "No such option: --nonsense"),
        (["rehearse"], "no command: preemptd rehearse"),
        (["rehearse", "--provider", "oracle", "--", "touch", "ran"], "'oracle' cannot be rehearsed"),
        (["watch", "--grace", "abc", "--", "touch", "ran"], ": 'abc' (preemptd --help)"),
        (["watch", "--restart=1.5", "--", "touch", "ran"], ": '1.5' (preemptd --help)"),
        (["rehearse", "--after", "-1", "--", "touch", "ran"], "--after -1.0"),
        (["rehearse", "--after", "nan", "--", "touch", "ran"], "--after nan"),
        (["rehearse", "--grace", "nan", "--", "touch", "ran"], "grace = nan"),
        (["rehearse", "--signal", "KILL", "--", "touch", "ran"], "signal = 'KILL'"),
    ],
)
def test_a_command_line_that_cannot_be_used(folder: Path, arguments: list[str], said: str) -> None:
    before = left_in(folder)
    ended = run(folder, *arguments)

    assert ended.returncode == 2
    assert ended.stdout == ""
    assert one_line(ended.stderr), ended.stderr
    assert said in ended.stderr
    assert left_in(folder) == before


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("x = = 1", "is not valid TOML"),
        ("\xff\xfe", "is not valid TOML"),
        ("nonsense = 1", "unknown key 'nonsense'; known keys are"),
        ('grace = "soon"', "grace = 'soon'"),
        ("grace = -1", "grace = -1"),
        ("grace = nan", "grace = nan"),
        ("grace = [1, 2]", "grace = [1, 2]"),
        ('kill = "perhaps"', "kill = 'perhaps'"),
        ('signal = "KILL"', "signal = 'KILL'"),
        ("provider = 3", "provider = 3"),
        ('provider = ["ec2", 3]', "provider = "),
        ("preempted_exit_code = 1.5", "preempted-exit-code = 1.5"),
        ('journal = "a\\u0000b"', "no file can have this name"),
        ('state_dir = "a\\u0000b"', "no file can have this name"),
        ('checkpoint_dir = ""', "no file can have this name"),
        ("providers = 3", "providers: Input should be"),
        ("[providers]\nec2 = 3", "providers: ec2: Input should be"),
        ("[providers.nonsense]\nx = 1", "[providers.nonsense]: no provider is called"),
        ('provider = "ec2"\n[providers.ec2]\nnonsense = 1', "[providers.ec2] has no key 'nonsense'"),
        ('provider = "ec2"\n[providers.ec2]\ninterval = "x"', "[providers.ec2] interval = 'x'"),
    ],
)
def test_a_configuration_file_that_cannot_be_used(folder: Path, text: str, said: str) -> None:
    ended = run(folder, "watch", "--config", "config", "--", "touch", "ran", config=text)

    assert ended.returncode == 2
    assert one_line(ended.stderr), ended.stderr
    assert said in ended.stderr
    assert not (folder / "ran").exists()
    assert list((folder / "run").iterdir()) == []


@pytest.mark.parametrize(
    ("env", "said"),
    [
        ({"PREEMPTD_GRACE": "soon"}, "environment: grace = 'soon'"),
        ({"PREEMPTD_KILL": "perhaps"}, "environment: kill = 'perhaps'"),
        ({"PREEMPTD_NO_WANDB": "perhaps"}, "environment: no-wandb = 'perhaps'"),
        ({"PREEMPTD_PROVIDER": "nonsense"}, "no provider is called 'nonsense'"),
        ({"PREEMPTD_CONFIG": "none.toml"}, "none.toml cannot be read"),
        ({ADDRESS: "nonsense", "AWS_EC2_METADATA_DISABLED": "false", "PREEMPTD_PROVIDER": "ec2"}, ADDRESS),
        ({ADDRESS: "nonsense", "AWS_EC2_METADATA_DISABLED": "false"}, ADDRESS),
    ],
)
def test_a_variable_that_cannot_be_used(folder: Path, env: Mapping[str, str], said: str) -> None:
    ended = run(folder, "watch", "--", "touch", "ran", env=env)

    assert ended.returncode == 2
    assert one_line(ended.stderr), ended.stderr
    assert said in ended.stderr
    assert not (folder / "ran").exists()


@pytest.mark.slow
@pytest.mark.parametrize("verb", ["watch", "rehearse"])
@pytest.mark.parametrize(
    ("command", "status"),
    [
        ("./none", 127),
        ("none-of-this-name", 127),
        ("file/x", 127),
        ("", 127),
        ("a\nb", 127),
        ("./file", 126),
        ("./directory", 126),
    ],
)
def test_a_command_that_cannot_be_run(folder: Path, verb: str, command: str, status: int) -> None:
    before = left_in(folder)
    ended = run(folder, verb, "--", command)
    lines = [line for line in ended.stderr.splitlines() if "watching ec2" not in line]

    assert ended.returncode == status
    assert len(lines) == 1
    assert lines[0].startswith("preemptd: ")
    assert left_in(folder) - before <= {"run/preemptd"}


def test_a_link_that_a_running_preemptd_has_is_refused() -> None:
    with short_directory() as short, Watch(short, ["sleep", "60"], "--link", str(short / "link")) as watch:
        watch.await_line("started")
        ended = run(short, "watch", "--link", str(short / "link"), "--", "touch", "ran")
        with socket.socket(socket.AF_UNIX) as first:
            first.connect(str(short / "link"))
        watch.signal(signal.SIGTERM)
        watch.wait()

        assert ended.returncode == 2
        assert one_line(ended.stderr)
        assert "in use by a running preemptd" in ended.stderr
        assert not (short / "ran").exists()


SAVES = ["sh", "-c", "echo ran"]


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        (["--journal", "file/journal"], "journal file/journal cannot be opened (Not a directory)"),
        (["--journal", "directory"], "journal directory cannot be opened (Is a directory)"),
        (["--journal", "/dev/full"], "journal /dev/full cannot be written (No space left on device)"),
        (["--state-dir", "file/state", "--job-id", "run42"], "cannot be used (Not a directory)"),
    ],
)
def test_what_cannot_be_written_is_said_once_and_does_not_stop_the_training(
    folder: Path, options: Sequence[str], complaint: str
) -> None:
    ended = run(folder, "watch", *options, "--", *SAVES)

    assert (ended.returncode, ended.stdout) == (0, "ran\n")
    assert ended.stderr.count("warning: ") == 1
    assert complaint in ended.stderr
    assert "Traceback" not in ended.stderr


def test_a_full_disk_does_not_stop_the_training(folder: Path) -> None:
    """RLIMIT_FSIZE refuses each write to a file, as a full disk does: ledger, lock and journal at once."""
    script = "import os, resource, signal, sys; signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
    script += "resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0)); os.execv(sys.executable, sys.argv[1:])"
    options = ["--state-dir", "state", "--job-id", "run42", "--journal", "journal"]
    ended = subprocess.run(
        [sys.executable, "-c", script, *PREEMPTD, "watch", *options, "--", *SAVES],
        env=environment({"PYTHONDONTWRITEBYTECODE": "1"}),
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )

    assert (ended.returncode, ended.stdout) == (0, "ran\n")
    assert ended.stderr.count("warning: ") == 2
    assert "state/run42.json cannot be written (File too large)" in ended.stderr
    assert "journal journal cannot be written (File too large)" in ended.stderr


LOOK = """
import os, sys
closed = []
for fd in range(3):
    try:
        os.fstat(fd)
    except OSError:
        closed.append(fd)
with open("closed", "w") as file:
    file.write(str(closed))
os.execv(sys.argv[1], sys.argv[1:])
"""


@pytest.mark.parametrize(
    ("how", "closed"),
    [("<&-", [0]), (">&-", [1]), ("2>&-", [2]), ("<&- >&- 2>&-", [0, 1, 2])],
    ids=["0", "1", "2", "all"],
)
def test_what_is_closed_stays_closed_for_the_command_and_it_is_told_all_the_same(
    tmp_path: Path, how: str, closed: list[int]
) -> None:
    (tmp_path / "look.py").write_text(LOOK)
    with FaultyEc2(grace=20.0) as ec2:
        env = environment({**on_ec2(ec2), "LOG": str(tmp_path / "log")})
        # The trainer prints; where stdout is closed it would fail at that, so it gets another one.
        shell = f'exec "$@" {how}'
        trains = ["sh", "-c", 'exec "$@" > /dev/null', "sh", *trainer("USR1")]
        command = [*PREEMPTD, "watch", "--", sys.executable, "look.py", "/usr/bin/env", *trains]
        watch = subprocess.Popen(["sh", "-c", shell, "sh", *command], env=env, cwd=tmp_path, stderr=subprocess.PIPE)
        wait_until(lambda: (tmp_path / "log").exists() and b"ready" in (tmp_path / "log").read_bytes())
        ec2.announcement.announce()
        _, err = watch.communicate(timeout=60)

    assert watch.returncode == 75
    assert (tmp_path / "closed").read_text() == str(closed)
    assert (tmp_path / "log").read_text().count('"saved"') == 1
    assert b"Error" not in err


def test_a_full_stderr_that_nobody_reads_does_not_keep_the_command_from_being_told(tmp_path: Path) -> None:
    reading, writing = os.pipe()
    fcntl.fcntl(writing, fcntl.F_SETFL, os.O_NONBLOCK)
    try:
        while True:
            os.write(writing, bytes(4096))
    except BlockingIOError:
        fcntl.fcntl(writing, fcntl.F_SETFL, 0)
    with FaultyEc2(grace=20.0) as ec2:
        env = environment({**on_ec2(ec2), "LOG": str(tmp_path / "log")})
        watch = subprocess.Popen(
            [*PREEMPTD, "watch", "--", *trainer("USR1")],
            env=env,
            cwd=tmp_path,
            stdout=subprocess.DEVNULL,
            stderr=writing,
        )
        wait_until(lambda: (tmp_path / "log").exists() and b"ready" in (tmp_path / "log").read_bytes())
        ec2.announcement.announce()
        status = watch.wait(60)
    os.close(reading)
    os.close(writing)

    assert status == 75
    assert (tmp_path / "log").read_text().count('"saved"') == 1


def test_arguments_that_are_no_text_reach_the_command_as_they_are(folder: Path) -> None:
    ended = run(folder, "watch", "--", "printf", "%s", os.fsdecode(b"\xff\n\x1b"))

    assert ended.returncode == 0
    assert os.fsencode(ended.stdout) == b"\xff\n\x1b"
    assert all(line.startswith("preemptd: ") for line in ended.stderr.splitlines())
    assert "\x1b" not in ended.stderr
