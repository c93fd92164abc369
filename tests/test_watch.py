"""`preemptd watch` from outside: notices, tellings, exit statuses."""

import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.metadata_server import FaultyEc2, FaultyGce
from tests.waiting import wait_until
from tests.watching import Watch, trainer


@pytest.fixture
def ec2() -> Iterator[FaultyEc2]:
    with FaultyEc2(grace=20.0) as server:
        yield server


@pytest.fixture
def gce() -> Iterator[FaultyGce]:
    with FaultyGce(grace=20.0) as server:
        yield server


def on_ec2(server: FaultyEc2) -> dict[str, str]:
    return {"AWS_EC2_METADATA_SERVICE_ENDPOINT": server.url, "AWS_EC2_METADATA_DISABLED": "false"}


def on_gce(server: FaultyGce) -> dict[str, str]:
    return {"GCE_METADATA_HOST": server.url.removeprefix("http://"), "NO_GCE_CHECK": "false"}


@pytest.mark.parametrize(("how", "name"), [("USR1", "SIGUSR1"), ("TERM", "SIGTERM"), ("both", "SIGUSR1")])
def test_a_script_with_a_handler_is_told_once_and_the_status_is_75(
    tmp_path: Path, ec2: FaultyEc2, how: str, name: str
) -> None:
    with Watch(tmp_path, trainer(how), env=on_ec2(ec2)) as watch:
        watch.await_said("ready")
        ec2.announcement.announce()
        status = watch.wait()

    assert status == 75
    assert [line["name"] for line in watch.said("signal")] == [name]
    assert len(watch.said("saved")) == 1
    assert len(watch.lines("notice")) == len(watch.lines("told")) == 1
    assert watch.lines("settled")[0]["preempted"] is True


def test_a_gce_preemption_reaches_the_script(tmp_path: Path, gce: FaultyGce) -> None:
    with Watch(tmp_path, trainer("USR1"), env=on_gce(gce)) as watch:
        watch.await_said("ready")
        wait_until(lambda: gce.waiting >= 1)
        gce.announcement.announce()
        status = watch.wait()

    assert status == 75
    assert [line["kind"] for line in watch.lines("notice")] == ["preempt"]
    assert len(watch.said("signal")) == 1


def test_a_script_that_uses_the_client_hears_it_over_the_link_and_gets_no_signal(
    tmp_path: Path, ec2: FaultyEc2
) -> None:
    with Watch(tmp_path, trainer("link"), env=on_ec2(ec2)) as watch:
        watch.await_said("ready")
        ec2.announcement.announce()
        status = watch.wait()

    assert status == 75
    assert [line["how"] for line in watch.lines("told")] == ["link"]
    assert [line["event"] for line in watch.lines() if line["event"] in {"seen", "saving", "saved"}] == [
        "seen",
        "saving",
        "saved",
    ]
    assert watch.said("signal") == []
    assert 10 < float(str(watch.said("asked")[0]["left"])) <= 20


def test_a_script_without_a_handler_is_never_signalled_and_this_is_said(tmp_path: Path, ec2: FaultyEc2) -> None:
    with Watch(tmp_path, trainer("none"), env={**on_ec2(ec2), "STEPS": "100"}) as watch:
        watch.await_said("ready")
        ec2.announcement.announce()
        watch.await_line("notice")
        status = watch.wait()

    assert status == 0
    assert watch.lines("told") == []
    assert len(watch.said("exit")) == 1
    assert any("nothing in this job handles SIGUSR1 or SIGTERM" in str(line["text"]) for line in watch.lines("warning"))


@pytest.mark.slow
@pytest.mark.long
def test_a_trainer_that_nobody_can_tell_is_named_half_a_minute_after_the_start(tmp_path: Path) -> None:
    with Watch(tmp_path, trainer("none")) as watch:
        pid = watch.await_said("ready")[0]["pid"]
        text = str(watch.await_line("warning", timeout=55)[0]["text"])
        watch.signal(signal.SIGTERM)
        watch.wait()

    assert text.startswith("nothing in this job handles SIGUSR1 or SIGTERM: ")
    assert f"(pid {pid})" in text


@pytest.mark.slow
@pytest.mark.long
def test_ranks_on_other_machines_are_named_half_a_minute_after_the_start(tmp_path: Path) -> None:
    ranks = {"WORLD_SIZE": "16", "LOCAL_WORLD_SIZE": "8", "RANK": "3"}
    with Watch(tmp_path, trainer("USR1"), env=ranks) as watch:
        watch.await_said("ready")
        text = str(watch.await_line("warning", timeout=55)[0]["text"])
        watch.signal(signal.SIGTERM)
        watch.wait()

    assert "this job has 16 ranks, and only 8 of them run here" in text


