"""Nouns that several parts of the daemon share."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, order=True)
class ProcessId:
    """A process that cannot be mistaken for a later one with the same pid (within one machine life)."""

    pid: int
    start: int
    """Start time in clock ticks since boot: field 22 of /proc/PID/stat."""


@dataclass(frozen=True, slots=True)
class Process:
    """One process of a snapshot of /proc."""

    pid: int
    start: int
    ppid: int
    pgid: int
    state: str
    """One letter, as /proc/PID/stat has it; Z is a zombie."""
    comm: str
    """At most 15 characters, set by the program itself (``pt_elastic``, ``pt_data_worker``)."""
    cmdline: tuple[str, ...] = ()
    exe: str = ""
    """Path of the program; empty when it may not be read."""
    caught: int = 0
    """SigCgt as a bit mask: bit n-1 is set when the process has a handler for signal n."""
    blocked: int = 0
    """SigBlk of the main thread, less what another thread would die of: who blocks a signal waits in sigwait()."""
    ignored: int = 0
    """SigIgn."""

    @property
    def id(self) -> ProcessId:
        return ProcessId(self.pid, self.start)

    def catches(self, signum: int) -> bool:
        """Say whether *signum* would reach code of the process instead of its default action."""
        return bool((self.caught | self.blocked) >> (signum - 1) & 1)


@dataclass(frozen=True, slots=True)
class Run:
    """A W&B run that a target has open."""

    run_id: str
    core_pid: int
    """The wandb-core (or wandb-service) that serves it."""
    owner_pid: int
    """The process that called wandb.init: the parent of that wandb-core."""
    directory: str
    """Its run-* directory as wandb-core names it; empty when unknown."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a target ended."""

    status: int
    """Exit status as a shell says it: 128+n after signal n."""
    known: bool = True
    """False: the process was not our child and the kernel could not say; *status* is then a guess."""
