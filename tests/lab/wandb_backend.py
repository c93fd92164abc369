"""A W&B server on loopback that answers what wandb 0.19, 0.22 and 0.31 need to run online, and records what they send.

    python -m tests.lab.wandb_backend        prints ``ready http://127.0.0.1:PORT``; GET /__calls returns the calls

It is no model of W&B's own decisions: tests say what was sent, not what a server would make of it. It keeps what a run
that is resumed is asked for: config, and the lines of its files. An operation that it does not know is answered with
an error and recorded: an empty ``data`` would make wandb-core panic. `break_down` makes it fail.
"""

import gzip
import json
import re
import sys
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any, final

ENTITY = "team"
API_KEY = "0123456789abcdef" * 2 + "01234567"
Json = dict[str, Any]


@dataclass(frozen=True)
class Call:
    """One request, as it arrived."""

    mono: float
    """time.monotonic() when it had been read: the same clock in every process of the machine."""
    method: str
    path: str
    operation: str
    """Name of the GraphQL operation; ``file_stream``; ``upload``; else empty."""
    run_id: str
    body: Json = field(default_factory=dict)
    """Variables of the operation, or the JSON body."""


@final
class WandbBackend:
    """A context manager; `calls` and what is derived from it may be read at any time, from any thread."""

    def __init__(self) -> None:
        self.answers = dict(_ANSWERS)
        """What is answered to each operation; `wandb_sweeps` adds its own."""
        self._lock = threading.Lock()
        self._calls: list[Call] = []
        self._fault: tuple[str, str] | None = None
        self._mended = threading.Event()
        self._server = _Server(self)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True)
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> "WandbBackend":
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Be gone: whoever connects is refused."""
        self.mend()
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def break_down(self, how: str, where: str = "/file_stream") -> None:
        """Fail from now on: *how* is ``500``, ``hang`` or ``drop``; only requests whose path ends with *where*."""
        self._mended.clear()
        self._fault = how, where

    def mend(self) -> None:
        """Work again; what hangs is answered by then."""
        self._fault = None
        self._mended.set()

    def env(self) -> dict[str, str]:
        """Return what makes an unmodified script use this server, and start quickly."""
        return {
            "WANDB_BASE_URL": self.url,
            "WANDB_API_KEY": API_KEY,
            "WANDB_ENTITY": ENTITY,
            "WANDB_PROJECT": "project",
            "WANDB_MODE": "online",
            "WANDB_SILENT": "true",
            "WANDB_CONSOLE": "off",
            "WANDB_DISABLE_GIT": "true",
            "WANDB_DISABLE_CODE": "true",
            "WANDB_ERROR_REPORTING": "false",
            "WANDB_X_DISABLE_STATS": "true",
            "WANDB_X_DISABLE_META": "true",
            "WANDB_X_DISABLE_MACHINE_INFO": "true",
        }

    @property
    def calls(self) -> tuple[Call, ...]:
        with self._lock:
            return tuple(self._calls)

    def runs(self) -> list[str]:
        """Ids of the runs that were created, in order."""
        return list(dict.fromkeys(call.run_id for call in self.calls if call.operation == "UpsertBucket"))

    def preempting(self, run_id: str) -> list[float]:
        """Return the arrival times of the marks of *run_id*."""
        return [call.mono for call in self._streams(run_id) if call.body.get("preempting") is True]

    def exit_codes(self, run_id: str) -> list[int]:
        """Return the exit codes that were reported for *run_id*."""
        return [call.body["exitcode"] for call in self._streams(run_id) if call.body.get("complete") is True]

    def lines(self, run_id: str, name: str) -> list[str]:
        """Return the lines of one of the run's streamed files, such as ``wandb-history.jsonl``."""
        kept: list[str] = []
        for call in self._streams(run_id):
            chunk = (call.body.get("files") or {}).get(name)
            if chunk:
                kept[chunk["offset"] :] = chunk["content"]
        return kept

    def config(self, run_id: str) -> Json:
        """Return the config that was sent last."""
        sent = [call.body for call in self.calls if call.operation == "UpsertBucket" and call.run_id == run_id]
        found: Json = json.loads(next((body["config"] for body in reversed(sent) if body.get("config")), "{}"))
        return found

    def fails(self, path: str) -> str:
        """Say how the request for *path* is to fail; empty: not at all."""
        fault = self._fault
        return fault[0] if fault is not None and path.endswith(fault[1]) else ""

    def hang(self) -> None:
        """Wait until the fault is over."""
        self._mended.wait()

    def unknown(self) -> list[str]:
        """Return the GraphQL operations that were asked for and are not answered here."""
        return [call.operation for call in self.calls if call.path == "/graphql" and call.operation not in self.answers]

    def record(self, call: Call) -> None:
        with self._lock:
            self._calls.append(call)

    def _streams(self, run_id: str) -> list[Call]:
        return [call for call in self.calls if call.operation == "file_stream" and call.run_id == run_id]


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, backend: WandbBackend) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.backend = backend

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that is killed in mid-request is what these tests do; anything else should be seen."""
        if not isinstance(sys.exc_info()[1], ConnectionError):
            super().handle_error(request, client_address)  # type: ignore[arg-type]  # the base's own arguments


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Server

    def do_GET(self) -> None:
        if self.path == "/__calls":
            self._answer(200, {"calls": [asdict(call) for call in self.server.backend.calls]})
        else:
            self._answer(404, {})

    def do_PUT(self) -> None:
        self._body()
        self._record("upload", self.path.split("/")[2] if self.path.startswith("/upload/") else "", {})
        self._answer(200, {})

    def do_POST(self) -> None:
        body = self._body()
        if fault := self.server.backend.fails(self.path):
            self._fail(fault)
        elif self.path == "/graphql":
            self._graphql(json.loads(body))
        elif match := re.fullmatch(r"/files/[^/]+/[^/]+/([^/]+)/file_stream", self.path):
            self._record("file_stream", match[1], json.loads(body))
            self._answer(200, {"exitcode": None, "limits": {}})
        else:
            self._record("", "", {})
            self._answer(404, {})

    def _fail(self, fault: str) -> None:
        self.server.backend.record(Call(time.monotonic(), "POST", self.path, f"failed: {fault}", ""))
        self.close_connection = True
        if fault == "500":
            self._answer(500, {})
        elif fault == "hang":
            self.server.backend.hang()

    def _graphql(self, request: Json) -> None:
        variables: Json = request.get("variables") or {}
        match = re.search(r"\b(?:query|mutation)\s+(\w+)", request["query"])
        operation = match[1] if match else ""
        self._record(operation, _run_id(operation, variables), variables)
        answer = self.server.backend.answers.get(operation)
        if answer is None:
            self._answer(200, {"errors": [{"message": f"this server does not know {operation}"}]})
        else:
            self._answer(200, {"data": answer(self.server.backend, variables)})

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding", "").lower() == "chunked":
            body = b"".join(self._chunks())
        else:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        return gzip.decompress(body) if self.headers.get("Content-Encoding") == "gzip" else body

    def _chunks(self) -> list[bytes]:
        chunks = []
        while size := int(self.rfile.readline().split(b";")[0], 16):
            chunks.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return chunks

    def _record(self, operation: str, run_id: str, body: Json) -> None:
        assert self.command is not None
        self.server.backend.record(Call(time.monotonic(), self.command, self.path, operation, run_id, body))

    def _answer(self, status: int, body: Json) -> None:
        data = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base class's name
        """Say nothing: the calls are recorded."""


def _run_id(operation: str, variables: Mapping[str, Any]) -> str:
    key = {"UpsertBucket": "name", "CreateRunFiles": "run", "RunStoppedStatus": "runId"}.get(operation, "name")
    return str(variables.get(key) or "")


def _viewer(_backend: WandbBackend, _variables: Json) -> Json:
    return {
        "viewer": {
            "id": "VXNlcjox",
            "entity": ENTITY,
            "username": "person",
            "email": "person@example.com",
            "flags": "{}",
            "teams": {"edges": [{"node": {"name": ENTITY}}]},
        }
    }


def _upsert_bucket(backend: WandbBackend, variables: Json) -> Json:
    name = variables["name"]
    return {
        "upsertBucket": {
            "bucket": {
                "id": f"run-{name}",
                "name": name,
                "displayName": variables.get("displayName") or name,
                "description": None,
                "config": variables.get("config") or "{}",
                "sweepName": variables.get("sweep"),
                "project": _project(variables),
                "historyLineCount": len(backend.lines(name, "wandb-history.jsonl")),
            },
            "inserted": backend.runs().count(name) == 1,
        }
    }


def _project(variables: Json) -> Json:
    return {"id": "project", "name": variables.get("project") or "project", "entity": {"id": ENTITY, "name": ENTITY}}


def _create_run_files(backend: WandbBackend, variables: Json) -> Json:
    run = variables["run"]
    files = [{"name": name, "uploadUrl": f"{backend.url}/upload/{run}/{name}"} for name in variables["files"]]
    return {"createRunFiles": {"runID": f"run-{run}", "uploadHeaders": [], "files": files}}


def _run_resume_status(backend: WandbBackend, variables: Json) -> Json:
    name = variables["name"]
    if name not in backend.runs():
        return {"model": {**_project(variables), "bucket": None}}
    history, events = (backend.lines(name, f"wandb-{kind}.jsonl") for kind in ("history", "events"))
    bucket = {
        "id": f"run-{name}",
        "name": name,
        "displayName": name,
        "summaryMetrics": "".join(backend.lines(name, "wandb-summary.json")) or "{}",
        "logLineCount": len(backend.lines(name, "output.log")),
        "historyLineCount": len(history),
        "eventsLineCount": len(events),
        "historyTail": json.dumps(history[-1:]),
        "eventsTail": json.dumps(events[-1:]),
        "config": json.dumps(backend.config(name)),
        "tags": [],
        "notes": None,
        "wandbConfig": json.dumps({"t": 1}),
    }
    return {"model": {**_project(variables), "bucket": bucket}}


def _server_features(_backend: WandbBackend, _variables: Json) -> Json:
    return {"serverInfo": {"features": []}}


def _run_stopped_status(_backend: WandbBackend, _variables: Json) -> Json:
    return {"project": {"run": {"stopped": False}}}


def _probe_settings(_backend: WandbBackend, _variables: Json) -> Json:
    return {"ServerSettingsType": {"fields": [{"name": "name"}]}}


def _no_capabilities(_backend: WandbBackend, _variables: Json) -> Json:
    """Be a plain server: 0.19 and 0.22 ask what its schema has when they sync."""
    return {"QueryType": {"fields": []}, "MutationType": {"fields": []}, "ServerInfoType": {"fields": []}}


def _no_organization(_backend: WandbBackend, _variables: Json) -> Json:
    return {"entity": None}


_ANSWERS: Mapping[str, Callable[[WandbBackend, Json], Json]] = {
    "Viewer": _viewer,
    "UpsertBucket": _upsert_bucket,
    "CreateRunFiles": _create_run_files,
    "RunResumeStatus": _run_resume_status,
    "ServerFeaturesQuery": _server_features,
    "RunStoppedStatus": _run_stopped_status,
    "ProbeServerSettings": _probe_settings,
    "ProbeServerCapabilities": _no_capabilities,
    "OrganizationCoreWeaveOrganizationID": _no_organization,
}


def main() -> None:
    with WandbBackend() as backend:
        print(f"ready {backend.url}", flush=True)
        threading.Event().wait()


if __name__ == "__main__":
    main()
