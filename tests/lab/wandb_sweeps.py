"""A sweep of the W&B server on loopback: what it answers to the real `wandb agent`, by W&B's documentation.

A run that ended as *preempting* with an exit code that is not 0 goes to the next agent that asks, before new ones; a
run without an exit code does five minutes after its last sign of life. Any other end is final. Tests look first at what
was sent, and only then at what this model makes of it.
"""

import json
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import final

from tests.lab.wandb_backend import ENTITY, Call, Json, WandbBackend

SWEEP = "sw33p001"
SILENT_FOR = 300.0
"""Seconds without a sign of life after which a run without an exit code is preempted, or has crashed."""


@dataclass
class Handed:
    """A run that was handed to an agent."""

    agent: str
    mono: float


@final
@dataclass
class Sweep:
    """One sweep. `handed` is what agents got, in order: (agent, kind, run id)."""

    backend: WandbBackend
    command: Sequence[str]
    waiting: list[str]
    """Ids of the runs that nobody has had yet."""
    clock: Callable[[], float] = time.monotonic
    """Tests that wait for five minutes bring their own."""
    handed: list[tuple[str, str, str]] = field(default_factory=list)
    agents: int = 0
    idles: bool = False
    """Has nothing to hand out, and is not over."""
    deleted: bool = False
    config: str = ""
    """The sweep's YAML, if it is more than `command`."""
    program: str = "train.py"
    args: Json = field(default_factory=lambda: {"lr": {"value": 0.1}})
    """What every run gets."""
    args_of: dict[str, Json] = field(default_factory=dict)
    """What one run, by its id, gets instead."""
    _last: dict[str, Handed] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def __post_init__(self) -> None:
        self.backend.answers.update(
            {
                "UpsertSweep": self._take,
                "SweepWithRuns": self._describe,
                "CreateAgent": self._create_agent,
                "Heartbeat": self._heartbeat,
                "RunUploadUrls": _no_uploads,
            }
        )

    def state(self, run_id: str) -> str:
        """Say what the server calls a run that was handed out: running, preempted, finished, failed or crashed."""
        since = self._last[run_id].mono
        calls = [call for call in self.backend.calls if call.run_id == run_id and call.mono >= since]
        marked = any(call.body.get("preempting") is True for call in calls)
        codes = [call.body["exitcode"] for call in calls if _ends(call)]
        if codes:
            return "finished" if codes[-1] == 0 else "preempted" if marked else "failed"
        if self.clock() - max((call.mono for call in calls), default=since) < SILENT_FOR:
            return "running"
        return "preempted" if marked else "crashed"

    def _take(self, _backend: WandbBackend, variables: Json) -> Json:
        """Take the YAML of `wandb sweep FILE`."""
        self.config = variables["config"]
        project = {"id": "project", "name": variables["projectName"], "entity": {"id": ENTITY, "name": ENTITY}}
        about = {"id": "sweep", "name": SWEEP, "state": "RUNNING", "config": self.config, "project": project}
        return {"upsertSweep": {"sweep": about, "configValidationWarnings": []}}

    def _describe(self, _backend: WandbBackend, _variables: Json) -> Json:
        if self.deleted:
            return {"project": {"sweep": None}}
        config = self.config or json.dumps({"program": self.program, "method": "grid", "command": list(self.command)})
        about: Mapping[str, object] = {"id": "sweep", "name": SWEEP, "state": "RUNNING", "config": config}
        return {"project": {"sweep": {**about, "runs": {"edges": []}, "method": "grid"}}}

    def _create_agent(self, _backend: WandbBackend, _variables: Json) -> Json:
        self.agents += 1
        return {"createAgent": {"agent": {"id": f"agent-{self.agents}"}}}

    def _heartbeat(self, _backend: WandbBackend, variables: Json) -> Json:
        busy = bool(json.loads(variables["runState"]))
        with self._lock:
            commands = [] if busy else self._hand_out(variables["id"])
        return {"agentHeartbeat": {"agent": {"id": variables["id"]}, "commands": json.dumps(commands)}}

    def _hand_out(self, agent: str) -> list[Json]:
        again = [run_id for run_id in self._last if self.state(run_id) == "preempted"]
        if again or self.waiting:
            kind, run_id = ("resume", again[0]) if again else ("run", self.waiting.pop(0))
            self._last[run_id] = Handed(agent, time.monotonic())
            self.handed.append((agent, kind, run_id))
            return [
                {"type": kind, "run_id": run_id, "program": self.program, "args": self.args_of.get(run_id, self.args)}
            ]
        over = not self.idles and all(self.state(run_id) != "running" for run_id in self._last)
        return [{"type": "exit"}] if over else []


def _no_uploads(_backend: WandbBackend, variables: Json) -> Json:
    """Answer the Python service, which runs below the agent of 0.19: it has nothing to upload then."""
    files: Json = {"uploadHeaders": [], "edges": []}
    run = {"id": variables.get("name"), "runId": variables.get("name"), "files": files}
    return {"model": {"bucket": run}}


def _ends(call: Call) -> bool:
    return call.operation == "file_stream" and call.body.get("complete") is True
