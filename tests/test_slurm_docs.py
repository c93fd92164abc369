"""docs/slurm.md names the options, keys and limits of the code."""

import re

from preemptd.settling import FUTILE_LIMIT
from preemptd_providers.slurm.provider import SlurmOptions
from tests import option_tables
from tests.conftest import ROOT

PAGE = (ROOT / "docs" / "slurm.md").read_text()
ROWS = re.findall(r"^\| `--.*$", PAGE, re.MULTILINE)


def test_the_options_for_slurm_are_described_as_in_the_help() -> None:
    of_slurm = {"--requeue-on", "--max-requeues", "--requeue-delay", "--shield-term"}
    help_says = [
        row for row in option_tables.table("watch").splitlines() if row[3:].split("`")[0].split(" ")[0] in of_slurm
    ]

    assert [row for row in ROWS if row.split("|")[1].split()[0].strip("`") in of_slurm] == help_says
    assert len(help_says) == len(of_slurm)


def test_the_table_of_the_provider_is_its_own() -> None:
    (toml,) = re.findall(r"^```toml\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
    defaults = {name: field.default for name, field in SlurmOptions.model_fields.items()}

    assert toml.startswith("[providers.slurm]\n")
    assert set(re.findall(r"^(\w+) =", toml, re.MULTILINE)) == defaults.keys()
    assert f"poll_interval = {defaults['poll_interval']:g} " in toml
    assert f"canary = {str(defaults['canary']).lower()} " in toml


def test_so_many_attempts_without_progress_as_it_says_are_enough() -> None:
    assert FUTILE_LIMIT == 3
    assert "after three in a row that have not" in PAGE
