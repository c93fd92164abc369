"""docs/doctor.md is true: its sample has the shape of what is printed, and its tables are complete."""

import ast
import re
from pathlib import Path

from tests.conftest import ROOT
from tests.doctors import doctor, run_doctor, running
from tests.metadata_server import FaultyEc2
from tests.standins.wandb_core_process import core_stand_ins
from tests.test_watch import on_ec2
from tests.watching import trainer

PAGE = (ROOT / "docs" / "doctor.md").read_text()
SOURCES = sorted((ROOT / "preemptd" / "diagnosis").glob("*.py"))


def labels(text: str) -> list[str]:
    return [match for match in re.findall(r"^([a-zA-Z&]+) {2,}\S", text, re.MULTILINE) if match != "PID"]


def test_the_sample_has_the_lines_of_a_real_report() -> None:
    (sample,) = re.findall(r"^```\n\$ preemptd doctor.*?^```", PAGE, re.MULTILINE | re.DOTALL)
    with running(trainer("both")) as job:
        text = run_doctor(job.pid).stdout
    heading = next(line.split() for line in text.splitlines() if line.startswith("PID"))

    assert [label for label in labels(text) if label not in {"note", "lost"}] == labels(sample)
    assert heading == next(line.split() for line in sample.splitlines() if line.startswith("PID"))
    assert "tell it by SIGUSR1 (caught, purpose unknown), then SIGTERM" in text
    assert "tell it by SIGUSR1 (caught, purpose unknown), then SIGTERM" in sample


def kinds_in_code() -> set[str]:
    calls = [
        node for source in SOURCES for node in ast.walk(ast.parse(source.read_text())) if isinstance(node, ast.Call)
    ]
    return {
        call.args[0].value
        for call in calls
        if isinstance(call.func, ast.Name) and call.func.id == "Finding"
        if isinstance(call.args[0], ast.Constant) and isinstance(call.args[0].value, str)
    }


def test_every_kind_of_finding_is_in_the_table() -> None:
    (table,) = re.findall(r"^\| kind .*?\n\n", PAGE, re.MULTILINE | re.DOTALL)

    assert set(re.findall(r"^\| `([\w-]+)`", table, re.MULTILINE)) == kinds_in_code()


def keys(value: object) -> set[str]:
    if isinstance(value, dict):
        return set(value).union(*map(keys, value.values()))
    return set().union(*map(keys, value)) if isinstance(value, list) else set()


def test_every_field_of_the_json_is_named(tmp_path: Path) -> None:
    with core_stand_ins(tmp_path, "good") as (core,), FaultyEc2() as ec2:
        core.order("open abc123")
        said = [doctor(core.pid).said, doctor(env=on_ec2(ec2)).said]
    names = set(re.findall(r"`([\w-]+)`", PAGE.partition("## JSON")[2]))

    assert keys(said) - {"USR1", "TERM"} <= names
