"""Who starts anew what has just left, seen in snapshots from before and after."""

from preemptd.model import Process
from preemptd.targets.restarts import Restarts, restarted, starts
from tests.snapshots import SPAWNED, process

JOB = process(100, 1, "bash job.sh")
TRAIN = process(101, 100, "python train.py", ["USR1"])
AGENT = process(110, 100, "python /bin/torchrun train.py", ["TERM"], comm="pt_elastic")
RANKS = [process(111 + rank, 110, "python -u train.py", ["USR1"]) for rank in (0, 1)]


def ending(before: list[Process], told: list[Process], after: list[Process]) -> list[int]:
    known = [start for one in told for start in starts(one, before)]
    return [process.pid for process in restarted(known, {one.id for one in before}, after)]


def test_a_loop_in_a_script_is_ended_and_then_what_it_has_started() -> None:
    again = process(201, 100, "python train.py")

    assert ending([JOB, TRAIN], [TRAIN], [JOB, again]) == [100, 201]


def test_torchrun_that_restarts_its_ranks_is_ended_and_the_script_around_it_is_not() -> None:
    again = [process(211 + rank, 110, "python -u train.py") for rank in (0, 1)]

    assert ending([JOB, AGENT, *RANKS], RANKS, [JOB, AGENT, *again]) == [110, 211, 212]


def test_a_loop_around_torchrun_is_ended_with_all_that_is_below_it() -> None:
    agent = process(210, 100, "python /bin/torchrun train.py")
    rank = process(211, 210, "python -u train.py")

    assert ending([JOB, AGENT, *RANKS], RANKS, [JOB, rank, agent]) == [100, 210, 211]


def test_a_loop_that_starts_each_attempt_in_a_subshell_of_its_own_is_seen() -> None:
    shells = [process(pid, 100, "bash job.sh") for pid in (102, 202)]
    first = process(103, 102, "python train.py", ["USR1"])
    second = process(203, 202, "python train.py")

    assert ending([JOB, shells[0], first], [first], [JOB, shells[1], second]) == [100, 202, 203]


def test_an_upload_after_the_training_is_left_alone() -> None:
    assert ending([JOB, TRAIN], [TRAIN], [JOB, process(201, 100, "python upload.py")]) == []


def test_a_fork_that_has_not_executed_its_program_yet_is_no_restart() -> None:
    shell = process(102, 100, "bash job.sh")
    train = process(103, 102, "python train.py", ["USR1"])
    upload_soon = process(202, 100, "bash job.sh")

    assert ending([JOB, shell, train], [train], [JOB, upload_soon]) == []


def test_a_rank_that_was_slow_to_import_is_no_restart_of_the_others() -> None:
    slow = process(112, 110, "python -u train.py")

    assert ending([JOB, AGENT, RANKS[0], slow], [RANKS[0]], [JOB, AGENT, slow]) == []


def test_children_of_multiprocessing_are_never_taken_for_restarts() -> None:
    """The command line says nothing of what they do: the next one may upload."""
    main = process(100, 1, "python train.py")
    forked = [process(pid, 100, "python train.py", ["USR1"]) for pid in (101, 201)]
    spawned = [process(pid, 100, SPAWNED, ["USR1"]) for pid in (102, 202)]

    assert ending([main, forked[0]], [forked[0]], [main, forked[1]]) == []
    assert ending([main, spawned[0]], [spawned[0]], [main, spawned[1]]) == []


def test_wandb_core_below_what_was_started_anew_is_left_alone() -> None:
    again = process(201, 100, "python train.py")
    core, symon = process(202, 201, "wandb-core --port-filename x"), process(203, 202, "wandb-symon")

    assert ending([JOB, TRAIN], [TRAIN], [JOB, again, core, symon]) == [100, 201]


def test_what_a_launcher_leaves_behind_when_it_ends_is_ended_too() -> None:
    orphan, other = process(201, 1, "python train.py"), process(202, 1, "python upload.py")

    assert ending([JOB, TRAIN], [TRAIN], [orphan, other]) == [201]


def test_who_ran_beside_a_told_one_is_left_alone_and_nobody_is_stopped_twice() -> None:
    restarts, most = Restarts(), 4_194_304  # no process has a greater pid than that: these signals reach nobody
    job, train = process(most + 1, 1, "bash job.sh"), process(most + 2, most + 1, "python train.py", ["USR1"])
    late, again = (process(most + number, most + 1, "python train.py") for number in (3, 4))

    assert restarts.stop([job, train], told_live=False) == []
    restarts.told(train, [job, train])
    assert restarts.stop([job, train, late], told_live=True) == []
    assert restarts.stop([job, late], told_live=False) == []
    assert restarts.stop([job, late, again], told_live=False) == [job.id, again.id]
    assert restarts.going_on
    assert again.id in restarts
    assert restarts.stop([job, late, again], told_live=False) == []
    assert not restarts.going_on


def test_zombies_and_circles_change_nothing() -> None:
    zombie = process(201, 100, "python train.py", state="Z")
    circle = [process(301, 302, "python train.py"), process(302, 301, "bash job.sh")]

    assert ending([JOB, TRAIN], [TRAIN], [JOB, zombie, *circle]) == []


def test_what_was_told_from_outside_of_the_tree_has_no_launcher_that_could_be_ended() -> None:
    elsewhere = process(900, 0, "(subscribed)")

    assert ending([JOB, TRAIN], [elsewhere], [JOB, TRAIN, process(901, 0, "(subscribed)")]) == []
