import pytest

from preemptd.model import Process
from preemptd.targets.selection import Policy, Reach, select
from tests.snapshots import SPAWNED, TREE, WORKER, auto, process, spared, told

GO = (*range(1, 32), *range(34, 65))
"""What the runtime of a program in Go catches."""


# -- who is what ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "command",
    [
        "/venv/bin/python /venv/bin/torchrun --nproc-per-node 2 train.py",
        "python -m torch.distributed.run train.py",
        "python -um torch.distributed.run train.py",
        "python -X dev -W error -m torch.distributed.launch train.py",
        "python /venv/lib/python3.11/site-packages/torch/distributed/run.py train.py",
        "python -u -m deepspeed.launcher.launch --world_info=x train.py",
        "python -m accelerate.commands.launch train.py",
        "/venv/bin/python /venv/bin/accelerate-launch train.py",
        "/venv/bin/python /venv/bin/wandb agent entity/project/sweep",
        "python -m wandb agent entity/project/sweep",
        "/venv/bin/python /venv/bin/preemptd watch -- python train.py",
        "python -m preemptd watch -- python train.py",
        "/usr/bin/srun --ntasks 8 python train.py",
        "tmux new-session -d python train.py",
        "/usr/sbin/sshd -D",
        "-bash",
        "/bin/sh -c python~train.py;true",
        "tini -- python train.py",
        "docker run image",
        "/usr/bin/conmon --api-version 1 -c 0123 -r /usr/bin/runc",
        "/venv/bin/python /venv/bin/jupyter-lab --no-browser",
        "python -m notebook",
    ],
)
def test_a_launcher_is_never_told_whatever_it_catches(command: str) -> None:
    launcher = process(1, 0, command, ["USR1", "TERM", "INT"])

    selection = auto(launcher, process(2, 1, "python train.py --mode fast", ["USR1"]))

    assert told(selection) == {2: "USR1"}
    assert spared(selection)[1].endswith((", the launcher", ", a shell"))


@pytest.mark.parametrize(
    "command",
    [
        "python train.py --launcher torchrun",
        "python train.py torch.distributed.run",
        "python -u /job/wandb_agent.py",
        "python -m my.torch.distributed.runner",
        "python torchrun.py",
        "python -m trainer.launch --via accelerate launch",
        "python -c import~torch.distributed.run",
        "python /home/bash/train.py",
        "python notebook.py",
        "python vim/train.py",
        "python -m ipykernel_launcher -f kernel.json",
    ],
)
def test_an_argument_that_names_a_launcher_makes_none(command: str) -> None:
    assert told(auto(process(1, 0, command, ["USR1"]))) == {1: "USR1"}


def test_a_bash_script_that_was_started_by_its_name_is_a_shell() -> None:
    script = process(1, 0, "/bin/bash ./job.sh", ["USR1"], comm="job.sh", exe="/usr/bin/bash")

    assert spared(auto(script)) == {1: "bash, a shell"}


@pytest.mark.parametrize(
    ("helper", "why"),
    [
        (process(2, 1, "tee log", ["USR1"]), "tee"),
        (process(2, 1, "rsync -a ckpt host:", ["USR1", "TERM"]), "rsync"),
        (process(2, 1, "python", ["USR1", *WORKER], comm="pt_data_worker"), "DataLoader worker"),
        (
            process(2, 1, "python -B -c from~multiprocessing.resource_tracker~import~main;main(5)", ["USR1"]),
            "resource_tracker",
        ),
        (
            process(2, 1, "python -c from~joblib.externals.loky.backend.resource_tracker~import~main", ["USR1"]),
            "resource_tracker",
        ),
        (process(2, 1, "python -c from~multiprocessing.semaphore_tracker~import~main", ["USR1"]), "semaphore_tracker"),
        (process(2, 1, "python -c from~multiprocessing.forkserver~import~main;main(8)", ["USR1"]), "forkserver"),
        (process(2, 1, "/venv/wandb/bin/wandb-core --pid 1", GO), "wandb-core"),
        (
            process(2, 1, "wandb-service(2-1-s-40000)", ["USR1"], comm="wandb-service(2", exe="/usr/bin/python3.11"),
            "wandb-core",
        ),
        (process(2, 1, "rclone sync ckpt s3:b", GO), "its runtime catches every signal"),
    ],
)
@pytest.mark.parametrize("reach", ["auto", "tree"])
def test_a_helper_is_never_told_whatever_it_catches(helper: Process, why: str, reach: Reach) -> None:
    selection = select([process(1, 0, "python train.py"), helper], 1, Policy(reach=reach), ())

    assert selection.told == ()
    assert spared(selection)[2] == why


