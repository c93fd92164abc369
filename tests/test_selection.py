import json
from dataclasses import replace
from pathlib import Path
from signal import SIGUSR1, Signals
from typing import Any, TypedDict

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from preemptd.model import Process, ProcessId
from preemptd.targets.roles import Role, roles
from preemptd.targets.selection import Policy, Reach, Selection, other_nodes, select, without_own
from tests.snapshots import AUTO, MAIN, SPAWNED, TREE, auto, process, spared, told


class Recorded(TypedDict):
    """One line of what standins/proc_record.py wrote."""

    shape: str
    signals: str
    ranks: list[int]
    processes: list[dict[str, Any]]


RECORDED: list[Recorded] = json.loads((Path(__file__).parent / "standins" / "proc_launchers.json").read_text())


def recorded(entry: Recorded, *, named: bool) -> list[Process]:
    found = [Process(**{**fields, "cmdline": tuple(fields["cmdline"])}) for fields in entry["processes"]]
    return found if named else [replace(p, comm="python") if p.comm.startswith("pt_") else p for p in found]


# -- real launchers ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("named", [True, False], ids=["torch names its processes", "torch names none"])
@pytest.mark.parametrize("entry", RECORDED, ids=[f"{entry['shape']} {entry['signals']}" for entry in RECORDED])
def test_exactly_the_ranks_of_a_real_launcher_are_told(entry: Recorded, named: bool) -> None:
    processes = recorded(entry, named=named)

    selection = select(processes, processes[0].pid, AUTO, ())

    assert sorted(told(selection)) == entry["ranks"]
    assert {choice.how for choice in selection.told} == {entry["signals"].split(",")[0]}
    assert selection.unreachable == ()


@pytest.mark.parametrize("entry", RECORDED, ids=[f"{entry['shape']} {entry['signals']}" for entry in RECORDED])
def test_tree_tells_no_launcher_and_no_worker_either(entry: Recorded) -> None:
    processes = recorded(entry, named=True)

    selection = select(processes, processes[0].pid, TREE, ())

    assert sorted(told(selection)) == entry["ranks"]


def test_the_reasons_are_words_for_people() -> None:
    entry = next(e for e in RECORDED if e["shape"] == "bash -c torchrun, workers by fork")
    processes = recorded(entry, named=True)

    reasons = set(spared(select(processes, processes[0].pid, AUTO, ())).values())

    assert reasons == {"bash, a shell", "torchrun, the launcher", "DataLoader worker"}


# -- the topmost, and how ------------------------------------------------------------------------------------------


def test_the_first_signal_of_the_policy_that_a_process_catches_is_taken() -> None:
    ranks = [process(2, 1, "python a.py", ["USR1", "TERM"]), process(3, 1, "python b.py", ["TERM"])]

    assert told(auto(process(1, 0, "bash"), *ranks)) == {2: "USR1", 3: "TERM"}


def test_a_term_catcher_above_a_usr1_catcher_is_the_one() -> None:
    """Lightning's rank 0 starts the others and passes SIGTERM on to them: they must not get it twice."""
    selection = auto(process(1, 0, "python fit.py", ["TERM"]), process(2, 1, "/usr/bin/python3 fit.py", ["USR1"]))

    assert told(selection) == {1: "TERM"}
    assert spared(selection) == {2: "below pid 1, which is told"}


def test_a_launcher_in_between_does_not_hide_the_topmost() -> None:
    selection = auto(
        process(1, 0, "python outer.py", ["USR1"]),
        process(2, 1, "bash", ["USR1"]),
        process(3, 2, "python inner.py", ["USR1"]),
    )

    assert told(selection) == {1: "USR1"}


def test_who_blocks_the_signal_in_its_main_thread_counts_as_catching() -> None:
    assert told(auto(process(1, 0, "python train.py", blocks=["USR1"]))) == {1: "USR1"}


def test_a_linked_process_is_told_over_the_link_even_if_it_catches_nothing() -> None:
    processes = [process(1, 0, "bash"), process(2, 1, "python train.py"), process(3, 1, "python b.py", ["USR1"])]

    selection = select(processes, 1, AUTO, {2, 3})

    assert told(selection) == {2: "link", 3: "link"}


def test_a_linked_process_answers_for_the_catchers_below_it() -> None:
    processes = [process(1, 0, "python train.py"), process(2, 1, SPAWNED, ["USR1"])]

    assert told(select(processes, 1, AUTO, {1})) == {1: "link"}


def test_who_subscribed_itself_below_one_that_did_is_told_itself() -> None:
    processes = [process(1, 0, "python train.py"), process(2, 1, "python train.py"), process(3, 1, "python train.py")]

    assert told(select(processes, 1, AUTO, {1, 2})) == {1: "link", 2: "link"}


