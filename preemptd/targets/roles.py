"""What part a process plays in a training: does the work, launches it, or helps with it. Pure."""

import os
from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from signal import Signals

from preemptd.model import Process

_SHELLS = frozenset({"ash", "bash", "csh", "dash", "fish", "ksh", "mksh", "rbash", "sh", "tcsh", "zsh"})
# Programs that start others and pass signals on late, twice, or not at all; for most of them SIGUSR1 is deadly.
_LAUNCHERS = frozenset(
    {
        *("accelerate", "accelerate-launch", "colossalai", "composer", "deepspeed", "fabric", "ft_launcher"),
        *("horovodrun", "lightning", "torchrun", "torchx", "wandb"),
        *("conda", "hatch", "mamba", "micromamba", "pdm", "pipenv", "pixi", "poetry", "rye", "uv", "uvx"),
        *("aprun", "hydra_pmi_proxy", "ibrun", "jsrun", "mpiexec", "mpiexec.hydra", "mpirun", "orted", "orterun"),
        *("prte", "prted", "prterun", "slurmstepd", "srun"),
        *("catatonit", "docker-init", "dumb-init", "s6-svscan", "s6-supervise", "supervisord", "tini", "tini-static"),
        *("apptainer", "bwrap", "conmon", "docker", "enroot", "nsenter", "podman", "runc", "singularity", "unshare"),
        # Their kernels do the work. By `python -m` they are jupyterlab and notebook.
        *("jupyter-lab", "jupyter-notebook", "jupyter-server", "jupyterhub-singleuser", "jupyterlab", "notebook"),
        *("dtach", "login", "screen", "sshd", "sshd-session", "su", "systemd", "tmux", "zellij"),
        *("make", "nsys", "parallel", "preemptd", "script", "setsid", "snakemake", "ssh", "sudo", "time"),
        *("timeout", "xargs"),
    }
)
# `python -m NAME`, or the file that module is.
_LAUNCHER_MODULES = {
    "accelerate.commands.accelerate_cli": "accelerate",
    "accelerate.commands.launch": "accelerate",
    "deepspeed.launcher.launch": "deepspeed",
    "deepspeed.launcher.runner": "deepspeed",
    "torch.distributed.launch": "torchrun",
    "torch.distributed.run": "torchrun",
}
_CORES = frozenset({"wandb-core", "wandb-service"})
# rsync and dbus-daemon die of a signal although they catch it, editors and gpg-agent act on it; tensorboard catches
# SIGTERM; the others only clutter the reports.
_HELPERS = frozenset(
    {
        *("awk", "cat", "grep", "sed", "sleep", "ssh-agent", "tail", "tee", "ts"),
        *("gpu_stats", "nvidia-smi", "rsync", "tensorboard", "wandb-symon", "wandb-xpu"),
        *("dbus-broker", "dbus-broker-lau", "dbus-broker-launch", "dbus-daemon", "gpg-agent"),
        *("emacs", "emacs-gtk", "emacs-nox", "nano", "nvim", "vi", "vim", "vim.basic", "vim.nox", "vim.tiny"),
    }
)
# In the code behind `python -c`; loky has trackers of its own by these names.
_HELPER_CODE = ("resource_tracker", "semaphore_tracker", "multiprocessing.forkserver")
_WATCHERS = frozenset({"daemon", "rehearse", "watch"})
_OPTIONS_WITH_VALUE = frozenset({"-W", "-X", "--check-hash-based-pycs"})
_REAL_TIME = sum(1 << (signum - 1) for signum in range(35, 65))
_CRASHES = (Signals.SIGSEGV, Signals.SIGBUS)


class Role(Enum):
    WORK = "work"
    LAUNCHER = "launcher"
    HELPER = "helper"


@dataclass(frozen=True, slots=True)
class Part:
    """A role, and in words for people why it is that one."""

    role: Role
    why: str = ""
    is_shell: bool = False


def is_core(process: Process) -> bool:
    """Say whether *process* serves W&B runs: wandb-core, or the Python service of older versions."""
    return not _CORES.isdisjoint(_names(process))


def is_agent(cmdline: Sequence[str]) -> bool:
    """Say whether this command line is that of ``wandb agent``, which starts the runs of a sweep."""
    return _subcommand(cmdline, "wandb") == "agent"


def is_preemptd(cmdline: Sequence[str]) -> bool:
    """Say whether this is a command of ours."""
    return _subcommand(cmdline, "preemptd") is not None


def is_watcher(cmdline: Sequence[str]) -> bool:
    """Say whether this is a preemptd that tells what is below it."""
    return _subcommand(cmdline, "preemptd") in _WATCHERS


def _subcommand(cmdline: Sequence[str], program: str) -> str | None:
    """Find the first argument of *program*, which may be a Python script; None: this runs something else."""
    names = [os.path.basename(word) for word in cmdline]
    if program not in names:
        return None
    runs_it = names[0] == program or (names[0].startswith(("python", "pypy")) and _script(cmdline) == program)
    return "".join(names[names.index(program) + 1 :][:1]) if runs_it else None


def roles(processes: Sequence[Process], signals: Iterable[Signals], linked: Container[int] = ()) -> dict[int, Part]:
    """Find the part of each process, by pid.

    Args:
        processes: a snapshot.
        signals: those that someone may be told by; they tell a forked rank from a forked helper.
        linked: pids that subscribed over the link: no mere copies of their parents.
    """
    by_pid = {process.pid: process for process in processes}
    cores = frozenset(process.pid for process in processes if is_core(process))
    core_groups = frozenset(pid for pid in cores if by_pid[pid].pgid == pid)
    core_above = topmost(by_pid, cores)
    signals = tuple(signals)
    found = {}
    for process in processes:
        if process.pid in cores:
            found[process.pid] = Part(Role.HELPER, "wandb-core")
        elif core_above[process.pid] is not None or process.pgid in core_groups:
            found[process.pid] = Part(Role.HELPER, "belongs to wandb-core")
        else:
            listens = process.pid in linked
            found[process.pid] = _by_name(process) or _by_nature(process, by_pid.get(process.ppid), signals, listens)
    return found


