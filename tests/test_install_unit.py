"""`preemptd install-unit`; that the units work is shown in tests/lab/systemd."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from preemptd.config import daemon_settings
from preemptd.registry import installed, load
from tests.conftest import ROOT

UNITS = {"preemptd.service", "preemptd@.service", "preemptd-watch@.service"}


def install(*words: str) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "preemptd", "install-unit", *words]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_it_writes_all_units_to_be_run_by_this_very_interpreter(tmp_path: Path) -> None:
    done = install("--directory", str(tmp_path))
    starts = [
        re.findall(r"^ExecStart=(\S+) .*-m preemptd (\S+)", p.read_text(), re.MULTILINE) for p in tmp_path.iterdir()
    ]

    assert done.returncode == 0, done.stderr
    assert {path.name for path in tmp_path.iterdir()} == UNITS
    assert sorted(starts) == [[(sys.executable, "daemon")], [(sys.executable, "daemon")], [(sys.executable, "watch")]]
    assert {path.stat().st_mode & 0o777 for path in tmp_path.iterdir()} == {0o644}


@pytest.mark.parametrize("name", ["preemptd@", "preemptd@.service"])
def test_one_unit_may_be_asked_for(tmp_path: Path, name: str) -> None:
    assert install(name, "--directory", str(tmp_path)).returncode == 0
    assert [path.name for path in tmp_path.iterdir()] == ["preemptd@.service"]


def test_its_own_units_are_replaced_and_those_of_others_left_alone(tmp_path: Path) -> None:
    install("--directory", str(tmp_path))
    (tmp_path / "preemptd.service").write_text("[Service]\nExecStart=/usr/bin/something\n")
    (tmp_path / "preemptd@.service").write_text("# Written by `preemptd install-unit`, long ago\n")
    done = install("--directory", str(tmp_path))
    again = install("preemptd@", "--directory", str(tmp_path))

    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.count("\n") == 1
    assert "preemptd.service is there, and was not written by us" in done.stderr
    assert again.returncode == 0
    assert "ExecStart=" in (tmp_path / "preemptd@.service").read_text()


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (("nonsense",), "there is no unit 'nonsense'"),
        (("preemptd.toml.example",), "there is no unit"),
        (("--directory", "/nowhere/at/all"), "is no directory"),
        (("--directory", "/dev/null"), "is no directory"),
        (("--directory", "/proc"), "/proc"),
    ],
)
def test_what_cannot_be_done_is_said_on_one_line_with_status_2(words: tuple[str, ...], complaint: str) -> None:
    done = install(*words)

    assert (done.returncode, done.stderr.count("\n")) == (2, 1), done.stderr
    assert complaint in done.stderr


def test_print_writes_nothing_and_knows_the_example_of_a_configuration() -> None:
    unit, example = install("--print", "preemptd-watch@"), install("--print", "preemptd.toml.example")

    assert unit.stdout.count("ExecStart=") == 1
    assert example.stdout == (ROOT / "systemd" / "preemptd.toml.example").read_text()


def test_an_interpreter_with_a_strange_path_is_quoted_as_systemd_wants_it(tmp_path: Path) -> None:
    strange = tmp_path / 'a b%c$d"e'
    strange.mkdir()
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", "--symlinks", str(strange / "v")], check=True)
    python = strange / "v" / "bin" / "python"
    (tmp_path / "preemptd").write_text("from preemptd.cli import main\nmain()\n")
    path = {"PYTHONPATH": ":".join(sys.path)}
    command = [str(python), str(tmp_path / "preemptd"), "install-unit", "--print", "preemptd@"]
    text = subprocess.run(command, capture_output=True, text=True, check=True, env=path).stdout

    assert f'ExecStart="{tmp_path}/a b%%c$$d\\"e/v/bin/python" {tmp_path}/preemptd daemon ' in text


def test_each_unit_says_where_it_comes_from_and_has_a_reason_beside_each_line() -> None:
    for name in UNITS:
        text = (ROOT / "systemd" / name).read_text()
        blocks = [block for block in text.split("\n\n") if not re.fullmatch(r"\[Install\]\nWantedBy=\S+\n?", block)]

        assert "Written by `preemptd install-unit`" in text
        assert all("#" in block for block in blocks), name


def test_the_example_of_a_configuration_is_a_good_one(tmp_path: Path) -> None:
    text = (ROOT / "systemd" / "preemptd.toml.example").read_text()
    everything = tmp_path / "all.toml"
    everything.write_text(re.sub(r"^# (?=\w+ = |\[)", "", text, flags=re.MULTILINE))
    settings = daemon_settings({}, {}, str(ROOT / "systemd" / "preemptd.toml.example"))
    more = daemon_settings({}, {}, str(everything))

    assert [target.unit for target in settings.target] == ["training.service"]
    assert [target.unit for target in more.target] == ["training.service", None, None]
    assert more.provider == ("ec2",)
    assert load(installed()).providers["file"].options_type(**more.providers["file"]).model_dump()["path"]
