from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from preemptd.errors import ProviderError
from preemptd_providers.slurm.row import Phase, Row, parse_row

LINE = "RUNNING|None|2026-11-20T14:53:02|N/A|0|12|12|N/A|N/A|"


def test_one_line_is_one_row_with_times_in_utc() -> None:
    assert parse_row(f"{LINE}\n", "12") == Row("RUNNING", "None", 1795186382.0, None, 0, "12")


def test_fields_may_be_padded_and_a_job_may_have_no_end() -> None:
    text = " COMPLETING |TimeLimit |N/A |2026-11-20T14:53:02 | 17 | 12 |12 |N/A |N/A |\n\n"

    assert parse_row(text, "12") == Row("COMPLETING", "TimeLimit", None, 1795186382.0, 17, "12")


ARRAY = """COMPLETING|None|N/A|N/A|3|15|12|0|N/A|
RUNNING|None|N/A|N/A|1|12|12|2|N/A|
PENDING|None|N/A|N/A|0|16|12|1|N/A|
"""
HETEROGENEOUS = """PENDING|None|N/A|N/A|4|13|13|N/A|12|
RUNNING|None|N/A|N/A|2|12|12|N/A|12|
"""


@pytest.mark.parametrize(
    ("text", "number", "restarts", "job_id"),
    [
        (ARRAY, "12", 1, "12_2"),
        (ARRAY, "15", 3, "12_0"),
        (HETEROGENEOUS, "12", 2, "12"),
        (HETEROGENEOUS, "13", 4, "12"),
        (LINE, "12", 0, "12"),
    ],
)
def test_of_all_tasks_and_components_the_row_is_our_own_and_names_what_requeue_takes(
    text: str, number: str, restarts: int, job_id: str
) -> None:
    row = parse_row(text, number)

    assert (row.restarts, row.id) == (restarts, job_id)


def test_the_row_of_another_job_is_none() -> None:
    with pytest.raises(ProviderError, match="job 13"):
        parse_row(LINE, "13")


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
    assert parse_row(LINE.replace("RUNNING", state), "12").phase is phase


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
        parse_row(text, "12")

    assert "\n" not in str(raised.value)
    assert len(str(raised.value)) < 400


@given(st.text())
def test_no_text_at_all_makes_it_fail_otherwise(text: str) -> None:
    with suppress(ProviderError):
        parse_row(text, "12")
