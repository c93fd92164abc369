"""Snapshots written by hand, and what a selection made of them."""

from collections.abc import Sequence
from signal import Signals

from preemptd.model import Process
from preemptd.targets.selection import Policy, Selection, select

AUTO = Policy()
MAIN = Policy(reach="main")
TREE = Policy(reach="tree")
WORKER = ("TERM", "SEGV", "BUS", "FPE")
"""What a DataLoader worker catches."""
SPAWNED = "python -c from~multiprocessing.spawn~import~spawn_main;spawn_main(tracker_fd=5) --multiprocessing-fork"


def mask(signals: Sequence[str | int]) -> int:
    numbers = {signum if isinstance(signum, int) else Signals[f"SIG{signum}"] for signum in signals}
    return sum(1 << (signum - 1) for signum in numbers)


def process(
    pid: int,
    ppid: int,
    command: str,
    catches: Sequence[str | int] = (),
    *,
    comm: str = "",
    exe: str = "",
    blocks: Sequence[str | int] = (),
    state: str = "S",
    pgid: int = 0,
) -> Process:
    """Make a process; `~` in *command* is a blank within a word."""
    cmdline = tuple(word.replace("~", " ") for word in command.split())
    name = cmdline[0].rpartition("/")[2]
    exe = exe or ("/usr/bin/python3.11" if name.startswith("python") else f"/usr/bin/{name}")
    return Process(pid, 1000 + pid, ppid, pgid, state, comm or name[:15], cmdline, exe, mask(catches), mask(blocks))


def told(selection: Selection) -> dict[int, str]:
    return {choice.process.pid: choice.how for choice in selection.told}


def spared(selection: Selection) -> dict[int, str]:
    return {choice.process.pid: choice.why for choice in selection.spared}


def auto(*processes: Process) -> Selection:
    return select(processes, processes[0].pid, AUTO, ())
