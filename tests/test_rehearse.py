"""`preemptd rehearse` from outside: its verdicts, its report, and what it keeps from the command."""

import re
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.rehearsing import rehearse, report
from tests.waiting import wait_until
from tests.watching import PREEMPTD, Watch, environment, read_lines, trainer

QUICK = ["--after", "0.3", "--grace", "8"]
NOTHING_NEW = "the command ended in time, but nothing new and complete lies in its --checkpoint-dir"


def masked(lines: Sequence[str]) -> list[str]:
    """Return *lines* with each number as N, and without this machine's names."""
    joined = "\n".join(lines).replace(sys.executable, "python")
    return re.sub(r"[0-9]+(\.[0-9]+)*", "N", joined).splitlines()


def test_saved_by_a_checkpoint_file(tmp_path: Path) -> None:
    ended = rehearse(tmp_path, trainer("USR1"), *QUICK, "--checkpoint-dir", str(tmp_path / "saved"))
    lines = report(ended)

    assert ended.returncode == 0
    assert re.fullmatch(
        r"verdict     SAVED: step-\d+\.ckpt was written after the notice, and the command ended in time", lines[-1]
    )
    assert any(re.match(r"written     .*|            step-\d+\.ckpt, \d+ bytes", line) for line in lines)


def test_saved_by_the_clients_word_on_gce(tmp_path: Path) -> None:
    ended = rehearse(tmp_path, trainer("link"), *QUICK, "--provider", "gce")
    lines = report(ended)

    assert ended.returncode == 0
    assert lines[0] == "rehearsed   gce: 8 s from the notice to the end of the machine"
    assert lines[-1] == "verdict     SAVED: 1 of 1 told processes said that they have saved"


def test_lost_by_a_command_without_a_handler_that_still_runs_at_the_end(tmp_path: Path) -> None:
    ended = rehearse(tmp_path, trainer("none"), "--after", "0", "--grace", "2", "--checkpoint-dir", str(tmp_path / "c"))
    lines = report(ended)

    assert ended.returncode == 1
    assert "told        nobody" in lines
    assert lines[-1] == "verdict     LOST: the command still ran when the 2 s were over, as the machine would not"
    assert any("nothing in this job handles SIGUSR1 or SIGTERM" in line for line in lines)


def test_lost_by_a_save_that_takes_longer_than_the_machine_has(tmp_path: Path) -> None:
    options = ["--after", "1", "--grace", "2", "--checkpoint-dir", str(tmp_path / "c")]
    ended = rehearse(tmp_path, trainer("USR1", save=60), *options)

    assert ended.returncode == 1
    assert report(ended)[-1].startswith("verdict     LOST: the command still ran")


def test_lost_by_a_command_that_ends_in_time_and_saves_nothing(tmp_path: Path) -> None:
    ended = rehearse(tmp_path, trainer("USR1"), *QUICK, "--checkpoint-dir", str(tmp_path / "elsewhere"))
    lines = report(ended)

    assert ended.returncode == 1
    assert "written     nothing since the notice" in lines
    assert lines[-1] == f"verdict     LOST: {NOTHING_NEW}"


@pytest.mark.parametrize(
    ("command", "options", "why"),
    [
        (["true"], ["--after", "30"], "the command ended before the notice came; try a smaller --after"),
        (trainer("USR1"), QUICK, "the command ended in time; with --checkpoint-dir DIR we can see what it saved"),
    ],
    ids=["ended-before", "nowhere-to-look"],
)
def test_unknown(tmp_path: Path, command: list[str], options: list[str], why: str) -> None:
    ended = rehearse(tmp_path, command, *options)

    assert ended.returncode == 1
    assert report(ended)[-1] == f"verdict     UNKNOWN: {why}"