@pytest.mark.parametrize(
    "command",
    [
        *(
            "/usr/bin/dbus-daemon --session --address=systemd:",
            "dbus-broker --log 4",
            "dbus-broker-launch --scope user",
        ),
        *("/usr/bin/gpg-agent --supervised", "ssh-agent -D", "vi a", "vim a", "nvim a", "emacs -nw a", "nano a"),
    ],
)
def test_what_is_found_in_every_session_is_never_told_and_is_no_lost_training(command: str) -> None:
    selection = auto(process(1, 0, "systemd --user"), process(2, 1, command, ["USR1", "TERM"]))

    assert (selection.told, selection.unreachable) == ((), ())


def test_an_editor_that_is_a_link_to_another_program_is_known_by_either_name() -> None:
    editors = [process(2, 1, "editor a", ["USR1"], comm="vim.basic"), process(3, 1, "vi a", ["USR1"], comm="vi")]

    assert auto(process(1, 0, "bash"), *editors).told == ()


def test_what_belongs_to_wandb_core_is_spared() -> None:
    selection = auto(
        process(1, 0, "python train.py"),
        process(2, 1, "wandb-core --pid 1", pgid=2),
        process(3, 2, "anything", ["USR1"], pgid=2),
        process(4, 3, "python -u gpu.py", ["USR1"], pgid=4),
        process(5, 1, "orphan-of-core", ["USR1"], pgid=2),
    )

    assert selection.told == ()
    assert {pid: why for pid, why in spared(selection).items() if pid > 2} == dict.fromkeys(
        (3, 4, 5), "belongs to wandb-core"
    )
    assert [choice.process.pid for choice in selection.spared if choice.is_core] == [2]


def test_a_wandb_core_in_the_groups_of_the_trainer_does_not_make_the_trainer_its_own() -> None:
    selection = auto(process(1, 0, "python train.py", ["USR1"], pgid=1), process(2, 1, "wandb-core", pgid=1))

    assert told(selection) == {1: "USR1"}


# -- forks and multiprocessing -------------------------------------------------------------------------------------


def test_a_fork_of_a_launched_rank_is_no_rank() -> None:
    selection = auto(process(1, 0, "python train.py"), process(2, 1, "python train.py", WORKER))

    assert spared(selection) == {1: "handles neither SIGUSR1 nor SIGTERM", 2: "fork of pid 1"}


def test_forked_ranks_with_handlers_of_their_own_are_told() -> None:
    ranks = [process(pid, 1, "python train.py", ["USR1", "TERM"]) for pid in (2, 3)]

    assert told(auto(process(1, 0, "python train.py"), *ranks)) == {2: "USR1", 3: "USR1"}


def test_a_fork_that_inherited_its_handler_is_not_told_even_in_tree() -> None:
    workers = [process(pid, 1, "python train.py", ["USR1"]) for pid in (2, 3)]

    selection = select([process(1, 0, "python train.py", ["USR1"]), *workers], 1, TREE, ())

    assert told(selection) == {1: "USR1"}


def test_a_child_between_vfork_and_exec_is_not_told() -> None:
    """It is still a copy of its parent, and blocks every signal."""
    selection = auto(process(1, 0, "python train.py"), process(2, 1, "python train.py", blocks=["USR1", "TERM"]))

    assert selection.told == ()


def test_a_rank_that_the_forkserver_forked_is_told_and_the_forkserver_is_not() -> None:
    server = "python -c from~multiprocessing.forkserver~import~main;main(8,9)"

    selection = auto(
        process(1, 0, "python train.py"),
        process(2, 1, server, ["CHLD"]),
        process(3, 2, server, ["USR1"]),
        process(4, 2, server, WORKER),
    )

    assert told(selection) == {3: "USR1"}
    assert spared(selection)[4] == "fork of pid 2"


def test_spawned_ranks_are_told_if_their_parent_does_not_listen() -> None:
    ranks = [process(2, 1, SPAWNED, ["USR1"]), process(3, 1, SPAWNED, ["TERM"])]

    assert told(auto(process(1, 0, "python train.py"), *ranks)) == {2: "USR1", 3: "TERM"}


def test_spawned_workers_are_left_to_a_parent_that_listens() -> None:
    selection = auto(process(1, 0, "python train.py", ["TERM"]), process(2, 1, SPAWNED, WORKER))

    assert told(selection) == {1: "TERM"}
    assert spared(selection) == {2: "DataLoader worker"}


def test_a_spawned_worker_of_a_script_without_handlers_does_not_get_the_term_that_would_end_it() -> None:
    selection = auto(process(1, 0, "python train.py"), process(2, 1, SPAWNED, WORKER))

    assert selection.told == ()
    assert [p.pid for p in selection.unreachable] == [1]


def test_a_spawned_rank_with_faulthandler_is_told_by_usr1() -> None:
    selection = auto(process(1, 0, "python train.py"), process(2, 1, SPAWNED, [*WORKER, "ABRT", "ILL", "USR1"]))

    assert told(selection) == {2: "USR1"}
