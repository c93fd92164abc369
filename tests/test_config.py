import subprocess
import sys
from pathlib import Path

import pytest

from preemptd.config import PREFIX, DaemonSettings, Settings, daemon_settings, from_environment, settings, variables
from preemptd.errors import ConfigError
from tests import option_tables
from tests.watching import PREEMPTD, environment

# A value that is not the default, as the command line and the environment have it, and as the file has it.
VALUES: dict[str, tuple[str, object]] = {
    "provider": ("file,sigterm", ["file", "sigterm"]),
    "signal": ("USR2", "USR2"),
    "signal_target": ("main", "main"),
    "grace": ("7.5", 7.5),
    "lead": ("60", 60),
    "act_on": ("rebalance,freeze", ["rebalance", "freeze"]),
    "azure_approve": ("1", True),
    "reserve": ("2", 2.0),
    "kill": ("1", True),
    "when_pending": ("exit", "exit"),
    "preempted_exit_code": ("143", 143),
    "exit_zero": ("done", "done"),
    "job_id": ("run42", "run42"),
    "checkpoint_dir": ("ckpt", "ckpt"),
    "on_advice": ("echo advice", "echo advice"),
    "on_notice": ("echo notice", "echo notice"),
    "on_saved": ("echo saved", "echo saved"),
    "on_exit": ("echo exit", "echo exit"),
    "webhook": ("http://127.0.0.1:1/hook", "http://127.0.0.1:1/hook"),
    "webhook_file": ("url", "url"),
    "webhook_format": ("slack", "slack"),
    "listen": ("127.0.0.1:0", "127.0.0.1:0"),
    "journal": ("journal", "journal"),
    "link": ("link", "link"),
    "state_dir": ("state", "state"),
    "no_wandb": ("true", True),
    "log_format": ("json", "json"),
    "dry_run": ("yes", True),
    "die_with_parent": ("on", True),
    "sweep": ("1", True),
    "sync": ("ckpt=s3://bucket/run", ["ckpt=s3://bucket/run"]),
    "loop": ("1", True),
    "restart": ("2", 2),
    "requeue_on": ("preempt,request", ["preempt", "request"]),
    "max_requeues": ("3", 3),
    "requeue_delay": ("12.5", 12.5),
    "shield_term": ("1", True),
}
FLAGS = sorted(Settings.model_fields.keys() - {"providers"})
SHOW = "import os; print(*sorted(n for n in os.environ if n.startswith('PREEMPTD_')))"


def toml(name: str, value: object) -> str:
    text = str(value).lower() if isinstance(value, bool) else repr(value)
    return f"{name} = {text}\n"


def test_every_setting_is_tested_here() -> None:
    assert sorted(VALUES) == FLAGS


def test_every_setting_is_an_option_of_watch_and_every_option_is_a_setting() -> None:
    options = {name.split()[0].removeprefix("--") for name, _ in option_tables.options(option_tables.help_of("watch"))}

    assert options == {name.replace("_", "-") for name in FLAGS} | {"config"}


@pytest.mark.parametrize("name", FLAGS)
def test_a_setting_is_the_same_from_variable_file_and_command_line(name: str, tmp_path: Path) -> None:
    text, value = VALUES[name]
    file = tmp_path / "preemptd.toml"
    file.write_text(toml(name, value))

    by_variable = settings({}, {PREFIX + name.upper(): text}, None)
    by_file = settings({}, {}, str(file))
    by_flag = settings({name: value}, {}, None)

    assert by_variable == by_file == by_flag != Settings()


def test_the_command_line_counts_more_than_a_variable_and_that_more_than_the_file(tmp_path: Path) -> None:
    file = tmp_path / "preemptd.toml"
    file.write_text("grace = 1\nlead = 1\nreserve = 1\n")
    found = settings({"grace": 3.0}, {"PREEMPTD_GRACE": "2", "PREEMPTD_LEAD": "2"}, str(file))

    assert (found.grace, found.lead, found.reserve) == (3, 2, 1)


def test_an_empty_variable_is_none() -> None:
    assert settings({}, {f"{PREFIX}{name.upper()}": "" for name in FLAGS}, None) == Settings()


def test_the_file_may_be_named_by_a_variable(tmp_path: Path) -> None:
    (tmp_path / "preemptd.toml").write_text("grace = 9\n")

    assert settings({}, {"PREEMPTD_CONFIG": str(tmp_path / "preemptd.toml")}, None).grace == 9


