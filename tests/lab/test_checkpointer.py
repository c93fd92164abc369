"""The Checkpointer with a real torch: killed at any moment, on several ranks, and resumed to the last bit."""

import json
import os
import re
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from preemptd.events import LinkSaid
from preemptd.runs.transaction_log import exit_code, has_preempting
from tests.conftest import ROOT
from tests.linking import notice, serving

# torch is loaded once for all cases of a stand-in.
pytestmark = [pytest.mark.xdist_group("checkpointer"), pytest.mark.long, pytest.mark.timeout(300)]

PREEMPTED = 75


def run(python: str, name: str, *arguments: object, **environ: str) -> "subprocess.CompletedProcess[str]":
    command = [python, "-m", f"tests.standins.{name}", *map(str, arguments)]
    env = {**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo", **environ}
    return subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, check=False, timeout=900)


def lines(done: "subprocess.CompletedProcess[str]") -> list[dict[str, Any]]:
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def by_case(done: "subprocess.CompletedProcess[str]") -> Mapping[str, dict[str, Any]]:
    return {line["case"]: line for line in lines(done)}


@pytest.fixture(scope="module")
def cases(torch_python: str, tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, dict[str, Any]]:
    return by_case(run(torch_python, "checkpoint_cases", tmp_path_factory.mktemp("cases")))


@pytest.fixture(scope="module")
def ranks(torch_python: str, tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, dict[str, Any]]:
    return by_case(run(torch_python, "checkpoint_ranks", tmp_path_factory.mktemp("ranks")))


FOUND = {
    "everything_comes_back": [1_234_567, 7, [True] * 4, {}, ["manifest.json", "rank-0.pt", "shared.pt"]],
    "the_random_numbers_go_on_where_they_were": True,
    "the_state_of_a_gpu_that_is_gone_is_left_out": "done",
    "metadata_is_plain_when_it_comes_back": [5, True],
    "a_flipped_bit_costs_one_checkpoint_and_one_line": [1, 1, ["generation-00000003", "generation-00000004"]],
    "the_damaged_one_does_not_count_as_one_that_is_kept": 1,
    "nothing_at_all_is_none": [None, False],
    "a_compiled_model_is_the_model": True,
    "what_has_no_state_is_refused": "model is of type object, which has no state_dict() and load_state_dict()",
    "the_starts_of_a_run_are_counted": [None, 1, 2],
    "who_begins_under_another_name_is_told_of_those_that_are_there": None,
    "lower_steps_are_the_latest_if_they_were_saved_last": 7,
    "who_takes_longer_than_the_grace_is_told_once": [True],
    "it_can_all_be_removed": [["default_2"], None],
    "nobody_loads_wandb": False,
    "the_page_names_every_parameter": True,
    "the_examples_of_the_page_work": [["generation-00000001"], 0, 1, {"loss": 0.5}],
}


@pytest.mark.parametrize("case", FOUND)
def test_alone(cases: Mapping[str, dict[str, Any]], case: str) -> None:
    assert cases[case]["found"] == FOUND[case]


ERRORS: dict[str, list[object]] = {
    "metadata_that_would_not_come_back_is_refused_at_the_save": [
        r"step 2 is not saved in .*: metadata\['a'\] is of type ndarray, which JSON cannot hold",
        *(1, ["generation-00000001"]),
    ],
    "what_could_not_be_loaded_is_refused_at_the_save": [
        "rank-0.pt could not be loaded with weights_only=True: Unsupported global: GLOBAL pathlib",
        *(["generation-00000001"], 3),
    ],
    "a_state_dict_that_raises_leaves_nothing_behind": [
        "step 2 is not saved in .*: counter does not give its state: 'gradient'",
        "step 2 is not saved in .*: rank-0.pt cannot be written: Can't pickle",
        ["generation-00000001"],
    ],
    "nothing_that_is_whole_is_an_error": ["no checkpoint in .* is whole; remove them to begin anew"],
    "a_state_that_does_not_fit_is_an_error": [
        "is not loaded: its state does not fit model: .*size mismatch",
        "is not loaded: it has no state of ema",
        "^$",
    ],
    "a_full_disk_is_an_error_and_leaves_what_was_there": [
        "step 2 is not saved in .*: File too large",
        *(["generation-00000001", "generation-00000002"], True),
    ],
    "a_directory_that_cannot_be_made_is_an_error": ["step 1 is not saved .* Not a directory", "nothing is loaded from"],
    "the_run_is_wandbs_if_there_is_one": [["default", "from-env", "from-run", "mine"], "mine", "cannot be a run id"],
}


@pytest.mark.parametrize("case", ERRORS)
def test_alone_with_one_clear_line(cases: Mapping[str, dict[str, Any]], case: str) -> None:
    found = cases[case]["found"]

    for value, expected in zip(found if isinstance(found, list) else [found], ERRORS[case], strict=True):
        if isinstance(expected, str):
            assert re.search(expected, value)
            assert "\n" not in value
        else:
            assert value == expected


