"""What W&B's public API says, for the server on loopback: states of runs, and a sweep that a script makes."""

import json

from tests.lab.wandb_backend import ENTITY, Json, WandbBackend
from tests.lab.wandb_sweeps import SWEEP


def answer(backend: WandbBackend) -> None:
    """Have *backend* answer `wandb.Api().run(...)` and `wandb.sweep(...)`."""
    backend.answers.update({"GetDefaultEntity": _default_entity, "Run": _run, "UpsertSweep": _upsert_sweep})


def state(backend: WandbBackend, run_id: str) -> str:
    """Say what W&B's documentation calls a run of which this was heard."""
    marked, code = False, None
    for call in backend.calls:
        if call.run_id != run_id:
            continue
        if call.operation == "UpsertBucket" and code is not None:  # resumed
            marked, code = False, None
        marked = marked or call.body.get("preempting") is True
        code = call.body["exitcode"] if call.body.get("complete") is True else code
    if code is None:
        return "preempting" if marked else "running"
    return "finished" if code == 0 else "preempted" if marked else "failed"


def _default_entity(_backend: WandbBackend, _variables: Json) -> Json:
    return {"viewer": {"id": "person", "defaultEntity": {"name": ENTITY}, "entity": ENTITY}}


def _run(backend: WandbBackend, variables: Json) -> Json:
    name = variables["name"]
    about = {"id": f"run-{name}", "name": name, "displayName": name, "projectId": "1", "tags": [], "sweepName": None}
    person = {"name": "person", "username": "person"}
    dicts = {field: json.dumps({}) for field in ("config", "summaryMetrics", "systemMetrics")}
    return {"project": {"run": {**about, **dicts, "user": person, "state": state(backend, name)}}}


def _upsert_sweep(_backend: WandbBackend, variables: Json) -> Json:
    project = {"name": variables["projectName"], "entity": {"name": variables["entityName"]}}
    return {"upsertSweep": {"sweep": {"name": SWEEP, "project": project}, "configValidationWarnings": []}}