def test_variables_that_are_no_settings_are_left_alone() -> None:
    assert from_environment({"PREEMPTD_ATTEMPT": "3", "PREEMPTD_SIGNAL_DIR": "x", "GRACE": "1"}) == {}


@pytest.mark.parametrize(
    ("source", "text"),
    [
        ({"flags": {"grace": "soon"}}, "command line: grace = 'soon': "),
        ({"environ": {"PREEMPTD_SIGNAL_TARGET": "all"}}, "environment: signal-target = 'all': "),
        ({"environ": {"PREEMPTD_NO_WANDB": "perhaps"}}, "environment: no-wandb = 'perhaps': "),
        ({"flags": {"journal": "a\0b"}}, "command line: journal = 'a\\x00b': no file can have this name"),
        ({"flags": {"link": ""}}, "command line: link = '': no file can have this name"),
        ({"flags": {"job_id": "x" * 10_000}}, "command line: job-id = 'xxxxxxxx"),
        ({"environ": {"PREEMPTD_LISTEN": "9400"}}, "environment: listen = '9400': "),
        (
            {"flags": {"requeue_on": ""}},
            "command line: requeue-on = '': must be of preempt, timelimit, request; or none",
        ),
        ({"flags": {"requeue_delay": "1e9"}}, "command line: requeue-delay = '1e9': "),
        ({"flags": {"webhook_format": "xml"}}, "command line: webhook-format = 'xml': "),
    ],
)
def test_a_bad_value_is_named_with_its_source(source: dict[str, dict[str, str]], text: str) -> None:
    with pytest.raises(ConfigError) as caught:
        settings(source.get("flags", {}), source.get("environ", {}), None)

    assert str(caught.value).startswith(text)
    assert len(str(caught.value)) < 300


def test_a_bad_webhook_is_named_and_not_shown() -> None:
    with pytest.raises(ConfigError) as caught:
        settings({}, {"PREEMPTD_WEBHOOK": "s3cr3t"}, None)

    assert str(caught.value).startswith("environment: webhook: ")
    assert "s3cr3t" not in str(caught.value)


def daemon_file(directory: Path, text: str) -> str:
    (directory / "preemptd.toml").write_text(text)
    return str(directory / "preemptd.toml")


def test_the_targets_of_the_daemon_are_read_from_the_file(tmp_path: Path) -> None:
    file = daemon_file(
        tmp_path,
        r"""
        grace = 60
        [[target]]
        name = "nightly"
        pid = 12
        [[target]]
        pidfile = "/run/train.pid"
        [[target]]
        unit = "training.slice"
        [[target]]
        match = 'python .*train\.py'
        [[target]]
        runs = true
        """,
    )
    found = daemon_settings({}, {"PREEMPTD_GRACE": "30"}, file)

    assert found.grace == 30
    assert [target.model_dump(exclude_defaults=True) for target in found.target] == [
        {"name": "nightly", "pid": 12},
        {"pidfile": "/run/train.pid"},
        {"unit": "training.slice"},
        {"match": r"python .*train\.py"},
        {"runs": True},
    ]


@pytest.mark.parametrize(
    ("target", "says"),
    [
        ("", "it says who is meant by exactly one of pid, pidfile, unit, match, runs = true"),
        ("pid = 12\nruns = true", "it says who is meant by exactly one of pid, pidfile, unit, match, runs = true"),
        ("runs = false", "runs = False: "),
        ("pid = 1", "pid = 1: "),
        ("pid = 'train'", "pid = 'train': "),
        ("unit = 'training'", "unit = 'training': "),
        ("unit = 'a/b.service'", "unit = 'a/b.service': "),
        ("match = ''", "match = '': "),
        ("match = 'train('", "match = 'train(' is no regular expression: "),
        ("pidfile = ''", "pidfile = '': no file can have this name"),
        ("pid = 12\ngroup = 4", "group = 4: "),
    ],
)
def test_a_target_that_says_not_who_is_meant_is_refused(tmp_path: Path, target: str, says: str) -> None:
    file = daemon_file(tmp_path, f"[[target]]\n{target}\n")
    with pytest.raises(ConfigError) as caught:
        daemon_settings({}, {}, file)

    assert str(caught.value).startswith(f"configuration file {file}: target 1: ")
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("[[target]]\npid = 12\n[[target]]\nname = 'nightly'\npid = 1\n", "target 2 (nightly): pid = 1: "),
        ('[[target]]\nname = "a\\nb"\n', "target 1: it says who"),
        ("[[target]]\nname = 3\npid = 12\n", "target 1: name = 3: "),
        ("target = ['train']\n", "target 1: "),
        ("[target]\npid = 12\n", "each target is a table of its own: write [[target]], with two brackets"),
        ("target = 3\n", "each target is a table of its own: write [[target]], with two brackets"),
    ],
)
def test_the_target_that_is_wrong_is_named_as_people_count_them(tmp_path: Path, text: str, says: str) -> None:
    file = daemon_file(tmp_path, text)
    with pytest.raises(ConfigError) as caught:
        daemon_settings({}, {}, file)

    assert str(caught.value).startswith(f"configuration file {file}: {says}")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("key", sorted({*DaemonSettings.foreign, "targets"}))
