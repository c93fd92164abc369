"""The `exec` provider: a command of the user's says by its exit status whether the end is near."""

import os
from pathlib import Path

import pytest
from pydantic import ValidationError

from preemptd import procfs
from preemptd.notices import Kind, Level
from preemptd.provider import State, Surroundings, Watch
from preemptd.targets.reaping import Helpers
from preemptd.targets.scripts import Scripts, of_the_user
from preemptd_providers.exec import Exec, ExecOptions
from tests.waiting import wait_until
from tests.watching import Watch as Watching


def watch_of(command: str, warnings: list[str] | None = None, slurm: bool = False, **options: object) -> Watch:
    popen = of_the_user(Helpers(), {"SLURM_JOB_ID": "7"} if slurm else {})
    said: list[str] = [] if warnings is None else warnings
    surroundings = Surroundings({}, scripts=Scripts(popen, os.environ), lead=100.0, warn=said.append)
    (watch,) = Exec(ExecOptions.model_validate({"command": command, "within": 30, **options}), surroundings).watches()
    return watch


@pytest.mark.parametrize(
    ("command", "expected"),
    [
        ("exit 0", State.CLEAR),
        ("exit 75", State.NOTICE),
        ("exit 1", State.UNKNOWN),
        ("kill -9 $$", State.UNKNOWN),
        ("no-such-command-here", State.UNKNOWN),
        ("exec 1>&-; exit 75", State.NOTICE),
    ],
)
def test_its_status_says_what_it_knows(command: str, expected: State) -> None:
    assert watch_of(command).observe().state is expected


def test_the_statuses_may_be_others() -> None:
    assert watch_of("exit 3", notice_status=3).observe().state is State.NOTICE
    assert watch_of("exit 4", clear_status=4).observe().state is State.CLEAR


@pytest.mark.parametrize(
    ("said", "left"),
    [
        ("echo 90; echo more", 90.0),
        ("true", None),
        ("echo soon", None),
        ("yes | head -c 100000", None),
        ("echo 90; yes | head -c 3000000", 90.0),
    ],
)
def test_its_first_line_may_say_how_much_time_is_left(said: str, left: float | None) -> None:
    notice = watch_of(f"{said}; exit 75").observe().notice

    assert notice is not None
    assert (notice.kind, notice.level, notice.remaining) == (Kind.PREEMPT, Level.ACT, left)
    assert len(notice.detail) <= 4096


def test_where_no_commands_are_run_nothing_is_known() -> None:
    (watch,) = Exec(ExecOptions(command="exit 75"), Surroundings({})).watches()

    assert watch.observe().state is State.UNKNOWN


def test_advice_with_a_time_becomes_a_notice_at_the_lead() -> None:
    notice = watch_of("echo 3000; exit 75", level="advise").observe().notice

    assert notice is not None
    assert (notice.level, notice.remaining, notice.act_within) == (Level.ADVISE, 3000.0, 100.0)


@pytest.mark.parametrize("kind", ["maintenance", "rebalance", "migrate", "freeze"])
def test_advice_may_be_of_every_kind_that_can_be_acted_on(kind: str) -> None:
    notice = watch_of("exit 75", kind=kind, level="advise").observe().notice

    assert notice is not None
    assert (notice.event_id, notice.kind, notice.remaining) == (f"exec:{kind}", Kind(kind), None)


@pytest.mark.parametrize(
    ("first", "level", "said"),
    [
        ("Sat Nov 21 00:00:00 UTC 2026", "act", "neither a time nor a number of seconds: --grace counts"),
        ("30s", "act", "'30s' is neither"),
        ("1793120100123", "act", "'1793120100123' is neither"),
        ("-5", "act", "'-5' is neither"),
        ("2099-01-01T00:00:00Z", "act", "more than 30 days away: --grace counts"),
        ("soon", "advise", "the advice has no date"),
        ("API_KEY=hush", "act", "'API_KEY=***' is neither"),
    ],
)
def test_a_time_that_cannot_be_read_is_said_once(first: str, level: str, said: str) -> None:
    warnings: list[str] = []
    watch = watch_of(f"echo '{first}'; exit 75", warnings, level=level)
    notices = [watch.observe().notice for _ in range(2)]

    assert [notice.remaining for notice in notices if notice] == [None, None]
    assert len(warnings) == 1
    assert warnings[0].startswith("provider exec: '")
    assert said in warnings[0]


