"""`preemptd` itself, `providers`, `status`."""

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

import preemptd
from tests.linking import short_directory
from tests.metadata_server import FaultyEc2
from tests.test_watch import on_ec2
from tests.watching import PREEMPTD, Watch, environment, trainer


def ask(*arguments: str, env: Mapping[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*PREEMPTD, *arguments], env=environment(env), capture_output=True, text=True, check=False, timeout=60
    )


@pytest.fixture
def short() -> Iterator[Path]:
    with short_directory() as directory:
        yield directory


def test_the_version_is_that_of_the_package() -> None:
    assert ask("--version").stdout == f"preemptd {preemptd.__version__}\n"


def test_without_a_command_there_is_help_and_status_2() -> None:
    ended = ask()

    assert (ended.returncode, ended.stdout) == (2, "")
    assert all(verb in ended.stderr for verb in ("watch", "rehearse", "providers", "status"))


@pytest.mark.parametrize("verb", ["", "watch", "rehearse", "providers", "status"])
def test_help_is_on_stdout(verb: str) -> None:
    ended = ask(*verb.split(), "--help")

    assert (ended.returncode, ended.stderr) == (0, "")
    assert "Usage" in ended.stdout


@pytest.mark.parametrize("arguments", [["providers", "--no-probe"], ["watch", "--help"]])
def test_an_output_that_is_full_is_named_on_one_line(arguments: list[str]) -> None:
    with open("/dev/full", "w") as full:
        ended = subprocess.run(
            [*PREEMPTD, *arguments], env=environment(), stdout=full, stderr=subprocess.PIPE, text=True, check=False
        )

    assert ended.returncode == 2
    assert re.fullmatch(r"preemptd: No space left on device \(.*\)\n", ended.stderr)


def test_an_output_that_nobody_reads_is_no_error_to_speak_of() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    ended = subprocess.run(
        [*PREEMPTD, "providers", "--no-probe"], env=environment(), stdout=writing, stderr=subprocess.PIPE, check=False
    )
    os.close(writing)

    assert ended.returncode != 0
    assert ended.stderr == b""


def test_ctrl_c_while_we_start_ends_us_without_a_word() -> None:
    script = (
        "import os, signal, sys\n"
        "sys.addaudithook(lambda event, args: args[0] == 'typer' and os.kill(os.getpid(), signal.SIGINT)\n"
        "                 if event == 'import' else None)\n"
        "from preemptd.cli import main\n"
        "sys.argv = ['preemptd', 'watch', '--', 'true']\n"
        "main()\n"
    )
    ended = subprocess.run([sys.executable, "-c", script], env=environment(), capture_output=True, check=False)

    assert (ended.returncode, ended.stdout, ended.stderr) == (-signal.SIGINT, b"", b"")


def words(text: str) -> dict[str, str]:
    return {line.split()[0]: line.split(maxsplit=1)[1] for line in text.splitlines()}


def test_providers_are_listed_with_the_reason_why_they_are_not_here() -> None:
    ended = ask("providers", "--no-probe")
    said = words(ended.stdout)

    assert (ended.returncode, ended.stderr) == (0, "")
    assert {"ec2", "gce", "file", "sigterm"} <= said.keys()
    assert said["sigterm"] == "not here: only used when named"
    assert "here" in said["ec2"]


def test_a_provider_that_the_environment_names_is_here() -> None:
    with FaultyEc2(grace=20.0) as ec2:
        said = words(ask("providers", env=on_ec2(ec2)).stdout)

    assert said["ec2"] == "here: AWS_EC2_METADATA_SERVICE_ENDPOINT is set"
    assert said["gce"].startswith("not here: ")


def test_a_signal_directory_in_the_environment_brings_the_file_provider(tmp_path: Path) -> None:
    said = words(ask("providers", "--no-probe", env={"PREEMPTD_SIGNAL_DIR": str(tmp_path)}).stdout)

    assert said["file"].startswith("here: ")


