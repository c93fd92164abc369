"""docs/providers.md is true: every provider has its row, and the tables of its examples are options of the code."""

import re
import sys
from collections.abc import Mapping

import pytest

from preemptd.registry import installed, load
from preemptd.rehearsal.clouds import CLOUDS
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
    rows = re.findall(r"^\| `(\w+)` \|", PAGE, re.MULTILINE)

    assert sorted(rows) == sorted(PROVIDERS)


@pytest.mark.parametrize("tables", EXAMPLES, ids=",".join)
def test_each_example_is_a_table_that_its_provider_takes(tables: Mapping[str, Mapping[str, object]]) -> None:
    for name, table in tables.items():
        taken = PROVIDERS[name].options_type.model_validate(table)

        assert taken.model_fields_set == table.keys()


def test_every_cloud_can_be_rehearsed_that_the_page_says_can() -> None:
    (named,) = re.findall(r"rehearse --provider ([a-z0-9|]+) ", PAGE)

    assert named.split("|") == list(CLOUDS)
