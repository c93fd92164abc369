"""Puts figures into docs/benchmarks.md, between two marks."""

from tests.bench.wrappers import ROOT

PAGE = ROOT / "docs" / "benchmarks.md"


def put(name: str, text: str) -> None:
    """Replace what stands between the comments *name* and /*name*."""
    begin, end = f"<!-- {name} -->", f"<!-- /{name} -->"
    before, _, rest = PAGE.read_text().partition(begin)
    PAGE.write_text(f"{before}{begin}\n{text}\n{end}{rest.partition(end)[2]}")
