"""It takes no more after weeks of work than in the beginning."""

from pathlib import Path

import pytest

from tests.footprint import course


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.timeout(400)
@pytest.mark.parametrize(
    ("looks", "registrations"), [(2_000, 200), pytest.param(10_000, 1_000, marks=pytest.mark.soak)]
)
def test_looks_and_registrations_leave_nothing_behind(tmp_path: Path, looks: int, registrations: int) -> None:
    took = course(tmp_path, looks, registrations)

    print(took.first, took.early, took.late, took.last, sep="\n")
    assert took.status == 75
    assert len(took.watch.said("told")) == 1
    assert took.last.rss - took.first.rss < 2 * 2**20
    assert took.last.threads <= took.first.threads
    assert took.last.processor - took.late.processor < 2 * (took.early.processor - took.first.processor)
