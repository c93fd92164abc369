"""Who is told, how, and why the others are not: a pure function of a snapshot."""

from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import dataclass
from signal import Signals
from typing import Literal

from preemptd.model import Process, ProcessId
from preemptd.targets.roles import Part, Role, is_core, roles, topmost

LINK = "link"
Reach = Literal["auto", "main", "tree"]

# (of the whole job, of this machine, of the process itself): torchrun's, and Open MPI's.
_WORLDS = (
    ("WORLD_SIZE", "LOCAL_WORLD_SIZE", "RANK"),
    ("OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_LOCAL_SIZE", "OMPI_COMM_WORLD_RANK"),
)


@dataclass(frozen=True, slots=True)
class Policy:
    """What the user allows: ``--signal`` and ``--signal-target``."""

    signals: tuple[Signals, ...] = (Signals.SIGUSR1, Signals.SIGTERM)
    """In the order of preference: each process is told by the first one that it catches."""
    reach: Reach = "auto"
    """main: the command itself and nobody else. tree: every catcher, not only the topmost ones."""


@dataclass(frozen=True, slots=True)
class Choice:
    """The verdict on one process."""

    process: Process
    how: str
    """``link``, or the signal's name without SIG; empty: it is spared."""
    why: str
    """For people."""

    @property
    def is_core(self) -> bool:
        """Whether it serves W&B runs: not even killed, for it ends by itself when its work is done."""
        return is_core(self.process)


@dataclass(frozen=True, slots=True)
class Selection:
    """The verdict on every living process of a snapshot: each is in one of the first two."""

    told: tuple[Choice, ...]
    spared: tuple[Choice, ...]
    unreachable: tuple[Process, ...] = ()
    """What looks like training but catches nothing, with nobody told above or below it: its work will be lost."""


def select(
    processes: Iterable[Process],
    main_pid: int,
    policy: Policy,
    linked: Container[int],
    told_before: Container[ProcessId] = (),
) -> Selection:
    """Choose who is told.

    Told are the topmost processes that do the work and listen: what is below them is theirs to tell, unless it
    subscribed itself. Launchers, shells and helpers are never told, whatever they catch, except the command itself
    under ``main``.

    Args:
        processes: a snapshot; zombies are passed over.
        main_pid: the command that was started.
        policy: the user's wishes.
        linked: pids that subscribed over the link.
        told_before: who was told earlier answers for what is below it, even if it has put its handler away since.
    """
    living = {process.pid: process for process in processes if process.state not in "ZX"}
    parts = roles(tuple(living.values()), policy.signals, linked)
    hows = {pid: _how(process, policy.signals, linked) for pid, process in living.items()}
    before = {pid for pid, process in living.items() if process.id in told_before}
    able = before | {pid for pid, part in parts.items() if part.role is Role.WORK and hows[pid]}
    if policy.reach == "main":
        able = {main_pid} if _main_may_be_told(living.get(main_pid), parts, hows) else set()
    above = topmost(living, able)
    told, spared = [], []
    for pid, process in living.items():
        may = parts[pid].role is Role.WORK or policy.reach == "main"
        # Who subscribed itself is told itself: its parent cannot pass a message of the link on.
        itself = above[pid] == pid or policy.reach == "tree" or hows[pid] == LINK
        if pid in able and hows[pid] and may and itself:
            told.append(Choice(process, hows[pid], _why_told(hows[pid])))
        else:
            why = "told before" if pid in before else _why_spared(process, parts[pid], above[pid], hows[pid], policy)
            spared.append(Choice(process, "", why))
    return Selection(tuple(told), tuple(spared), _unreachable(living, parts, hows, able, above))


def other_nodes(environs: Iterable[Mapping[str, str]]) -> str | None:
    """Say that ranks of the job run on other machines, and what to do; None: all are here, or nobody can tell.

    Args:
        environs: the environments that the processes here were started with.
    """
    environs = tuple(environs)
    for world, local, rank in _WORLDS:
        for size in sorted({number for environ in environs if (number := _number(environ, world)) > 1}, reverse=True):
            job = [environ for environ in environs if _number(environ, world) == size]
            ranks = {environ[rank] for environ in job if rank in environ}
            here = max(len(ranks), *(_number(environ, local) for environ in job))
            if 0 < here < size:
                return (
                    f"this job has {size} ranks, and only {here} of them run here: if this machine alone is told, its "
                    f"ranks stop and the other {size - here} wait for them; let the ranks agree on a step at which "
                    "all of them save, or run preemptd on every node and raise a signal file there"
                )
    return None


def without(processes: Sequence[Process], pids: Container[int]) -> tuple[Process, ...]:
    """Drop the processes with *pids* and all that is below them."""
    above = topmost({process.pid: process for process in processes}, pids)
    return tuple(process for process in processes if above[process.pid] is None)


def without_own(processes: Sequence[Process], *ours: Container[int]) -> tuple[Process, ...]:
    """Drop our own commands (hooks, repairs), who are no training, and what one that has ended left in its group.

    Args:
        processes: a snapshot.
        ours: pids of our commands; from before and from after the snapshot, for they come and go.
    """
    own = {p.pid for p in processes if any(p.pid in pids or p.pgid in pids for pids in ours)}
    return without(processes, own) if own else tuple(processes)


def _number(environ: Mapping[str, str], name: str) -> int:
    """Read a count; 0 if there is none."""
    text = environ.get(name, "")
    return int(text) if text.isascii() and text.isdecimal() else 0


def _how(process: Process, signals: Sequence[Signals], linked: Container[int]) -> str:
    if process.pid in linked:
        return LINK
    return next((signum.name.removeprefix("SIG") for signum in signals if process.catches(signum)), "")


def _main_may_be_told(main: Process | None, parts: Mapping[int, Part], hows: Mapping[int, str]) -> bool:
    """Take the user's word that the command passes it on (a script with a trap, srun).

    Not for SIGTERM to a launcher, which then gives its ranks 30 seconds, nor for a W&B process.
    """
    if main is None or not hows[main.pid]:
        return False
    part = parts[main.pid]
    if part.role is Role.LAUNCHER:
        return hows[main.pid] != "TERM" or part.is_shell
    return part.role is Role.WORK


def _why_told(how: str) -> str:
    return "listens on the link" if how == LINK else f"handles SIG{how}"


def _why_spared(process: Process, part: Part, above: int | None, how: str, policy: Policy) -> str:
    if part.role is not Role.WORK:
        return part.why
    if above is not None and above != process.pid:
        return f"below pid {above}, which is told"
    if how:
        return "not the command itself"
    names = [signum.name for signum in policy.signals]
    if len(names) == 1:
        return f"does not handle {names[0]}"
    return f"handles neither {', '.join(names[:-1])} nor {names[-1]}"


def _unreachable(
    living: Mapping[int, Process],
    parts: Mapping[int, Part],
    hows: Mapping[int, str],
    able: Container[int],
    above: Mapping[int, int | None],
) -> tuple[Process, ...]:
    over_told = set()
    for pid in living:
        if pid in able:
            ancestor = living[pid].ppid
            while ancestor in living and ancestor not in over_told:
                over_told.add(ancestor)
                ancestor = living[ancestor].ppid
    lost = {
        pid
        for pid, part in parts.items()
        if part.role is Role.WORK and not hows[pid] and above[pid] is None and pid not in over_told
    }
    highest = topmost(living, lost)
    return tuple(living[pid] for pid in living if highest[pid] == pid)
