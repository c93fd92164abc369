"""The documentation is true: links lead somewhere, tables of options are what --help says."""

import re
from collections import Counter
from pathlib import Path

import pytest

from tests import option_tables
from tests.conftest import ROOT

PAGES = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").rglob("*.md"))]
LINK = re.compile(r"(?<!!)\[[^\]]*\]\(([^)\s]+)\)")


def prose(page: Path) -> str:
    """Return *page* without its code blocks: a `# comment` there is no heading."""
    return re.sub(r"^```.*?^```", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)


def anchors(page: Path) -> set[str]:
    """List the fragments that GitHub makes of the headings of *page*."""
    seen: Counter[str] = Counter()
    found = set()
    for heading in re.findall(r"^#{1,6} +(.+?) *$", prose(page), re.MULTILINE):
        text = LINK.sub(lambda link: link.group(0).partition("]")[0][1:], heading)
        slug = re.sub(r"[^\w\- ]", "", text.lower()).replace(" ", "-")
        found.add(slug if not seen[slug] else f"{slug}-{seen[slug]}")
        seen[slug] += 1
    return found


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_each_link_leads_to_a_file_and_a_heading_that_exist(page: Path) -> None:
    broken = []
    for link in LINK.findall(prose(page)):
        target, _, fragment = link.partition("#")
        if re.match(r"[a-z]+:", link):
            continue
        file = page if not target else page.parent / target
        if not file.exists() or (fragment and fragment not in anchors(file)):
            broken.append(link)

    assert broken == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_the_tables_of_options_are_what_help_says(page: Path) -> None:
    text = page.read_text()

    assert text == option_tables.renewed(text), "python -m tests.option_tables writes them anew"


def test_the_readme_has_the_options_of_watch() -> None:
    assert option_tables.opening("watch") in (ROOT / "README.md").read_text()


def test_every_example_in_the_docs_is_a_file_that_compiles() -> None:
    examples = sorted((ROOT / "docs" / "examples").glob("*.py"))

    assert examples
    for example in examples:
        compile(example.read_text(), str(example), "exec")


def test_the_layers_of_the_page_are_those_that_are_checked() -> None:
    page, project = (ROOT / "docs" / "how-it-works.md").read_text(), (ROOT / "pyproject.toml").read_text()
    (shown,) = re.findall(r"^## The layers$.*?^```\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
    (checked,) = re.findall(r"^layers = \[\n(.*?)^\]$", project, re.MULTILINE | re.DOTALL)

    assert [line.partition(":")[0] for line in shown.splitlines()] == re.findall(r'"(.+?)"', checked)
