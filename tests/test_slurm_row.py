from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from preemptd.errors import ProviderError
from preemptd_providers.slurm.row import Phase, Row, parse_row

LINE = "RUNNING|None|2026-11-20T14:53:02|N/A|0|"


def test_one_line_is_one_row_with_times_in_utc() -> None:
    assert parse_row(f"{LINE}\n") == Row("RUNNING", "None", 1795186382.0, None, 0)


def test_fields_may_be_padded_and_a_job_may_have_no_end() -> None:
    text = " COMPLETING |TimeLimit |N/A |2026-11-20T14:53:02 | 17 |\n\n"

    assert parse_row(text) == Row("COMPLETING", "TimeLimit", None, 1795186382.0, 17)


def test_of_a_heterogeneous_job_the_first_row_is_the_leaders() -> None:
    text = f"{LINE}\n{LINE.replace('RUNNING', 'COMPLETING')}\n"

    assert parse_row(text, is_leader=True).state == "RUNNING"


@pytest.mark.parametrize(
    ("state", "phase"),
    [
        ("RUNNING", Phase.RUNNING),
        ("SIGNALING", Phase.RUNNING),
        ("SUSPENDED", Phase.RUNNING),
        ("CONFIGURING", Phase.RUNNING),
        ("COMPLETING", Phase.ENDING),
        ("CANCELLED", Phase.ENDING),
        ("TIMEOUT", Phase.ENDING),
        ("PENDING", Phase.WAITING),
        ("REQUEUE_HOLD", Phase.WAITING),
        ("SPECIAL_EXIT", Phase.WAITING),
    ],
)
def test_each_state_has_a_phase(state: str, phase: Phase) -> None:
    assert parse_row(LINE.replace("RUNNING", state)).phase is phase


@pytest.mark.parametrize(
    "text",
    [
        "",
        "\n",
        "slurm_load_jobs error: Unable to contact slurm controller (connect failure)",
        "RUNNING",
        LINE.rstrip("|"),
        f"{LINE}more|",
        f"{LINE}more",
        f"{LINE}\n{LINE.replace('RUNNING', 'PENDING')}",
        LINE.replace("RUNNING", "DANCING"),
        LINE.replace("RUNNING", "running"),
        LINE.replace("RUNNING", "RUNNIN"),
        LINE.replace("|0|", "||"),
        LINE.replace("|0|", "|-1|"),
        LINE.replace("|0|", "|0.5|"),
        LINE.replace("|0|", "|\u0663|"),
        LINE.replace("|0|", f"|{'9' * 5000}|"),
        LINE.replace("2026-11-20T14:53:02", "14:53:02"),
        LINE.replace("2026-11-20T14:53:02", "2026-13-20T14:53:02"),
        LINE.replace("2026-11-20T14:53:02", "tomorr 14:53"),
        LINE.replace("2026-11-20T14:53:02", ""),
        LINE.replace("N/A", "2026-11-20T14:5"),
    ],
)
def test_anything_odd_is_no_row_and_the_error_shows_what_came(text: str) -> None:
    with pytest.raises(ProviderError, match="squeue") as raised:
        parse_row(text)

    assert "\n" not in str(raised.value)
    assert len(str(raised.value)) < 400


@given(st.text())
def test_no_text_at_all_makes_it_fail_otherwise(text: str) -> None:
    with suppress(ProviderError):
        parse_row(text)