def test_a_linked_fork_is_a_rank_but_a_linked_launcher_or_worker_is_not() -> None:
    processes = [
        process(1, 0, "python -m torch.distributed.run"),
        process(2, 1, "python train.py"),
        process(3, 2, "python train.py"),
        process(4, 2, "python train.py", comm="pt_data_worker"),
    ]

    assert told(select(processes, 1, AUTO, {1, 3, 4})) == {3: "link"}


def test_main_tells_the_command_alone() -> None:
    processes = [process(1, 0, "python a.py", ["USR1"]), process(2, 1, "python b.py", ["USR1"])]
    siblings = [process(2, 0, "python b.py", ["USR1"])]

    assert told(select(processes, 1, MAIN, ())) == {1: "USR1"}
    assert spared(select([processes[0], *siblings], 1, MAIN, ())) == {2: "not the command itself"}


@pytest.mark.parametrize(
    ("main", "hows"),
    [
        (process(1, 0, "bash job.sh", ["USR1"]), {1: "USR1"}),
        (process(1, 0, "bash job.sh", ["TERM"]), {1: "TERM"}),
        (process(1, 0, "srun python train.py", ["USR1", "TERM"]), {1: "USR1"}),
        (process(1, 0, "python -m torch.distributed.run", ["TERM"]), {}),
        (process(1, 0, "bash job.sh"), {}),
    ],
)
def test_main_takes_the_users_word_for_a_launcher_but_never_sends_it_sigterm(
    main: Process, hows: dict[int, str]
) -> None:
    assert told(select([main, process(2, 1, "python train.py", ["USR1"])], 1, MAIN, ())) == hows


def test_main_that_is_gone_tells_nobody() -> None:
    assert select([process(2, 1, "python train.py", ["USR1"])], 1, MAIN, ()).told == ()


def test_tree_tells_every_catcher_that_does_the_work() -> None:
    processes = [process(1, 0, "python a.py", ["USR1"]), process(2, 1, "python b.py", ["TERM"])]

    assert told(select(processes, 1, TREE, ())) == {1: "USR1", 2: "TERM"}


def test_zombies_are_in_no_list() -> None:
    selection = auto(process(1, 0, "python train.py", ["USR1"], state="Z"))

    assert selection == Selection((), ())


def test_who_was_told_and_put_its_handler_away_still_answers_for_those_below() -> None:
    trainer, worker = process(1, 0, "python train.py"), process(2, 1, SPAWNED, ["USR1"])

    selection = select([trainer, worker], 1, AUTO, (), told_before={trainer.id})

    assert spared(selection) == {1: "told before", 2: "below pid 1, which is told"}
    assert selection.unreachable == ()


def test_only_the_users_signals_count() -> None:
    policy = Policy(signals=(Signals.SIGUSR2,))

    selection = select([process(1, 0, "python train.py", ["USR1", "TERM"])], 1, policy, ())

    assert spared(selection) == {1: "does not handle SIGUSR2"}


# -- what is lost --------------------------------------------------------------------------------------------------


def test_a_training_without_handlers_is_named_once() -> None:
    selection = auto(process(1, 0, "bash"), process(2, 1, "python train.py"), process(3, 2, SPAWNED))

    assert [p.pid for p in selection.unreachable] == [2]


def test_what_stands_above_or_below_a_told_one_is_not_lost() -> None:
    selection = auto(
        process(1, 0, "python start.py"), process(2, 1, "python train.py", ["USR1"]), process(3, 2, "ninja")
    )

    assert selection.unreachable == ()


def test_one_rank_of_two_without_a_handler_is_lost() -> None:
    launcher = process(1, 0, "python -m torch.distributed.run", ["TERM"])

    selection = auto(launcher, process(2, 1, "python train.py", ["USR1"]), process(3, 1, "python train.py"))

    assert [p.pid for p in selection.unreachable] == [3]


# -- other machines ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "environs",
    [
        [{"WORLD_SIZE": "16", "LOCAL_WORLD_SIZE": "8", "RANK": str(n)} for n in range(8)],
        [{"WORLD_SIZE": "16", "RANK": str(n)} for n in range(8)],
        [{"OMPI_COMM_WORLD_SIZE": "16", "OMPI_COMM_WORLD_LOCAL_SIZE": "8"}],
        [{}, {"WORLD_SIZE": "16", "LOCAL_WORLD_SIZE": "8"}],
    ],
)
def test_ranks_on_other_machines_are_named(environs: list[dict[str, str]]) -> None:
    sentence = other_nodes(environs)

    assert sentence is not None
    assert sentence.startswith("this job has 16 ranks, and only 8 of them run here")


