"""What metadata providers read in an answer's headers, and in the variables that say where to ask."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from preemptd.errors import ConfigError
from preemptd_providers._metadata import Answer
from preemptd_providers._variables import checked_base, checked_number


def answer(headers: dict[str, str]) -> Answer:
    return Answer("http://x", "GET", 503, headers, b"", 0.0)


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({}, None),
        ({"Retry-After": "7"}, 7.0),
        ({"Retry-After": "Fri, 20 Nov 2026 10:00:30 GMT", "Date": "Fri, 20 Nov 2026 10:00:00 GMT"}, 30.0),
        ({"Retry-After": "Fri, 20 Nov 2020 10:00:30 GMT"}, 0.0),
        ({"Retry-After": "-3"}, None),
        ({"Retry-After": "soon"}, None),
        ({"Retry-After": "9" * 5000}, 999999999.0),
    ],
)
def test_retry_after_is_understood_in_both_forms(headers: dict[str, str], seconds: float | None) -> None:
    assert answer(headers).retry_after == seconds


@given(st.text(), st.text())
def test_no_date_makes_an_exception(date: str, retry_after: str) -> None:
    got = answer({"Date": date, "Retry-After": retry_after})

    assert got.retry_after is None or got.retry_after >= 0
    assert got.date is None or got.date.tzinfo is not None


@pytest.mark.parametrize("value", ["", "ftp://x", "https://x", "http://", "http://[::1", "x:80", "http://x:99999"])
def test_an_address_that_cannot_be_used_is_refused_by_the_variables_name(value: str) -> None:
    with pytest.raises(ConfigError, match="SOME_VARIABLE"):
        checked_base("SOME_VARIABLE", value)


@pytest.mark.parametrize("value", ["x", "0", "-1", "nan", "inf", "1e9"])
def test_a_number_that_cannot_be_used_is_refused_by_the_variables_name(value: str) -> None:
    with pytest.raises(ConfigError, match="SOME_VARIABLE"):
        checked_number({"SOME_VARIABLE": value}, "SOME_VARIABLE", 1.0)