def test_a_rank_that_still_imports_is_told_when_its_handler_is_there(tmp_path: Path, ec2: FaultyEc2) -> None:
    with Watch(tmp_path, trainer("late"), env={**on_ec2(ec2), "LATE": "1.5"}) as watch:
        watch.await_said("importing")
        ec2.announcement.announce()
        status = watch.wait()

    assert status == 75
    assert len(watch.said("signal")) == 1
    assert len(watch.said("saved")) == 1


def test_faulthandler_on_usr1_with_a_term_handler_saves_by_term(tmp_path: Path) -> None:
    with FaultyEc2(grace=6.0) as ec2, Watch(tmp_path, trainer("faulthandler"), env=on_ec2(ec2)) as watch:
        watch.await_said("ready")
        ec2.announcement.announce()
        status = watch.wait()

    assert status == 75
    assert [line["name"] for line in watch.said("signal")] == ["SIGTERM"]
    assert [line["how"] for line in watch.lines("told")] == ["USR1"]
    assert [line["step"] for line in watch.lines("escalated")] == ["term"]


def test_a_second_preemption_after_a_revocation_is_told_again(tmp_path: Path, ec2: FaultyEc2) -> None:
    script = "import signal, time\ntold = []\nsignal.signal(10, lambda *_: told.append(print('told', flush=True)))\n"
    script += "while len(told) < 2:\n    time.sleep(0.02)"
    with Watch(tmp_path, ["python3", "-c", script], env=on_ec2(ec2)) as watch:
        watch.await_line("started")
        wait_until(lambda: _catches(watch, signal.SIGUSR1))
        ec2.announcement.announce()
        watch.await_line("told")
        ec2.announcement.revoke()
        watch.await_line("revoked")
        ec2.announcement.announce()
        status = watch.wait()

    assert len(watch.lines("told")) == 2
    assert status == 75
    assert watch.out.count("told") == 2


def _catches(watch: Watch, signum: signal.Signals) -> bool:
    pid = watch.lines("started")[0]["pid"]
    status = Path(f"/proc/{pid}/status").read_text()
    mask = int(status.split("SigCgt:")[1].split()[0], 16)
    return bool(mask >> (signum - 1) & 1)


def test_two_notices_are_one_escalation_and_one_revoked_leaves_the_other(
    tmp_path: Path, ec2: FaultyEc2, gce: FaultyGce
) -> None:
    with Watch(
        tmp_path,
        trainer("USR1", save=3.0),
        "--provider",
        "ec2",
        "--provider",
        "gce",
        env={**on_ec2(ec2), **on_gce(gce)},
    ) as watch:
        watch.await_said("ready")
        ec2.announcement.announce()
        watch.await_line("told")
        gce.announcement.announce()
        watch.await_line("notice", 2)
        ec2.announcement.revoke()
        watch.await_line("revoked")
        status = watch.wait()

    assert status == 75
    assert len(watch.said("signal")) == 1


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP, signal.SIGUSR2])
def test_a_stop_is_not_a_preemption(tmp_path: Path, signum: signal.Signals) -> None:
    with Watch(tmp_path, trainer("none")) as watch:
        watch.await_said("ready")
        watch.signal(signum)
        status = watch.wait()

    assert status == 128 + signum
    assert watch.lines("notice") == watch.lines("told") == []
    assert watch.lines("settled")[0]["preempted"] is False


def test_our_own_sigterm_is_the_notice_with_the_sigterm_provider(tmp_path: Path) -> None:
    with Watch(tmp_path, trainer("both"), "--provider", "sigterm") as watch:
        watch.await_said("ready")
        watch.signal(signal.SIGTERM)
        status = watch.wait()

    assert status == 75
    assert [line["name"] for line in watch.said("signal")] == ["SIGUSR1"]


def test_a_signal_file_is_a_notice(tmp_path: Path) -> None:
    signals = tmp_path / "signals"
    signals.mkdir()
    with Watch(tmp_path, trainer("USR1"), "--job-id", "run42", env={"PREEMPTD_SIGNAL_DIR": str(signals)}) as watch:
        watch.await_said("ready")
        (signals / "run42.preempt").touch()
        status = watch.wait()

    assert status == 75
    assert [line["provider"] for line in watch.lines("notice")] == ["file"]