def topmost(processes: Mapping[int, Process], chosen: Container[int]) -> dict[int, int | None]:
    """For each pid, find the highest of the *chosen* at or above it in the tree."""
    found: dict[int, int | None] = {}
    for pid in processes:
        trail: dict[int, None] = {}
        # A snapshot is not taken at one instant: with pids used again it may hold a circle.
        while pid in processes and pid not in found and pid not in trail:
            trail[pid] = None
            pid = processes[pid].ppid  # noqa: PLW2901 - the walk starts there
        above = found.get(pid)
        for below in reversed(trail):
            above = below if above is None and below in chosen else above
            found[below] = above
    return found


def _by_name(process: Process) -> Part | None:
    names = _names(process)
    if shell := names & _SHELLS:
        return Part(Role.LAUNCHER, f"{min(shell)}, a shell", is_shell=True)
    if launcher := names & _LAUNCHERS:
        return Part(Role.LAUNCHER, f"{min(launcher)}, the launcher")
    if helper := names & _HELPERS:
        return Part(Role.HELPER, min(helper))
    # Newer torch names its workers' main threads.
    if process.comm.startswith("pt_data_worker"):
        return Part(Role.HELPER, "DataLoader worker")
    return None


def _by_nature(process: Process, parent: Process | None, signals: Sequence[Signals], listens: bool) -> Part:
    """Judge a process that no name gives away, by its parent and by the signals that it catches."""
    copy = parent is not None and bool(process.cmdline) and _program(process) == _program(parent)
    spawned = "--multiprocessing-fork" in process.cmdline or "multiprocessing.spawn" in _code(process)
    if (copy or spawned) and (listens or _has_own_handler(process, parent if copy else None, signals)):
        return Part(Role.WORK)
    why = ""
    if copy:
        why = f"fork of pid {process.ppid}"
    elif spawned and _may_be_data_worker(process):
        why = "DataLoader worker"
    elif tracker := next((name for name in _HELPER_CODE if name in _code(process)), ""):
        why = tracker.rpartition(".")[2]
    elif process.caught & _REAL_TIME == _REAL_TIME and not _is_python(process):
        # Go: it then does what the default action would have done, or nothing.
        why = "its runtime catches every signal"
    if why:
        return Part(Role.HELPER, why)
    if process.comm == "pt_elastic":
        return Part(Role.LAUNCHER, "torchrun, the launcher")
    return Part(Role.WORK)


def _has_own_handler(process: Process, parent: Process | None, signals: Sequence[Signals]) -> bool:
    """Say whether a child of multiprocessing installed a handler by itself: then it is a rank, no helper.

    What is blocked does not count: a child between vfork and exec blocks everything. Nor does SIGTERM in what may be
    a DataLoader worker: torch's handler there ends the worker, and the death of a worker ends the training.
    """
    if _may_be_data_worker(process):
        signals = [signum for signum in signals if signum != Signals.SIGTERM]
    inherited = parent.caught if parent else 0
    return any((process.caught & ~inherited) >> (signum - 1) & 1 for signum in signals)


def _may_be_data_worker(process: Process) -> bool:
    """Say whether it has the handlers of a DataLoader worker (BUS, FPE, SEGV, TERM). faulthandler adds the same."""
    return all(process.caught >> (signum - 1) & 1 for signum in (*_CRASHES, Signals.SIGTERM))


def _program(process: Process) -> tuple[str, tuple[str, ...]]:
    return process.exe, process.cmdline


def _names(process: Process) -> set[str]:
    """Collect what a process may be known by: its own name, its program's, its Python script's or module's."""
    names = {process.comm.partition("(")[0], os.path.basename(process.exe)}
    if process.cmdline:
        names.add(os.path.basename(process.cmdline[0]).lstrip("-").partition("(")[0])
    if _is_python(process):
        names.add(_script(process.cmdline))
    return names


def _is_python(process: Process) -> bool:
    return os.path.basename(process.exe or "".join(process.cmdline[:1])).startswith(("python", "pypy"))


def _script(cmdline: Sequence[str]) -> str:
    """Find what a Python command line runs: the script's name, the launcher that a module is, or the module."""
    kind, word = _argument(cmdline)
    if kind == "-c" or not word:
        return ""
    dotted = word if kind == "-m" else word.removesuffix(".py").replace("/", ".")
    for module, name in _LAUNCHER_MODULES.items():
        if f".{dotted}".endswith(f".{module}"):
            return name
    return dotted.removesuffix(".__main__") if kind == "-m" else os.path.basename(word)


def _code(process: Process) -> str:
    kind, word = _argument(process.cmdline)
    return word if kind == "-c" else ""


def _argument(cmdline: Sequence[str]) -> tuple[str, str]:
    """Split off Python's own options: -c and its code, -m and its module, or an empty word and the script."""
    words = iter(cmdline[1:])
    for word in words:
        if word in _OPTIONS_WITH_VALUE:
            next(words, None)
        elif word.startswith("--") or word == "-":
            continue
        elif word.startswith("-"):
            flags = word[1:]
            for place, flag in enumerate(flags):
                if flag in "WX":
                    break
                if flag in "cm":  # the rest of the word, or the next one: `-uc CODE`, `-mNAME`
                    return f"-{flag}", flags[place + 1 :] or next(words, "")
        else:
            return "", word
    return "", ""
