"""`preemptd status`: what is watched, what is announced, and what became of what was."""

import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from preemptd.cli.status import words
from tests.conftest import ROOT
from tests.linking import short_directory
from tests.metadata_server import FaultyEc2
from tests.test_cli import ask
from tests.test_metrics import on_ec2
from tests.waiting import wait_until
from tests.watching import Watch, trainer

ANSWER: dict[str, object] = {
    "pid": 7,
    "held": False,
    "link": "a.sock",
    "providers": [],
    "watches": [],
    "would_tell": [],
    "runs": [],
    "notices": [],
    "told": 0,
    "saved": 0,
}


def documented() -> set[str]:
    """List the fields that docs/link.md names."""
    table = (ROOT / "docs" / "link.md").read_text().split("## The answer to status")[1].split("\n## ")[0]
    cells = re.findall(r"^\| (`.*?`) \|", table, re.MULTILINE)
    return {name for cell in cells for name in re.findall(r"`(\w+)`", cell)}


@pytest.fixture
def short() -> Iterator[Path]:
    with short_directory() as directory:
        yield directory


@pytest.mark.parametrize("state", ["default", "absolute", "relative"])
def test_a_notice_that_is_over_is_shown_by_the_preemptd_that_heard_it(short: Path, state: str) -> None:
    options = {"default": (), "absolute": ("--state-dir", str(short / "kept")), "relative": ("--state-dir", "kept")}
    link = str(short / "link")
    with (
        FaultyEc2(grace=60.0) as ec2,
        Watch(short, trainer("USR1", save=20), "--link", link, *options[state], env=on_ec2(ec2)) as watch,
    ):
        watch.await_said("ready")
        ec2.announcement.announce()
        watch.await_line("told")
        during = ask("status", "--link", link).stdout
        ec2.announcement.revoke()
        watch.await_line("revoked")
        wait_until(lambda: "past notice" in ask("status", "--link", link).stdout)
        after = ask("status", "--link", link).stdout
        answer = json.loads(ask("status", "--link", link, "--json").stdout)
        (past,) = answer["past"]

        assert "1 told, 0 saved" in during
        assert "past notice" not in during
        assert "NOTICE" not in after
        assert after.rstrip().endswith("ec2 terminate; 0 marked, 1 told, 0 saved; taken back")
        assert (past["end"], past["told"]) == ("revoked", 1)
        assert answer.keys() - {"v", "type", "link", "preemptd", "past"} == documented()


def test_targets_are_shown_with_their_state_and_pids() -> None:
    targets = [
        {"name": "train.service", "state": "found", "pids": [12, 13]},
        {"name": "x\n", "state": "gone", "pids": []},
    ]
    said = words({**ANSWER, "targets": targets}).splitlines()

    assert "  target train.service: found (pid 12, 13)" in said
    assert "  target x\\n: gone" in said


def test_a_provider_without_a_watch_hears_by_signal_and_none_at_all_is_said() -> None:
    assert "  provider sigterm: hears of it by signal" in words({**ANSWER, "providers": ["sigterm"]}).splitlines()
    assert "  no provider: nothing announces preemptions here (preemptd providers)" in words(ANSWER).splitlines()
