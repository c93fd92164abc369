"""What becomes of a signal to `preemptd watch`: docs/signals.md has the table, `python -m tests.test_signals` makes it.

Each cell is one run of the real program.
"""

import json
import os
import re
import signal
import socket
import sys
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import pytest

from tests.conftest import ROOT, pytest_configure
from tests.linking import short_directory
from tests.metadata_server import FaultyEc2
from tests.test_watch import on_ec2
from tests.waiting import wait_until
from tests.watching import Watch, trainer

PAGE = ROOT / "docs" / "signals.md"
TABLE = re.compile(r"(?<=<!-- signals -->\n).*?(?=<!-- /signals -->)", re.DOTALL)
SITUATIONS = {
    "plain": "no notice",
    "told": "notice open, command told (USR1)",
    "sigterm": "`--provider sigterm`",
    "held": "held back by a pending notice",
}
ENDING = ("TERM", "INT", "HUP", "QUIT", "USR1", "USR2")
SIGNALS = (*ENDING, "WINCH", "CONT", "TSTP")


def measure(situation: str, name: str) -> str:
    """Send signal *name* to a `preemptd watch` in *situation*; return the cell of the table."""
    with ExitStack() as stack:
        directory = stack.enter_context(short_directory())
        env = {"CORE": str(directory / "core"), "PYTHONPATH": str(ROOT)}
        options = ["--link", str(directory / "link"), "--die-with-parent"]
        options += ["--provider", "sigterm"] if situation == "sigterm" else []
        ec2 = stack.enter_context(FaultyEc2(grace=60.0))
        if situation in {"told", "held"}:
            env |= on_ec2(ec2)
        if situation == "held":
            ec2.announcement.announce()
        command = [sys.executable, "-m", "tests.standins.signalled", "1" if situation == "told" else "0"]
        watch = stack.enter_context(Watch(directory, command, *options, env=env))
        if situation == "held":
            watch.await_line("warning")
            if watch.lines("started"):  # this machine was so busy that the notice was not heard within 100 ms
                return measure(situation, name)
            return _held(watch, directory / "link", signal.Signals[f"SIG{name}"])
        watch.await_said("ready")
        if situation == "told":
            ec2.announcement.announce()
            watch.await_said("signal")
            assert _came(watch) == ["USR1"]
        return _sent(watch, signal.Signals[f"SIG{name}"])


def _sent(watch: Watch, signum: signal.Signals) -> str:
    before = len(_came(watch))
    watch.signal(signum)
    wait_until(lambda: len(_came(watch)) > before, what=f"anything after {signum.name}")
    status = watch.wait() if _name(signum) in ENDING else watch.process.poll()
    # SIGCONT goes along with what ends a command, for one that is stopped; nobody handles it.
    came = [name for name in _came(watch)[before:] if name != "CONT" or signum is signal.SIGCONT]
    marked = "marked" if any(line["ok"] for line in watch.lines("marked")) else "not marked"
    return f"{', '.join(came)}; {marked}; {'runs on' if status is None else status}"


def _held(watch: Watch, link: Path, signum: signal.Signals) -> str:
    watch.signal(signum)
    ends = _name(signum) in {"TERM", "INT", "HUP", "QUIT"}
    if not ends:
        assert _is_held(link)
    status = watch.wait() if ends else watch.process.poll()
    assert watch.said() == watch.lines("marked") == []
    return "stays held back" if status is None else f"never started; {status}"


def _is_held(link: Path) -> bool:
    """Ask the loop, which has dealt with the signal when it answers."""
    with socket.socket(socket.AF_UNIX) as asking:
        asking.settimeout(20)
        asking.connect(str(link))
        asking.sendall(b'{"v": 1, "verb": "status"}\n')
        with asking.makefile("rb") as lines:
            return bool(json.loads(lines.readline())["held"])


def _came(watch: Watch) -> list[str]:
    return [str(line["name"]).removeprefix("SIG") for line in watch.said("signal")]


def _name(signum: signal.Signals) -> str:
    return signum.name.removeprefix("SIG")


def documented() -> dict[tuple[str, str], str]:
    """Read the table: (situation, signal) to cell."""
    table = TABLE.search(PAGE.read_text())
    assert table is not None
    cells: dict[tuple[str, str], str] = {}
    for line in table[0].splitlines()[2:]:
        name, *row = (cell.strip().strip("`") for cell in line.strip("|").split("|"))
        cells |= {(situation, name): cell for situation, cell in zip(SITUATIONS, row, strict=True)}
    return cells


@pytest.mark.slow
@pytest.mark.parametrize("name", SIGNALS)
@pytest.mark.parametrize("situation", SITUATIONS)
def test_each_signal_does_what_the_table_says(situation: str, name: str) -> None:
    assert measure(situation, name) == documented()[situation, name], "python -m tests.test_signals writes it anew"


def test_who_was_told_by_sigterm_gets_none_from_the_shutdown_and_the_next_one_is_passed_on() -> None:
    with ExitStack() as stack:
        directory, ec2 = stack.enter_context(short_directory()), stack.enter_context(FaultyEc2(grace=60.0))
        options = ["--link", str(directory / "link")]
        watch = stack.enter_context(Watch(directory, trainer("TERM", save=60), *options, env=on_ec2(ec2)))
        watch.await_said("ready")
        ec2.announcement.announce()
        watch.await_said("signal")
        watch.signal(signal.SIGTERM)
        assert not _is_held(directory / "link")
        first = len(watch.said("signal"))
        watch.signal(signal.SIGTERM)
        second = len(watch.await_said("signal", 2))

    assert (first, second) == (1, 2)


def test_a_second_sigint_becomes_sigterm(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tests.standins.signalled", "1"]
    with Watch(tmp_path, command, "--die-with-parent", env={"PYTHONPATH": str(ROOT)}) as watch:
        watch.await_said("ready")
        for count in (1, 2):
            watch.signal(signal.SIGINT)
            watch.await_said("signal", count)
        status = watch.wait()

    assert [name for name in _came(watch) if name != "CONT"] == ["INT", "TERM"]
    assert status == 128 + signal.SIGTERM


def test_a_command_that_is_stopped_still_ends_by_sigterm(tmp_path: Path) -> None:
    with Watch(tmp_path, trainer("none")) as watch:
        pid = int(str(watch.await_said("ready")[0]["pid"]))
        os.kill(pid, signal.SIGSTOP)
        watch.signal(signal.SIGTERM)
        status = watch.wait()

    assert status == 128 + signal.SIGTERM


def main() -> None:
    pytest_configure()
    head = ["| signal to `preemptd watch` | " + " | ".join(SITUATIONS.values()) + " |", "|---" * 5 + "|"]
    rows = [f"| {name} | " + " | ".join(map(partial(_measured, name), SITUATIONS)) + " |" for name in SIGNALS]
    PAGE.write_text(TABLE.sub("\n".join([*head, *rows, ""]), PAGE.read_text()))


def _measured(name: str, situation: str) -> str:
    return measure(situation, name)


if __name__ == "__main__":
    main()
