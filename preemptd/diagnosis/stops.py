"""What the end of the systemd unit that a job runs in does to it: a stop, a logout, a shutdown of the host."""

import os
import subprocess
from collections.abc import Iterator

from preemptd.diagnosis.findings import Finding, JobDiagnosis
from preemptd.targets.roles import Role

BOOTED = "/run/systemd/system"
ANSWER_WITHIN = 2.0
"""Seconds for one question; it takes 10 ms."""
_ADVICE = "preemptd-watch@.service, or KillMode=mixed in a unit of its own (docs/systemd.md)"
_LOGIND = "shutdown:logind"
_HEARS = ("clear", "notice")


def of_job(diagnosis: JobDiagnosis) -> Iterator[Finding]:
    """Name the units in which what helps a training dies together with it, or before it has saved."""
    if not os.path.isdir(BOOTED):
        return
    helpers = {_unit(one.process.pid) for one in diagnosis.processes if one.role == Role.HELPER.value}
    work = {_unit(one.process.pid): one.process.pid for one in diagnosis.processes if one.role == Role.WORK.value}
    for (name, of_user), pid in work.items():
        if name and (name, of_user) in helpers and kill_mode(name, of_user=of_user) == "control-group":
            yield _finding(diagnosis, name, pid)


def _finding(diagnosis: JobDiagnosis, name: str, pid: int) -> Finding:
    text = f"{name} ends by a SIGTERM to all of its processes, DataLoader workers and wandb-core among them"
    if not diagnosis.watchers:
        return Finding("stop-hits-all", f"{text}: a stop, or a shutdown of the host, would cost the save", _ADVICE, pid)
    watches = [watch for answer in diagnosis.watchers for watch in _watches(answer.get("watches"))]
    if any(watch.get("watch") == _LOGIND and watch.get("state") in _HEARS for watch in watches):
        text += ": at a shutdown of the host, what is not saved within some 5 s is lost"
        return Finding("stop-hits-all", text, _ADVICE, pid)
    advice = f"{_ADVICE}; or pip install 'preemptd[systemd]'"
    return Finding("stop-hits-all", f"{text}, and nobody hears of a shutdown before", advice, pid, loses=True)


def _watches(said: object) -> list[dict[str, object]]:
    return [watch for watch in said if isinstance(watch, dict)] if isinstance(said, list) else []


def _unit(pid: int) -> tuple[str, bool]:
    """Name the innermost unit of *pid*, and say whether its user's manager has it; empty: none is known."""
    try:
        with open(f"/proc/{pid}/cgroup", encoding="utf-8", errors="replace") as file:
            lines = file.read(65536).splitlines()
    except OSError:
        return "", False
    for line in sorted(lines, key=lambda line: not line.startswith("0::")):
        head, _, path = line.partition(":/")
        units = [part for part in path.split("/") if part.endswith((".service", ".scope"))]
        if head in {"0:", "1:name=systemd"} and units:
            return units[-1], len(units) > 1 and units[0].startswith("user@")
    return "", False


def kill_mode(unit: str, *, of_user: bool) -> str:
    """Ask systemd for the ``KillMode=`` of *unit*; empty: no answer."""
    command = ["systemctl", *(["--user"] if of_user else []), "show", "--property=KillMode", "--value", "--", unit]
    try:
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, timeout=ANSWER_WITHIN, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.decode(errors="replace").strip()
