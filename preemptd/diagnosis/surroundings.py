"""What may cost work though the processes themselves are in order: containers, other machines, agents, time limits."""

import os
from collections.abc import Iterable, Iterator, Sequence

from preemptd.diagnosis import standing
from preemptd.diagnosis.containers import Inside
from preemptd.diagnosis.findings import Finding, Seen
from preemptd.diagnosis.unit import seen
from preemptd.model import Process
from preemptd.procfs import environ
from preemptd.targets.reachability import brief
from preemptd.targets.roles import Role, is_agent, roles
from preemptd.targets.selection import Choice, Policy, other_nodes, select

SHUTDOWN_TIMEOUT = "TORCH_ELASTIC_SHUTDOWN_TIMEOUT"
_FIRST_PSEUDO_PID = 2**30
_INSIDE = (
    "put preemptd inside (docker run IMAGE preemptd watch -- COMMAND), or let the script `import preemptd`, with the"
    " link's directory mounted and PREEMPTD_LINK set"
)


def of_containers(
    insides: Iterable[Inside], strangers: frozenset[int], policy: Policy
) -> tuple[list[Seen], list[Finding]]:
    """Describe what runs in the containers, and whether it would be lost.

    Args:
        insides: clients, and the containers that they wait for.
        strangers: pids that subscribed over the link, but are not in the tree.
        policy: says which signals are of interest.
    """
    found: list[Seen] = []
    findings = []
    for inside in insides:
        pid = inside.client.pid
        found += _seen(inside, policy, strangers)
        listens = any(one.how for one in found) or any(stranger >= _FIRST_PSEUDO_PID for stranger in strangers)
        where = ", ".join(f"pid {process.pid}" for process in inside.processes[:5]) or "not found on this machine"
        text = f"pid {pid} ({brief(inside.client)}) only waits for a container ({where})"
        if listens:
            findings.append(Finding("container", f"{text}, from which somebody listens on the link", pid=pid))
        else:
            findings.append(Finding("container", f"{text}: nothing in it would be told", _INSIDE, pid, loses=True))
    return found, findings


def _seen(inside: Inside, policy: Policy, strangers: frozenset[int]) -> Iterator[Seen]:
    if not inside.processes:
        return
    parts = roles(inside.processes, policy.signals, strangers)
    selection = select(inside.processes, inside.processes[0].pid, policy, strangers)
    for choice in (*selection.told, *selection.spared):
        process = choice.process
        if choice.how and process.pid not in strangers:
            why = f"{choice.why}, but lives in a container of pid {inside.client.pid}'s, out of reach"
            choice = Choice(process, "", why)  # noqa: PLW2901 - what the daemon does, not what it would do nearer by
        role = parts[process.pid].role if process.pid in parts else Role.WORK
        yield seen(process, role, standing.read(process.pid), policy, choice, process.pid in strangers)


def of_subscribers(strangers: Iterable[int]) -> Iterator[Finding]:
    for pid in sorted(strangers):
        who = f"pid {pid}" if pid < _FIRST_PSEUDO_PID else "a process in another pid namespace"
        text = f"{who} listens on the link from outside of the tree: it would be told"
        yield Finding("subscriber", text, pid=pid if pid < _FIRST_PSEUDO_PID else None)


def notes(processes: Sequence[Process], found: Sequence[Seen]) -> Iterator[Finding]:
    """Say what cannot be seen from here, and what a launcher or an agent would do."""
    work = [one.process.pid for one in found if one.role == Role.WORK.value]
    if text := other_nodes([environ(pid) for pid in work]):
        yield Finding("other-nodes", text, "docs/troubleshooting.md, The job has ranks on other machines")
    for one in found:
        pid = one.process.pid
        if is_agent(one.process.cmdline):
            text = f"pid {pid} is a W&B agent: it would be killed after its training was told: no other run is taken"
            yield Finding("sweep-agent", text, "start it again elsewhere, or by a supervisor: exit status 75", pid)
        if one.why.startswith("torchrun") and SHUTDOWN_TIMEOUT not in environ(pid):
            text = f"torchrun (pid {pid}) kills its ranks 30 s after a SIGTERM from anybody"
            yield Finding("torchrun-timeout", text, f"{SHUTDOWN_TIMEOUT}=120; `preemptd watch` sets it", pid)
    foreign = [process for process in processes if not process.exe and process.cmdline]
    if foreign and os.geteuid() != 0:
        pids = ", ".join(str(process.pid) for process in foreign[:5])
        yield Finding("hidden", f"not all of pid {pids} may be looked at by this user", "ask as their user, or as root")