@pytest.mark.parametrize(
    ("command", "why"),
    [
        ("/no/such", "the command ended with status 127, not found: "),
        ("exec 2>&-; /no/such", "the command ended with status 127, not found"),
        ("/etc", "the command ended with status 126, cannot be executed: "),
        ("echo first >&2; echo last >&2; exit 1", "the command ended with status 1: last"),
        ("head -c 1000000 /dev/zero >&2; echo >&2; echo last >&2; exit 1", "the command ended with status 1: last"),
        ("printf 'a\\tb\\033[1m\\n\\n' >&2; exit 1", "the command ended with status 1: a b [1m"),
        ("echo --token hush >&2; exit 1", "the command ended with status 1: --token ***"),
    ],
)
def test_why_nothing_is_known_is_the_last_line_that_it_complains_of(
    command: str, why: str, capfd: pytest.CaptureFixture[str]
) -> None:
    assert str(watch_of(command).observe().error).startswith(why)
    assert capfd.readouterr().err == ""


def test_a_complaint_is_cut() -> None:
    error = str(watch_of("head -c 100000 /dev/zero | tr '\\0' x >&2; exit 1").observe().error)

    assert error.endswith("x" * 200)
    assert len(error) < 300


@pytest.mark.parametrize(
    "script",
    ["setsid sleep 600 & echo $! >pid; exit 0", "setsid sleep 600 & echo $! >pid; wait"],
    ids=["it ends", "it hangs"],
)
def test_what_it_left_in_a_session_of_its_own_does_not_stay(
    script: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    watch_of(script, within=0.5).observe()
    pid = int((tmp_path / "pid").read_text())

    wait_until(lambda: procfs.process_id(pid) is None)


def test_another_commands_processes_are_left_alone() -> None:
    helpers = Helpers()
    other = Scripts(helpers, os.environ).popen(("sleep", "600"))
    watch_of("setsid sleep 600 & exit 0").observe()
    alive = other.poll() is None
    other.kill()
    other.wait()
    helpers.release(other)

    assert alive


@pytest.mark.parametrize(("slurm", "expected"), [(True, State.CLEAR), (False, State.UNKNOWN)])
def test_signals_are_ignored_under_slurm_alone(slurm: bool, expected: State) -> None:
    watch = watch_of("kill -TERM $$; kill -USR1 $$; kill -USR2 $$; exit 0", slurm=slurm)

    assert watch.observe().state is expected


def test_it_gets_the_users_environment_without_what_is_meant_for_preemptd(tmp_path: Path) -> None:
    (tmp_path / "config").write_text(
        "[providers.exec]\ncommand = 'readlink /proc/self/fd/0 > in; env > part; mv part env'\n"
    )
    ours = {
        "PREEMPTD_GRACE": "44",
        "PREEMPTD_PROVIDER": "exec",
        "NOTIFY_SOCKET": "/nowhere",
        "WATCHDOG_USEC": "9000000",
    }
    theirs = {"OF_THE_USER": "1", "PREEMPTD_SIGNAL_DIR": str(tmp_path)}
    with Watching(tmp_path, ["sleep", "600"], "--config", "config", env={**ours, **theirs}) as watch:
        wait_until((tmp_path / "env").exists)
        watch.process.terminate()
        watch.wait()

    found = dict(line.partition("=")[::2] for line in (tmp_path / "env").read_text().splitlines())
    assert theirs.items() <= found.items()
    assert not ours.keys() & found.keys()
    assert (tmp_path / "in").read_text() == "/dev/null\n"


@pytest.mark.parametrize(
    ("command", "said"),
    [
        ("", "blank"),
        (" \n", "blank"),
        ("a\0b", "null byte"),
        ("x" * (64 * 1024 + 1), "longer than 64 KiB"),
    ],
    ids=["empty", "blank", "null byte", "too long"],
)
def test_what_can_never_be_run_is_refused(command: str, said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        ExecOptions(command=command)


def test_the_longest_command_is_run() -> None:
    assert watch_of("exit 0 #".ljust(64 * 1024, "x"), slurm=True).observe().state is State.CLEAR
