"""It takes no more after weeks of work than in the beginning."""

from pathlib import Path

import pytest

from tests.footprint import course


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_10000_looks_and_1000_registrations_leave_nothing_behind(tmp_path: Path) -> None:
    took = course(tmp_path, 10_000, 1_000)

    print(took.first, took.early, took.late, took.last, sep="\n")
    assert took.status == 75
    assert len(took.watch.said("told")) == 1
    assert took.last.rss - took.first.rss < 2 * 2**20
    assert took.last.threads <= took.first.threads
    assert took.last.processor - took.late.processor < 2 * (took.early.processor - took.first.processor)