LOGGED = {
    "who_begins_under_another_name_is_told_of_those_that_are_there": "run now has .*; these have: before",
    "a_flipped_bit_costs_one_checkpoint_and_one_line": "generation-00000002 is skipped: rank-0.pt: altered",
    "who_takes_longer_than_the_grace_is_told_once": "this save took .* s, a platform may give 0 s",
    "a_state_that_does_not_fit_is_an_error": "state of model is left out",
}


@pytest.mark.parametrize("case", LOGGED)
def test_one_line_is_logged(cases: Mapping[str, dict[str, Any]], case: str) -> None:
    (line,) = cases[case]["log"]

    assert re.search(LOGGED[case], line)


def test_no_case_is_forgotten(cases: Mapping[str, dict[str, Any]], ranks: Mapping[str, dict[str, Any]]) -> None:
    assert cases.keys() == FOUND.keys() | ERRORS.keys()
    assert ranks.keys() == RANKS.keys()


RANKS: dict[str, Callable[[int], object]] = {
    "each_rank_gets_its_own_back": lambda rank: [5, 10 + rank, True, 1.0, 4],
    "two_ranks_save": lambda _: "saved",
    "one_process_loads_what_two_have_saved": lambda _: [5, 3.0, "untouched"],
    "a_file_of_one_rank_is_damaged": lambda _: [1, 1],
    "one_rank_dies_before_the_manifest": lambda rank: None if rank else "RuntimeError",
    "the_next_start_agrees": lambda rank: [1, rank],
    "the_ranks_do_not_see_one_directory": lambda _: True,
    "one_rank_cannot_write": lambda _: [True, 1, ["generation-00000001"]],
    "one_rank_is_told_and_all_leave": lambda _: [75, True, ["generation-00000001", "generation-00000002"]],
    "a_model_that_is_spread_over_the_ranks_is_refused": lambda _: (
        "model is spread over the ranks (DTensor): save it by torch.distributed.checkpoint"
    ),
}


@pytest.mark.parametrize("case", RANKS)
def test_two_ranks(ranks: Mapping[str, dict[str, Any]], case: str) -> None:
    for rank, found in enumerate(ranks[case]["found"]):
        assert found == RANKS[case](rank), f"rank {rank}"


def test_a_changed_number_of_ranks_is_said(ranks: Mapping[str, dict[str, Any]]) -> None:
    log = ranks["one_process_loads_what_two_have_saved"]["log"]

    assert log == [["saved by another number of ranks: loader, the random numbers begin anew"]]


@pytest.fixture
def memory(tmp_path: Path) -> Iterator[Path]:
    """A directory in memory, if there is one: the kills do not need the disk, whose fsync others wait for, too."""
    with tempfile.TemporaryDirectory(dir="/dev/shm" if os.access("/dev/shm", os.W_OK) else tmp_path) as directory:
        yield Path(directory)


@pytest.mark.parametrize("rounds", [20, pytest.param(200, marks=pytest.mark.soak)])
def test_killed_at_each_call_that_changes_the_disk_and_at_random_moments_the_last_that_was_saved_is_loaded_whole(
    torch_python: str, memory: Path, rounds: int
) -> None:
    found = lines(run(torch_python, "checkpoint_killed", memory, rounds, 20261120))
    calls, moments = ([line for line in found if line["at"] == at] for at in ("call", "random"))

    assert [line["became"] for line in calls] == ["killed"] * (len(calls) - 1) + ["unharmed"]
    assert len(calls) > 25
    assert len(moments) == rounds
    assert all(line["before"] <= line["found"] <= line["before"] + 1 for line in found)


def test_a_preempted_training_goes_on_as_if_nothing_had_been_to_the_last_bit(torch_python: str, tmp_path: Path) -> None:
    """It is told by a link at its first step, by a signal and with a W&B run in the middle of an epoch."""
    training = partial(run, torch_python, "checkpoint_training", WANDB_RUN_ID="run42")
    undisturbed = training(tmp_path / "a", 0).stdout.splitlines()
    with serving() as (server, events):
        server.announce(notice())
        first = training(tmp_path / "b", 0, PREEMPTD_LINK=server.path)
        said = events.wait_for(LinkSaid, 3)
    second = training(tmp_path / "b", 13, RUN="run42", WANDB_DIR=str(tmp_path))
    third = training(tmp_path / "b", 0)
    (log,) = tmp_path.rglob("run-run42.wandb")

    parts = [done.stdout.splitlines() for done in (first, second, third)]
    assert [done.returncode for done in (first, second, third)] == [PREEMPTED, PREEMPTED, 0]
    left_at = int(parts[1][-1].split()[1])
    assert [part[0] for part in parts] == ["began 0 False", "began 1 True", f"began {left_at} True"]
    assert 13 <= left_at < 30  # with a W&B run it is told when the run is marked, 0.1 s later at most
    assert [(event.verb, event.fields.get("step")) for event in said] == [
        ("seen", None),
        ("saving", None),
        ("saved", 1),
    ]
    assert (has_preempting(str(log)), exit_code(str(log))) == (True, PREEMPTED)
    assert [line for part in parts for line in part[1:]] == undisturbed[1:]
    assert len(undisturbed) == 31