def test_the_report_can_be_taken_in_at_a_glance(tmp_path: Path) -> None:
    ended = rehearse(tmp_path, trainer("USR1"), *QUICK, "--checkpoint-dir", str(tmp_path / "c"), "--no-wandb")
    command = " ".join(trainer("USR1")).replace(sys.executable, "python")
    cut = " ".join(trainer("USR1"))[:60].replace(sys.executable, "python")

    assert masked(report(ended)) == masked(
        [
            "rehearsed   ec2: 8 s from the notice to the end of the machine",
            f"command     {command} (pid 1)",
            "watched     ec2 (named by the user; http://127.0.0.1:1: IMDSv2)",
            f"told        pid 1 by SIGUSR1 after 1.0 ms: {cut}",
            "W&B runs    none found",
            "timeline    +0.000 s  notice: terminate in 8 s",
            "            +0.000 s  pid 1 told",
            "            +0.000 s  the command ended with status 0",
            "            +0.000 s  preemptd ends with status 75",
            "written     nothing since the notice",
            "to spare    7.0 s",
            f"verdict     LOST: {NOTHING_NEW}",
        ]
    )


def test_the_journal_is_kept_and_appended_to(tmp_path: Path) -> None:
    journal = tmp_path / "journal"
    journal.write_text('{"event": "old"}\n')
    rehearse(tmp_path, trainer("USR1"), *QUICK, "--journal", str(journal))
    events = [line["event"] for line in read_lines(journal)]

    assert events[0] == "old"
    assert {"started", "provider", "notice", "told", "exited", "settled"} <= set(events)


@pytest.mark.parametrize("journal", ["file/journal", "/dev/full", "/dev/null"])
def test_a_journal_that_keeps_nothing_costs_the_report_nothing(tmp_path: Path, journal: str) -> None:
    (tmp_path / "file").touch()
    ended = rehearse(tmp_path, trainer("link"), *QUICK, "--journal", journal)

    assert ended.returncode == 0
    assert report(ended)[-1].startswith("verdict     SAVED")
    assert "Traceback" not in ended.stderr


def test_the_command_sees_nothing_of_the_rehearsal_in_its_environment(tmp_path: Path) -> None:
    show = "import json, os; print(json.dumps(dict(os.environ)))"
    mine = {"PREEMPTD_JOB_ID": "run42", "PREEMPTD_STATE_DIR": str(tmp_path / "state"), "AWS_REGION": "eu-west-1"}
    ended = rehearse(tmp_path, [sys.executable, "-c", show], "--after", "30", env=mine)
    seen = ended.stdout.splitlines()[0]

    assert "AWS_EC2_METADATA_SERVICE_ENDPOINT" not in seen
    assert "GCE_METADATA_HOST" not in seen
    assert '"AWS_EC2_METADATA_DISABLED": "true"' in seen
    assert "eu-west-1" in seen
    assert "run42" not in seen
    assert not (tmp_path / "state").exists(), "a rehearsal is no attempt of the job"


def test_it_rehearses_under_a_real_watch_as_well(tmp_path: Path) -> None:
    inner = [*PREEMPTD, "rehearse", *QUICK, "--", *trainer("link")]
    with Watch(tmp_path, inner) as outer:
        status = outer.wait()

    assert status == 0
    assert "verdict     SAVED" in outer.out
    assert outer.lines("notice") == []


def test_a_notice_at_once_finds_the_command_started(tmp_path: Path) -> None:
    ended = rehearse(
        tmp_path, trainer("USR1"), "--after", "0", "--grace", "20", "--checkpoint-dir", str(tmp_path / "saved")
    )

    assert ended.returncode == 0
    assert report(ended)[-1].startswith("verdict     SAVED")


def test_ctrl_c_ends_a_rehearsal_with_its_report_and_leaves_nothing_behind(tmp_path: Path) -> None:
    command = [*PREEMPTD, "rehearse", "--after", "60", "--", "sh", "-c", "echo $$ > new; mv new pid; exec sleep 60"]
    rehearsal = subprocess.Popen(
        command, env=environment(), cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    wait_until((tmp_path / "pid").exists)
    trains = int((tmp_path / "pid").read_text())
    servers = wait_until(lambda: [pid for pid in children(rehearsal.pid) if pid != trains])
    rehearsal.send_signal(signal.SIGINT)
    out, err = rehearsal.communicate(timeout=30)

    assert rehearsal.returncode == 1
    assert b"verdict     UNKNOWN: the command ended before the notice came" in out
    assert b"Traceback" not in err
    assert not any(Path(f"/proc/{pid}").exists() for pid in (*servers, trains))


def children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
