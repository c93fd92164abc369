"""How much time is left, by every source: in each form that it may be written in, and by whose clock."""

import math
import time
from collections.abc import Iterator
from datetime import datetime, timezone
from pathlib import Path

import pytest

from preemptd.notices import Notice
from preemptd_providers._deadline_text import end_of
from tests.every_provider import SOURCES, Source, iso, rfc1123
from tests.every_world import ExecWorld, SiteWorld, at_site

SKEWS = {"right": 0.0, "five hours ahead": -5 * 3600.0, "five hours behind": 5 * 3600.0, "years behind": 9e7}
"""By how much the server's clock is ahead of ours."""
TIMED = [name for name, source in SOURCES.items() if source.forms]
FORMS = [(name, form) for name in TIMED for form in SOURCES[name].forms]


@pytest.fixture
def exec_world(tmp_path: Path) -> Iterator[ExecWorld]:
    world = ExecWorld(tmp_path, within=30.0)
    yield world
    world.provider.close()


def noticed(world: SiteWorld | ExecWorld) -> Notice:
    notice = world.look().notice
    assert notice is not None, world.look()
    assert notice.remaining is None or math.isfinite(notice.remaining)
    return notice


def left_by(source: Source, form: str, end: float, now: float) -> float | None:
    """Return the seconds that are left by *source* if its server's clock stands at *now*."""
    with at_site(source) as world:
        world.site.clock = lambda: now
        world.show(source.forms[form](end))
        return noticed(world).remaining


@pytest.mark.parametrize("skew", SKEWS.values(), ids=SKEWS)
@pytest.mark.parametrize(("source", "form"), FORMS)
def test_each_form_is_counted_by_the_servers_clock_whatever_ours_says(source: str, form: str, skew: float) -> None:
    now = round(time.time() + skew)

    assert left_by(SOURCES[source], form, now + 90, now) == pytest.approx(90, abs=1.0)


@pytest.mark.parametrize("source", TIMED)
def test_without_the_servers_clock_ours_is_taken(source: str) -> None:
    it = SOURCES[source]
    with at_site(it) as world:
        world.site.clock = None
        began = time.time()
        world.announce(90.0)
        left = noticed(world).remaining

        assert left is not None
        assert 90 - (time.time() - began) - 1 <= left <= 91


@pytest.mark.parametrize("source", TIMED)
@pytest.mark.parametrize("form_number", [0, -1])
def test_a_time_that_has_passed_is_negative_as_it_is(source: str, form_number: int) -> None:
    it = SOURCES[source]
    form = list(it.forms)[form_number]
    now = round(time.time())

    assert left_by(it, form, now - 100, now) == pytest.approx(-100, abs=1.0)


@pytest.mark.parametrize(("source", "form"), FORMS)
def test_a_time_that_is_too_far_away_is_a_mistake_where_it_is_to_be_acted_on_at_once(source: str, form: str) -> None:
    it = SOURCES[source]
    now = round(time.time())
    left = left_by(it, form, now + 20 * 365 * 86400, now)

    assert left is None or left <= (it.believed or math.inf)


BARE = [(name, bare) for name, source in SOURCES.items() for bare in source.bare]


@pytest.mark.parametrize(("source", "bare"), BARE)
def test_without_a_time_that_can_be_read_it_counts_with_what_the_source_gives(source: str, bare: str) -> None:
    it = SOURCES[source]
    with at_site(it) as world:
        world.show(it.bare[bare])
        notice = noticed(world)

        assert notice.remaining == it.bare_left
        assert notice.event_id == it.event_id


EXEC_FORMS = {
    "seconds": lambda end: f"{end - time.time():.0f}",
    "seconds with a fraction": lambda end: f"{end - time.time():.3f}",
    "Unix seconds": lambda end: f"{end:.0f}",
    "ISO 8601": iso,
    "ISO 8601, another zone": lambda end: iso(end, -7, zone="-07:00"),
    "ISO 8601, no zone": lambda end: iso(end, zone=""),
    "RFC 1123": rfc1123,
}


@pytest.mark.parametrize("form", EXEC_FORMS)
@pytest.mark.parametrize("left", [90.0, 5.0])
def test_a_command_may_write_the_end_in_each_form(form: str, left: float, exec_world: ExecWorld) -> None:
    began = time.time()
    exec_world.run(f"echo '{EXEC_FORMS[form](began + left)}'; echo and more; exit 75")
    found = noticed(exec_world).remaining

    assert found is not None
    assert left - (time.time() - began) - 1 <= found <= left + 1


NO_TIME = ["", "soon", "-5", "1e3", "nan", "inf", "0x10", "12345678901234567890", "9999-99-99T00:00:00Z", "\\377"]
MISTAKES = ["2147483648", "9999-12-31T23:59:59Z"]


@pytest.mark.parametrize("text", [*NO_TIME, *MISTAKES])
def test_a_command_that_writes_no_time_or_a_mistake_is_counted_with_the_grace(text: str, exec_world: ExecWorld) -> None:
    exec_world.run(f"printf '{text}\\n'; exit 75")

    assert noticed(exec_world).remaining is None


def test_milliseconds_are_no_form_and_never_a_day_of_the_eighteenth_century() -> None:
    now = datetime(2026, 11, 20, tzinfo=timezone.utc)

    assert end_of("1793120100123", now, timezone.utc) is None
