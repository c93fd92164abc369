"""docs/providers.md is true: every provider has its row, and the tables of its examples are options of the code."""

import re
import sys
from collections.abc import Mapping
from typing import get_args

import pytest

from preemptd.registry import installed, load
from preemptd.rehearsal.clouds import AHEAD, CLOUDS, Event
from tests.conftest import ROOT

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

PAGE = (ROOT / "docs" / "providers.md").read_text()
PROVIDERS = load(installed()).providers
BLOCKS = re.findall(r"^```toml\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
EXAMPLES = [tomllib.loads(text)["providers"] for text in BLOCKS]


def test_each_provider_has_its_row() -> None:
    table, _, _ = PAGE.partition("\n## ")
    rows = re.findall(r"^\| `(\w+)` \|", table, re.MULTILINE)

    assert sorted(rows) == sorted(PROVIDERS)


@pytest.mark.parametrize("tables", EXAMPLES, ids=",".join)
def test_each_example_is_a_table_that_its_provider_takes(tables: Mapping[str, Mapping[str, object]]) -> None:
    for name, table in tables.items():
        taken = PROVIDERS[name].options_type.model_validate(table)

        assert taken.model_fields_set == table.keys()


@pytest.mark.parametrize(("title", "name"), [("A page of your own", "http"), ("A command of your own", "exec")])
def test_the_options_of_what_is_ones_own_are_those_of_the_page(title: str, name: str) -> None:
    section = PAGE.partition(f"\n## {title}\n")[2].partition("\n## ")[0]
    rows = re.findall(r"^\| (`.*?`) \| (.*?) \| (.*) \|$", section, re.MULTILINE)
    fields = PROVIDERS[name].options_type.model_fields

    assert fields.keys() <= set(re.findall(r"\b(\w+)\b", section))
    for key, default, allowed in rows:
        field = fields[key.split(",")[0].strip("`")]
        if default:
            assert default.strip("`") == str(field.default).removesuffix(".0")
        if default.startswith("`"):
            assert allowed.replace("`", "").split(", ") == list(get_args(field.annotation))


def test_every_cloud_can_be_rehearsed_that_the_page_says_can() -> None:
    (named,) = re.findall(r"rehearse --provider ([a-z0-9|]+) ", PAGE)

    assert named.split("|") == list(CLOUDS)


def test_the_events_that_can_be_rehearsed_are_those_of_the_table() -> None:
    (text,) = re.findall(r"<!-- events -->\n(.*?)<!-- /events -->", PAGE, re.DOTALL)
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines()[2:]]
    named = [
        (provider, word, _seconds(time), told.partition(";")[0])
        for providers, words, time, told in rows
        for provider in re.findall(r"`(\w+)`", providers)
        for word in re.findall(r"`(\w+)`", words)
    ]

    assert sorted(named) == sorted(
        (platform, word, AHEAD if event.grace is None else event.grace, _told(event))
        for platform, cloud in CLOUDS.items()
        for word, event in cloud.events.items()
    )


def _seconds(text: str) -> float:
    number, unit = re.findall(r"(\d+) (s|min)", text)[0]
    return float(number) * (60 if unit == "min" else 1)


def _told(event: Event) -> str:
    if event.advice:
        return f"with `--act-on {event.advice}`"
    return "when `--lead` seconds are left" if event.grace is None else "at once"