@pytest.mark.parametrize(
    "environs",
    [
        [],
        [{"PATH": "/bin"}],
        [{"WORLD_SIZE": "8", "LOCAL_WORLD_SIZE": "8", "RANK": "3"}],
        # two torchruns, each a "node" of its own, on this one machine
        [{"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "1", "RANK": str(n)} for n in range(2)],
        # exported by the user before mp.spawn: how many ranks run here is not said
        [{"WORLD_SIZE": "8"}],
        [{"WORLD_SIZE": "eight", "LOCAL_WORLD_SIZE": "-1"}],
        [{"WORLD_SIZE": "", "LOCAL_WORLD_SIZE": ""}],
    ],
)
def test_nothing_is_said_when_all_ranks_are_here_or_nobody_knows(environs: list[dict[str, str]]) -> None:
    assert other_nodes(environs) is None


def test_the_daemons_hooks_are_left_out_with_all_that_is_below_them() -> None:
    processes = [process(1, 0, "python train.py"), process(2, 0, "sh"), process(3, 2, "aws"), process(4, 3, "cat")]

    assert [p.pid for p in without_own(processes, (), {2})] == [1]


def test_what_a_hook_left_in_the_background_is_no_training_either() -> None:
    left = process(5, 1, "rclone", pgid=2)
    processes = [process(1, 0, "preemptd"), left, process(6, 5, "cat"), process(7, 1, "python train.py")]

    assert [p.pid for p in without_own(processes, {2}, ())] == [1, 7]


# -- whatever /proc says -------------------------------------------------------------------------------------------

COMMANDS = st.sampled_from(
    [
        "python train.py",
        "python -u worker.py",
        SPAWNED,
        "python -m torch.distributed.run train.py",
        "python -c from~multiprocessing.forkserver~import~main;main(8)",
        "bash job.sh",
        "uv run train.py",
        "wandb-core",
        "tee log",
    ]
)
CAUGHT = st.lists(st.sampled_from(["USR1", "TERM", "SEGV", "BUS", "INT"]), unique=True)
COMMS = st.sampled_from(["", "", "", "pt_data_worker", "pt_elastic"])


@st.composite
def snapshots(draw: st.DrawFn) -> list[Process]:
    """Any tree, in any order, circles included: a snapshot is not taken at one instant."""
    pids = draw(st.lists(st.integers(1, 12), unique=True, max_size=10))
    return [
        process(
            pid,
            draw(st.integers(0, 12)),
            draw(COMMANDS),
            draw(CAUGHT),
            comm=draw(COMMS),
            blocks=draw(CAUGHT),
            state=draw(st.sampled_from("SSSRZ")),
            pgid=draw(st.integers(1, 12)),
        )
        for pid in pids
    ]


@settings(deadline=None)
@given(snapshots(), st.sets(st.integers(1, 12)), st.sampled_from(["auto", "tree"]), st.sets(st.integers(1, 12)))
def test_whatever_the_tree_the_told_ones_work_and_listen_and_no_signal_goes_below_them(
    processes: list[Process], linked: set[int], reach: Reach, before: set[int]
) -> None:
    policy = Policy(reach=reach)
    told_before = {ProcessId(pid, 1000 + pid) for pid in before}

    selection = select(processes, 1, policy, linked, told_before)

    living = {p.pid: p for p in processes if p.state != "Z"}
    parts = roles(list(living.values()), policy.signals, linked)
    assert sorted([*told(selection), *spared(selection)]) == sorted(living)
    for choice in selection.told:
        pid = choice.process.pid
        assert parts[pid].role is Role.WORK
        assert (pid in linked) if choice.how == "link" else choice.process.catches(Signals[f"SIG{choice.how}"])
        assert choice.why
    for choice in selection.spared:
        assert choice.how == ""
        assert choice.why
    if reach == "auto":
        by_signal = [pid for pid, how in told(selection).items() if how != "link"]
        assert not any(ancestors(pid, living) & set(told(selection)) for pid in by_signal)


def ancestors(pid: int, living: dict[int, Process]) -> set[int]:
    found: set[int] = set()
    above = living[pid].ppid
    while above in living and above not in found and above != pid:
        found.add(above)
        above = living[above].ppid
    return found


@settings(deadline=None)
@given(snapshots())
def test_the_order_of_the_snapshot_does_not_matter(processes: list[Process]) -> None:
    straight = [p for p in processes if p.ppid < p.pid]  # no circles: where those are cut depends on the order

    one, other = (select(order, 1, AUTO, ()) for order in (straight, straight[::-1]))

    assert told(one) == told(other)
    assert spared(one) == spared(other)
    assert set(one.unreachable) == set(other.unreachable)


@settings(deadline=None)
@given(snapshots())
def test_every_catcher_is_told_or_has_a_reason_that_is_not_that_it_does_not_listen(processes: list[Process]) -> None:
    selection = auto(*processes) if processes else Selection((), ())

    for choice in selection.spared:
        if choice.process.catches(SIGUSR1):
            assert not choice.why.startswith("handles neither")
