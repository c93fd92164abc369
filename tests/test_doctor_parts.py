"""The parts of `preemptd doctor` that can be told by their words alone."""

import pytest

from preemptd.diagnosis.containers import is_client
from preemptd.diagnosis.standing import parse
from preemptd.diagnosis.unit import disposition
from preemptd.discretion import discreet
from preemptd.targets.reachability import brief
from tests.snapshots import process

HEX = "0123456789abcdef0123456789abcdef01234567"
LINUX = """Name:\tpython
Tgid:\t42
Pid:\t42
PPid:\t7
Uid:\t1000\t1001\t1002\t1003
NSpid:\t42\t1
SigCgt:\t0000000000000200
CapEff:\t0000000000000000
"""
GVISOR = """Name:\tpython
State:\tS (sleeping)
Tgid:\t42
Pid:\t42
PPid:\t7
TracerPid:\t0
FDSize:\t4
VmSize:\t1000 kB
CapEff:\t00000000a80405fb
Seccomp:\t0
"""


def test_the_status_of_a_process_says_whose_it_is_and_where() -> None:
    found = parse(LINUX)

    assert (found.thread_of, found.parent, found.uids, found.pid_inside) == (42, 7, (1000, 1001, 1002), 1)
    assert found.shows_signals is True
    assert found.may_signal_all is False


def test_a_kernel_that_says_nothing_of_signals_is_not_believed_to_have_none() -> None:
    found = parse(GVISOR)

    assert (found.shows_signals, found.uids, found.pid_inside) == (False, (), None)
    assert disposition(process(42, 7, "python train.py"), 10, found.shows_signals) == "unknown"


@pytest.mark.parametrize(
    ("sender", "target", "may"),
    [
        ((1000, 1000, 1000), (1000, 1000, 1000), True),
        ((1000, 1000, 1000), (0, 0, 0), False),
        ((1000, 0, 0), (0, 0, 0), True),
        ((1000, 1000, 1000), (0, 1000, 0), False),
        ((1000, 1000, 1000), (0, 0, 1000), True),
    ],
)
def test_who_may_signal_whom_is_the_rule_of_kill_2(sender: tuple[int, ...], target: tuple[int, ...], may: bool) -> None:
    one, other = (parse(f"Uid:\t{' '.join(map(str, uids))} 0\n") for uids in (sender, target))

    assert one.may_signal(other) is may


def test_the_capability_to_signal_anybody_counts_more_than_the_user() -> None:
    other = parse("Uid:\t7 7 7 7\n")

    assert parse("Uid:\t0 0 0 0\nCapEff:\t0000000000000020\n").may_signal(other) is True
    assert parse("Uid:\t0 0 0 0\nCapEff:\t00000000000001df\n").may_signal(other) is False


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("docker run -e WANDB_API_KEY=hush image", "docker run -e WANDB_API_KEY=*** image"),
        ("train.py --wandb-key hush --lr 1", "train.py --wandb-key *** --lr 1"),
        ("train.py --hf_token=hush", "train.py --hf_token=***"),
        (
            "bash -c export WANDB_API_KEY='hush hush'; python train.py",
            "bash -c export WANDB_API_KEY=***; python train.py",
        ),
        ("git clone https://user:hush@example.org/x", "git clone https://***@example.org/x"),
        (f"train.py {HEX} local-{HEX}", "train.py *** ***"),
        ("train.py wandb_v1_hushHUSH", "train.py ***"),
        ('curl -d {"password":"hush"}', 'curl -d {"password":***}'),
        (
            "train.py --tokenizer bert --keys-per-node 3 --monkey 5",
            "train.py --tokenizer bert --keys-per-node 3 --monkey ***",
        ),
        ("python train.py --steps 10", "python train.py --steps 10"),
    ],
)
def test_what_may_be_a_secret_is_not_shown(text: str, shown: str) -> None:
    assert discreet(text) == shown


def test_a_process_is_named_by_its_program_and_what_follows() -> None:
    assert brief(process(1, 0, "/usr/bin/python train.py")) == "python train.py"
    assert len(brief(process(1, 0, f"/usr/bin/python {'x' * 500}"))) == 60


@pytest.mark.parametrize(
    ("command", "is_one"),
    [
        ("docker run image python train.py", True),
        ("/usr/bin/docker --context x run image", True),
        ("docker exec -it name python train.py", True),
        ("docker compose up", True),
        ("docker ps", False),
        ("podman run image", True),
        ("apptainer instance start x.sif name", True),
        ("apptainer exec x.sif python train.py", False),
        ("python train.py docker run", False),
    ],
)
def test_a_client_of_a_container_daemon_is_known_by_its_command(command: str, is_one: bool) -> None:
    assert is_client(process(1, 0, command)) is is_one