def test_a_key_that_means_nothing_to_the_daemon_is_refused(tmp_path: Path, key: str) -> None:
    file = daemon_file(tmp_path, f"{key} = 1\n")
    with pytest.raises(ConfigError) as caught:
        daemon_settings({}, {}, file)

    assert str(caught.value).startswith(f"configuration file {file}: unknown key {key!r}; known keys are ")
    assert "target" in str(caught.value)


def test_a_variable_for_watch_is_none_of_the_daemons() -> None:
    ours = {PREFIX + name.upper(): VALUES[name][0] for name in DaemonSettings.foreign}

    assert daemon_settings({}, ours, None) == DaemonSettings()


def test_watch_has_no_targets(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="unknown key 'target'"):
        settings({}, {}, daemon_file(tmp_path, "[[target]]\npid = 12\n"))


def test_every_setting_of_the_daemon_is_an_option_of_it_and_every_option_is_a_setting() -> None:
    options = {name.split()[0].removeprefix("--") for name, _ in option_tables.options(option_tables.help_of("daemon"))}
    known = DaemonSettings.model_fields.keys() - DaemonSettings.foreign - {"providers", "target"}

    assert options == {name.replace("_", "-") for name in known} | {"config"}


def test_no_setting_of_ours_is_passed_on_to_the_command(tmp_path: Path) -> None:
    ours = {PREFIX + name.upper(): VALUES[name][0] for name in FLAGS if name != "link"}
    (tmp_path / "preemptd.toml").write_text("")
    env = environment({**ours, "PREEMPTD_CONFIG": str(tmp_path / "preemptd.toml"), "PREEMPTD_SIGNAL_DIR": "mine"})
    command = [*PREEMPTD, "watch", "--", sys.executable, "-c", SHOW]
    run = subprocess.run(command, env=env, cwd=tmp_path, capture_output=True, text=True, check=True, timeout=60)

    assert run.stdout.split() == ["PREEMPTD_ATTEMPT", "PREEMPTD_LINK", "PREEMPTD_SIGNAL_DIR"]
    assert variables() >= ours.keys() | {"PREEMPTD_CONFIG", "PREEMPTD_LINK"}


def test_the_wandb_core_of_a_program_above_us_is_none_of_the_commands() -> None:
    env = environment({"WANDB_SERVICE": "3-1-unix-/nowhere"})
    command = [*PREEMPTD, "watch", "--", sys.executable, "-c", "import os; print(os.environ.get('WANDB_SERVICE'))"]
    run = subprocess.run(command, env=env, capture_output=True, text=True, check=True, timeout=60)

    assert run.stdout == "None\n"


def test_the_command_line_takes_every_setting_at_once(tmp_path: Path) -> None:
    too_long = "l" * 200
    options = ["--link", too_long]
    for name in set(FLAGS) - {"link"}:
        text, value = VALUES[name]
        words = value if name == "provider" and isinstance(value, list) else [text]
        for word in words:
            options += [f"--{name.replace('_', '-')}"] + ([] if value is True else [word])
    command = [*PREEMPTD, "watch", *options, "--", "true"]
    run = subprocess.run(command, env=environment(), cwd=tmp_path, capture_output=True, text=True, check=False)

    # The link is made last: all the others are right.
    assert run.returncode == 2
    assert run.stderr.startswith("preemptd: link path is longer than 107 bytes")
    assert not (tmp_path / too_long).exists()
