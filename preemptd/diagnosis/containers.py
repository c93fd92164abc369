"""Containers that a client in the job (docker run) has started: their processes may hang elsewhere in the tree.

The control group of a process names its container, by 64 hexadecimal digits: docker-ID.scope, /docker/ID, libpod-ID.
docker's are children of a daemon. podman's belong to conmon, which is left to the nearest subreaper: below
`preemptd watch` that is preemptd.
"""

import os
import re
from collections.abc import Container as Holds
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from preemptd.model import Process
from preemptd.procfs import Tree, process_id

_CLIENTS = frozenset({"docker", "nerdctl", "podman"})
_VERBS = frozenset({"attach", "compose", "exec", "run", "start"})
_INSTANCES = frozenset({"apptainer", "singularity"})
_ID = re.compile(r"(?<![0-9a-f])[0-9a-f]{64}(?![0-9a-f])")
_STARTS_WITHIN = 60
"""Seconds from the start of the client to that of its container, which may have to be fetched first."""
_SHORT_ID = re.compile(r"[0-9a-f]{12,64}")


@dataclass(frozen=True, slots=True)
class Inside:
    """The processes of the container that *client* waits for."""

    client: Process
    processes: tuple[Process, ...]
    """Empty: they were not found on this machine, or cannot be told from others."""


def is_client(process: Process) -> bool:
    """Say whether *process* only waits for work that a daemon does elsewhere."""
    if not process.cmdline:
        return False
    program, words = os.path.basename(process.cmdline[0]), process.cmdline[1:]
    if program in _INSTANCES:
        return "instance" in words[:3]
    return program in _CLIENTS and not _VERBS.isdisjoint(words[:6])


def look(processes: Sequence[Process], watched: Iterable[int] = ()) -> tuple[Inside, ...]:
    """Find the containers of the clients among *processes*, but for those that hang in the tree after all.

    Args:
        processes: the job's.
        watched: pids in the trees of its preemptds.
    """
    clients = [process for process in processes if is_client(process)]
    if not clients:
        return ()
    here = {process.pid for process in processes}.union(watched)
    containers = _by_container()
    firsts = {name: first for name, pids in containers.items() if (first := _first(pids)) is not None}
    names = {client.pid: _name_of(client, firsts) for client in clients}
    return tuple(
        Inside(client, _tree(name, firsts, containers))
        for client in clients
        if (name := names[client.pid]) is None or here.isdisjoint(containers[name])
    )


def _by_container() -> dict[str, set[int]]:
    found: dict[str, set[int]] = {}
    for name in os.listdir("/proc"):
        if name.isdecimal() and (ids := _ID.findall(_text(f"/proc/{name}/cgroup"))):
            found.setdefault(ids[-1], set()).add(int(name))
    return found


def _first(pids: Iterable[int]) -> Process | None:
    """Find the oldest one, which the container was made for."""
    ids = sorted((found for pid in pids if (found := process_id(pid))), key=lambda process: process.start)
    snapshot = Tree(ids[0].pid, include_root=True).snapshot() if ids else ()
    return next((process for process in snapshot if process.pid == ids[0].pid), None)


def _name_of(client: Process, firsts: Mapping[str, Process]) -> str | None:
    """Find out which container *client* speaks of: by its --cidfile, its arguments, or as the only new one."""
    words = client.cmdline
    if written := _text(_cidfile(client)).strip():
        return written if written in firsts else None
    for word in words:
        if _SHORT_ID.fullmatch(word) and (found := [name for name in firsts if name.startswith(word)]):
            return found[0]
    soon = client.start + _STARTS_WITHIN * os.sysconf("SC_CLK_TCK")
    since = {name: first for name, first in firsts.items() if client.start <= first.start <= soon}
    same = [name for name, first in since.items() if first.cmdline and words[-len(first.cmdline) :] == first.cmdline]
    found = same or list(since)
    return found[0] if len(found) == 1 else None


def _cidfile(client: Process) -> str:
    words = client.cmdline
    for word, following in zip(words, (*words[1:], ""), strict=True):
        if word == "--cidfile" or word.startswith("--cidfile="):
            path = word.partition("=")[2] or following
            return f"/proc/{client.pid}/root{path}" if path.startswith("/") else f"/proc/{client.pid}/cwd/{path}"
    return ""


def _tree(name: str | None, firsts: Mapping[str, Process], containers: Mapping[str, Holds[int]]) -> tuple[Process, ...]:
    if name is None:
        return ()
    below = Tree(firsts[name].pid, include_root=True).snapshot()
    return tuple(process for process in below if process.pid in containers[name] or process.ppid in containers[name])


def _text(path: str) -> str:
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.read(65536)
    except OSError:
        return ""
