"""A running job, looked at as the daemon would if a notice came now. Nothing is sent to anybody."""

import os
from collections.abc import Container, Iterable, Sequence

from preemptd.diagnosis import containers, services, standing, steps
from preemptd.diagnosis.findings import JobDiagnosis, Seen
from preemptd.diagnosis.services import Services
from preemptd.diagnosis.surroundings import notes, of_containers, of_subscribers
from preemptd.diagnosis.unit import Unit, is_preemptd
from preemptd.diagnosis.watcher import Heard, Watcher, link_paths
from preemptd.errors import PreemptdError
from preemptd.model import Process
from preemptd.procfs import Tree, process_id
from preemptd.targets.reachability import in_short
from preemptd.targets.roles import topmost
from preemptd.targets.selection import Policy, without


def snapshot(pid: int) -> tuple[Process, ...]:
    """Look at *pid* and all that is below it, but for ourselves.

    Raises:
        PreemptdError: there is no such process.
    """
    found = standing.read(pid) if pid > 0 else None
    if found is not None and found.thread_of != pid:
        raise PreemptdError(f"{pid} is a thread of process {found.thread_of}: ask for that one")
    processes = without(Tree(pid, include_root=True).snapshot(), {os.getpid()}) if found and process_id(pid) else ()
    if not any(process.pid == pid for process in processes):
        raise PreemptdError(f"there is no process {pid}" if found is None else f"process {pid} has ended")
    return processes


def diagnose(pid: int, processes: Sequence[Process], heard: Heard, policy: Policy) -> JobDiagnosis:
    """Judge the job.

    Args:
        pid: its topmost process, or any other of it.
        processes: its `snapshot`.
        heard: what preemptds that may have to do with it say of themselves.
        policy: for what no preemptd watches.
    """
    links = link_paths(pid, processes)
    tasks = steps.tasks_of(processes)
    units = _units(pid, processes, tasks, list(map(Watcher.of, heard.answers)), links, policy)
    watchers = list({unit.watcher.pid: unit.watcher for unit in units if unit.watcher is not None}.values())
    insides = containers.look(processes, (process.pid for unit in units if unit.watcher for process in unit.processes))
    everything = (*processes, *tasks)
    below = {process.pid for process in everything}
    seen = [one for unit in units for one in unit.seen(below)]
    findings = [*heard.findings(links), *(finding for watcher in watchers for finding in watcher.findings())]
    for unit in units:
        findings += unit.findings(below, has_containers=bool(insides), alone=len(units) == 1)
    strangers = frozenset(pid for watcher in watchers for pid in watcher.linked) - {
        process.pid for unit in units for process in unit.processes
    }
    outside, of_outside = of_containers(insides, strangers, policy)
    marks = not watchers or any(watcher.marks for watcher in watchers)
    found = services.look(everything) if marks else Services()
    findings += [*of_outside, *of_subscribers(strangers), *found.findings, *notes(processes, _below(processes, seen))]
    order = _order(everything)
    return JobDiagnosis(
        pid,
        next(in_short(process) for process in processes if process.pid == pid),
        [watcher.answer for watcher in watchers],
        [*sorted(seen, key=lambda one: order[one.process.pid]), *outside],
        found.runs,
        findings,
        found.idle,
    )


def _units(
    pid: int,
    processes: Sequence[Process],
    tasks: Sequence[Process],
    watchers: Sequence[Watcher],
    links: Sequence[str],
    policy: Policy,
) -> list[Unit]:
    """Split the job by who watches it: mostly one preemptd, or none, watches all of it."""
    above = {pid, *standing.ancestors(pid)}
    seen = [watcher for watcher in watchers if watcher.speaks_our_pids]
    able = [watcher for watcher in seen if not watcher.is_daemon]
    for watcher in seen:
        if watcher.main_pid in above:
            whole = Unit(snapshot(watcher.root), watcher.main_pid, policy, watcher)
            return [whole, *steps.units_of(tasks, able, policy, watcher)]
    if (outer := steps.covering(pid, able)) is not None:
        return steps.units_of(processes, (), policy, outer)
    by_pid = {process.pid: process for process in processes}
    inside = [watcher for watcher in able if watcher.main_pid in by_pid]
    tops = topmost(by_pid, {watcher.root for watcher in inside})
    units = [
        Unit(tuple(one for one in processes if tops[one.pid] == watcher.root), watcher.main_pid, policy, watcher)
        for watcher in inside
    ]
    rest = tuple(process for process in processes if tops[process.pid] is None)
    looked_after, rest = _targets(rest, above, seen, {watcher.root for watcher in inside}, policy)
    units += looked_after
    silent = "" if units else _silent(above | by_pid.keys(), links, watchers)
    if not silent and steps.agent_beside(pid):
        silent = "preemptd's step on this node"
    units += [Unit(rest, pid, policy, None, silent)] if rest else []
    outer = next((watcher for watcher in inside if watcher.nodes), None)
    return [*units, *steps.units_of(tasks, able, policy, outer)]


def _targets(
    processes: tuple[Process, ...],
    above: Container[int],
    watchers: Iterable[Watcher],
    others: Container[int],
    policy: Policy,
) -> tuple[list[Unit], tuple[Process, ...]]:
    """Give the processes to the daemons whose targets they belong to; return what is left.

    Args:
        processes: those that no preemptd has started.
        above: pid of the job, and those above it.
        watchers: the daemons are among them.
        others: what is at or below these pids is another preemptd's.
        policy: as in `diagnose`.
    """
    units: list[Unit] = []
    for daemon in watchers:
        heads = daemon.heads if daemon.is_daemon else frozenset()
        if (head := next((pid for pid in sorted(heads) if pid in above), None)) is not None:
            return [*units, Unit(without(snapshot(head), others), head, policy, daemon)], ()
        tops = topmost({process.pid: process for process in processes}, heads)
        if own := tuple(process for process in processes if tops[process.pid] is not None):
            units.append(Unit(own, own[0].pid, policy, daemon))
            processes = tuple(process for process in processes if tops[process.pid] is None)
    return units, processes


def _below(processes: Sequence[Process], seen: Sequence[Seen]) -> list[Seen]:
    """Leave out the ranks: those on other nodes are told as well."""
    pids = {process.pid for process in processes}
    return [one for one in seen if one.process.pid in pids]


def _silent(pids: Iterable[int], links: Sequence[str], watchers: Iterable[Watcher]) -> str:
    """Name a preemptd that has to do with the job, and cannot be asked about it; empty: there is none."""
    for pid in sorted(pids):
        if is_preemptd(pid):
            return f"preemptd {pid}"
    linked = (str(watcher.answer["link"]) for watcher in watchers if not watcher.speaks_our_pids)
    return next((f"the preemptd at {link}" for link in linked if link in links), "")


def _order(processes: Sequence[Process]) -> dict[int, int]:
    """Count the processes so that each comes right after its parent and its parent's earlier children."""
    children: dict[int, list[Process]] = {}
    for process in processes:
        children.setdefault(process.ppid, []).append(process)
    pids = {process.pid for process in processes}
    left = sorted((one for one in processes if one.ppid not in pids), key=lambda one: -one.start)
    order: dict[int, int] = {}
    while left:
        process = left.pop()
        if process.pid not in order:
            order[process.pid] = len(order)
            left += sorted(children.get(process.pid, []), key=lambda one: (-one.start, -one.pid))
    return {process.pid: order.get(process.pid, len(order)) for process in processes}