def test_a_provider_that_is_named_is_listed_as_named(tmp_path: Path) -> None:
    config = tmp_path / "config"
    config.write_text('provider = ["exec"]\ntarget = [{ runs = true }]\n')
    in_file = words(ask("providers", "--no-probe", "--config", str(config)).stdout)
    in_both = words(
        ask("providers", "--no-probe", env={"PREEMPTD_CONFIG": str(config), "PREEMPTD_PROVIDER": "http,file"}).stdout
    )
    unknown = ask("providers", "--no-probe", env={"PREEMPTD_PROVIDER": "htp"})

    assert {name for name, word in in_file.items() if word.startswith("named: ")} == {"exec"}
    assert {name for name, word in in_both.items() if word.startswith("named: ")} == {"http", "file"}
    assert unknown.returncode == 2
    assert unknown.stderr.startswith("preemptd: no provider is called 'htp'; ")


def test_status_says_in_words_what_is_watched_and_who_would_be_told(short: Path) -> None:
    with (
        FaultyEc2(grace=60.0) as ec2,
        Watch(short, trainer("USR1", save=60), "--link", str(short / "link"), env=on_ec2(ec2)) as watch,
    ):
        pid = watch.await_said("ready")[0]["pid"]
        watch.await_line("provider")
        before = ask("status", "--link", str(short / "link"))
        ec2.announcement.announce()
        watch.await_line("told")
        after = ask("status", env={"PREEMPTD_LINK": str(short / "link")})

        assert (before.returncode, before.stderr) == (0, "")
        assert before.stdout.startswith(f"pid {pid}, link {short}/link\n")
        assert re.search(r"^  watch \S+: clear, last good answer: [0-9.]+ s ago$", before.stdout, re.MULTILINE)
        assert "  W&B runs: none\n" in before.stdout
        assert f"  would tell: pid {pid} (USR1)\n" in after.stdout
        assert re.search(r"^  NOTICE \S+: terminate in [0-9.]+ s; 1 told, 0 saved$", after.stdout, re.MULTILINE)


def test_status_as_json_is_one_object_a_line_for_each_preemptd_of_ours(short: Path) -> None:
    env = {"XDG_RUNTIME_DIR": str(short)}
    with (
        Watch(short, ["sleep", "60"], env=env, name="a") as first,
        Watch(short, ["sleep", "60"], env=env, name="b") as second,
    ):
        pids = {int(str(watch.await_line("started")[0]["pid"])) for watch in (first, second)}
        ended = ask("status", "--json", env=env)
        for watch in (first, second):
            watch.signal(signal.SIGTERM)
            watch.wait()
        answers = [json.loads(line) for line in ended.stdout.splitlines()]

        assert {answer["pid"] for answer in answers} == pids
        assert all(
            {"link", "held", "watches", "runs", "would_tell", "told", "saved", "notices"} <= answer.keys()
            for answer in answers
        )


def test_a_socket_that_a_killed_preemptd_left_behind_is_nobody(short: Path) -> None:
    env = {"XDG_RUNTIME_DIR": str(short)}
    with Watch(short, ["sleep", "60"], "--die-with-parent", "--job-id", "run42", env=env) as watch:
        watch.await_line("started")
        watch.signal(signal.SIGKILL)
        watch.process.wait(20)
    left = short / "preemptd" / "run42.sock"
    unnamed, named = ask("status", env=env), ask("status", "--link", str(left))

    assert left.is_socket()
    assert (unnamed.returncode, named.returncode) == (2, 2)
    assert unnamed.stderr.startswith("preemptd: no preemptd of yours runs here")
    assert named.stderr.startswith(f"preemptd: no preemptd answers at {left}")


@pytest.mark.parametrize(("options", "left"), [([], True), (["--sweep"], False)], ids=["left-alone", "sweep"])
def test_what_the_command_leaves_running_is_left_alone_or_swept(options: list[str], left: bool) -> None:
    ended = ask("watch", *options, "--", "sh", "-c", "sleep 60 > /dev/null 2>&1 & echo $!; exit 3")
    pid = int(ended.stdout)
    command = Path(f"/proc/{pid}/cmdline")
    lives = command.exists() and command.read_bytes().startswith(b"sleep")
    if lives:
        os.kill(pid, signal.SIGKILL)

    assert ended.returncode == 3
    assert lives is left


def test_json_logs_are_one_object_a_line(tmp_path: Path) -> None:
    ended = ask("watch", "--log-format", "json", "--journal", str(tmp_path / "no" / "journal"), "--", "true")
    lines = [json.loads(line) for line in ended.stderr.splitlines()]

    assert ended.returncode == 0
    assert {"warning", "started", "exited", "settled"} <= {line["event"] for line in lines}