def test_an_hour_old_deadline_at_first_sight_is_recorded_and_not_acted_on(tmp_path: Path) -> None:
    with FaultyEc2(grace=-3600.0) as ec2:
        ec2.announcement.announce()
        with Watch(tmp_path, trainer("USR1"), env={**on_ec2(ec2), "STEPS": "50"}) as watch:
            status = watch.wait()

    assert status == 0
    assert [line["acted"] for line in watch.lines("notice")] == [False]
    assert watch.said("signal") == []


def test_a_pending_notice_holds_the_command_back_until_it_is_revoked(tmp_path: Path, ec2: FaultyEc2) -> None:
    ec2.announcement.announce()
    with Watch(tmp_path, trainer("USR1"), env={**on_ec2(ec2), "STEPS": "20"}) as watch:
        watch.await_line("warning")
        assert watch.said() == []
        ec2.announcement.revoke()
        status = watch.wait()

    assert status == 0
    assert watch.said("signal") == []
    assert len(watch.said("exit")) == 1


def test_a_pending_notice_ends_watch_or_is_ignored_as_asked(tmp_path: Path, ec2: FaultyEc2) -> None:
    ec2.announcement.announce()
    with Watch(tmp_path, trainer("USR1"), "--when-pending", "exit", env=on_ec2(ec2), name="exit") as watch:
        assert watch.wait() == 75
        assert watch.said() == []
    with Watch(tmp_path, trainer("USR1"), "--when-pending", "start", env=on_ec2(ec2), name="start") as watch:
        assert watch.wait() == 75
        assert len(watch.said("signal")) == 1


def test_a_stop_while_held_back_ends_us_and_starts_nothing(tmp_path: Path, ec2: FaultyEc2) -> None:
    ec2.announcement.announce()
    with Watch(tmp_path, trainer("USR1"), env=on_ec2(ec2)) as watch:
        watch.await_line("warning")
        watch.signal(signal.SIGTERM)
        status = watch.wait()

    assert status == 128 + signal.SIGTERM
    assert watch.said() == []


def test_a_child_that_ends_at_the_instant_of_the_notice_keeps_its_own_status(tmp_path: Path, ec2: FaultyEc2) -> None:
    os.mkfifo(tmp_path / "fifo")
    with Watch(tmp_path, ["sh", "-c", "read x < fifo; exit 3"], env=on_ec2(ec2)) as watch:
        watch.await_line("started")
        subprocess.run(["sh", "-c", "echo > fifo"], cwd=tmp_path, check=True, timeout=20)
        ec2.announcement.announce()
        status = watch.wait()

    assert status == 3
    assert watch.lines("told") == []


@pytest.mark.parametrize(
    ("options", "code", "status"),
    [
        (["--preempted-exit-code", "143"], 0, 143),
        (["--exit-zero", "done"], 0, 0),
        (["--exit-zero", "done"], 3, 75),
        (["--preempted-exit-code", "0"], 9, 0),
    ],
)
def test_the_status_after_a_preemption_is_the_users_choice(
    tmp_path: Path, ec2: FaultyEc2, options: list[str], code: int, status: int
) -> None:
    with Watch(tmp_path, trainer("USR1", code=code), *options, env=on_ec2(ec2)) as watch:
        watch.await_said("ready")
        ec2.announcement.announce()

        assert watch.wait() == status


def test_dry_run_says_who_would_be_told_and_touches_nobody(tmp_path: Path, ec2: FaultyEc2) -> None:
    with Watch(tmp_path, trainer("USR1"), "--dry-run", env={**on_ec2(ec2), "STEPS": "150"}) as watch:
        watch.await_said("ready")
        ec2.announcement.announce()
        watch.await_line("told")
        status = watch.wait()

    assert status == 0
    assert watch.said("signal") == []
    assert len(watch.lines("told")) == 1


def test_kill_ends_what_is_left_at_the_reserve(tmp_path: Path) -> None:
    with FaultyEc2(grace=3.0) as ec2, Watch(tmp_path, trainer("USR1", save=30.0), "--kill", env=on_ec2(ec2)) as watch:
        watch.await_said("ready")
        ec2.announcement.announce()
        status = watch.wait()

    assert status == 75
    assert watch.lines("exited")[0]["status"] == 137
    assert float(str(watch.lines("exited")[0]["spare"])) > 0
