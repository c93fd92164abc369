"""Targets that are found by what they run, among the processes of our own user."""

import os
import re
from collections.abc import Container, Iterable, Sequence

from preemptd.masks import read
from preemptd.model import Process, ProcessId
from preemptd.procfs import Details, Stat
from preemptd.targets.census import GONE_STATES, Census, Command, CommandLines, belongs_to_us, id_of
from preemptd.targets.roles import is_core, is_preemptd
from preemptd.targets.ways import Found, How

# The command line of such a server is that of whoever came first, and everybody's work is below it.
_SESSION_SERVERS = frozenset({"screen", "tmux: server"})
_NSPID = re.compile(rb"^NSpid:.*\s(\d+)$", re.MULTILINE)
_SERVICE_TITLE = re.compile(r"wandb-service\(\d+-(\d+)-")


class Matches:
    """Who matches which of the *patterns*: tried once for each program that is run, however many looks there are."""

    def __init__(self, patterns: Iterable[str], commands: CommandLines) -> None:
        self._patterns = [(pattern, re.compile(pattern)) for pattern in patterns]
        self._commands = commands
        self._known: dict[ProcessId, tuple[Command, tuple[str, ...]]] = {}
        self._found: dict[str, list[int]] = {}

    def look(self, census: Census, spared: Container[int]) -> None:
        """Try all of them; *spared* are never found, whatever they run."""
        known = {}
        found: dict[str, list[int]] = {}
        for stat in census if self._patterns else ():
            process, command = id_of(stat), self._commands.of(stat)
            before = self._known.get(process)
            known[process] = entry = before if before and before[0] is command else (command, self._try(stat, command))
            # A program may have changed its user since.
            if entry[1] and stat.pid not in spared and stat.state not in GONE_STATES and belongs_to_us(stat.pid):
                for pattern in entry[1]:
                    found.setdefault(pattern, []).append(stat.pid)
        self._known, self._found = known, found

    def of(self, pattern: str) -> Sequence[int]:
        return self._found.get(pattern, ())

    def _try(self, stat: Stat, command: Command) -> tuple[str, ...]:
        if not command.words or stat.comm in _SESSION_SERVERS or is_preemptd(command.words):
            return ()
        # Other users shall not choose what our expressions are tried on: some take for ever.
        if not belongs_to_us(stat.pid):
            return ()
        text = " ".join(command.words)
        return tuple(pattern for pattern, regex in self._patterns if regex.search(text))


class ByMatch:
    """Whoever runs what *pattern* describes."""

    how: How = "match"
    only_heads = False

    def __init__(self, pattern: str, matches: Matches) -> None:
        self._pattern = pattern
        self._matches = matches

    def find(self, _census: Census) -> Found:
        pids = self._matches.of(self._pattern)
        return Found(pids, "" if pids else f"no process of uid {os.geteuid()} matches {self._pattern!r}")

    def close(self) -> None:
        """Nothing is held."""


class ByRuns:
    """Whoever has W&B runs: the parents of wandb-cores."""

    how: How = "runs"
    only_heads = False

    def __init__(self) -> None:
        self._details = Details()

    def find(self, census: Census) -> Found:
        named = [stat for stat in census if stat.comm.startswith(("wandb-core", "wandb-service"))]
        cores = [core for core in self._details.of(named) if is_core(core) and core.state not in GONE_STATES]
        pids = {core.pid for core in cores}
        # A child of a core is a copy that has not become its program yet.
        owners = {core.ppid for core in cores if core.ppid not in pids and _is_owner(core.ppid, core, census)}
        return Found(sorted(owners), "" if owners else f"no process of uid {os.geteuid()} has a W&B run")

    def close(self) -> None:
        """Nothing is held."""


def _is_owner(pid: int, core: Process, census: Census) -> bool:
    """Say whether *pid* started *core*, and has not merely adopted it; both belong to us."""
    claimed = _claimed_owner(core.cmdline or (core.comm,))
    if claimed is None:
        started_it = pid > 1
    else:
        # In a container the number is the one from there.
        match = _NSPID.search(read(f"/proc/{pid}/status"))
        started_it = claimed in {pid, int(match[1]) if match else pid}
    return started_it and census.id(pid) is not None and belongs_to_us(pid) and belongs_to_us(core.pid)


def _claimed_owner(cmdline: Sequence[str]) -> int | None:
    """Read who started a wandb-core, as it was told: ``--pid N``, or in the title of the service of wandb 0.17."""
    title = _SERVICE_TITLE.match(os.path.basename(cmdline[0]))
    word = title[1] if title else "".join(cmdline[cmdline.index("--pid") + 1 :][:1]) if "--pid" in cmdline else ""
    return int(word) if word.isascii() and word.isdecimal() else None
