"""The repair programs, as processes: with which rights, in which environment, and what they say when it fails."""

import http.server
import json
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest

from preemptd.model import ProcessId
from preemptd.runs.owner import Owner, Rights, rights_of
from preemptd.runs.repair_process import (
    RepairError,
    RepairProcess,
    Target,
    environment_for,
    identity_of,
    released,
    spawn_directly,
)
from preemptd.runs.run_settings import RunSettings
from tests.lab.wandb_backend import API_KEY, ENTITY, WandbBackend
from tests.waiting import wait_until

GONE = ProcessId(os.getpid(), 1)
FAKE_WANDB = """
import json, os, sys
class Run:
    def mark_preempting(self):
        say("mark")
    def finish(self, exit_code):
        say("finish", exit_code)
def say(*words):
    with open(os.environ["SAID"], "a") as file:
        print(json.dumps(words), file=file)
def init(**arguments):
    say("init", arguments)
    say("env", {name: value for name, value in os.environ.items() if name.startswith("WANDB_")})
    FAIL
    return Run()
"""
Repairing = Callable[[Owner, Target, float], None]


def owner(home: Path, **env: str) -> Owner:
    environment = {"HOME": str(home), "PATH": os.defpath, **env}
    encoded = {name.encode(): value.encode() for name, value in environment.items()}
    return Owner(GONE, GONE, rights_of("self"), str(home), encoded, sys.executable, str(home), confined=False)


def target(url: str = "", entity: str = ENTITY, key: str = "", code: int = 75) -> Target:
    return Target(RunSettings(entity, "project", url, "", key), "abc", code)


@pytest.fixture
def backend() -> Iterator[WandbBackend]:
    with WandbBackend() as backend:
        yield backend


@pytest.fixture
def process() -> Iterator[RepairProcess]:
    with closing(RepairProcess(spawn_directly, released)) as process:
        yield process


def soon(seconds: float = 20.0) -> float:
    return time.monotonic() + seconds


# -- by requests ---------------------------------------------------------------------------------------------------


def test_the_mark_goes_before_the_end(process: RepairProcess, backend: WandbBackend, tmp_path: Path) -> None:
    process.by_http(owner(tmp_path), target(backend.url, key=API_KEY), soon())

    assert [call.body for call in backend.calls] == [{"preempting": True}, {"complete": True, "exitcode": 75}]
    assert {call.path for call in backend.calls} == {f"/files/{ENTITY}/project/abc/file_stream"}


def test_the_entity_that_nobody_named_is_asked_for(
    process: RepairProcess, backend: WandbBackend, tmp_path: Path
) -> None:
    process.by_http(owner(tmp_path), target(backend.url, entity="", key=API_KEY), soon())

    assert [call.operation for call in backend.calls] == ["Viewer", "file_stream", "file_stream"]
    assert backend.exit_codes("abc") == [75]


@pytest.mark.parametrize("where", ["netrc", "NETRC", "settings", "environment"])
def test_key_and_server_are_looked_for_where_wandb_looks(
    process: RepairProcess, backend: WandbBackend, tmp_path: Path, where: str
) -> None:
    env = {"WANDB_BASE_URL": backend.url}
    entry = f"machine {backend.url.removeprefix('http://')}\n  login user\n  password {API_KEY}\n"
    if where == "netrc":
        (tmp_path / ".netrc").write_text(entry)
    elif where == "NETRC":
        (tmp_path / "elsewhere").write_text(entry)
        env["NETRC"] = str(tmp_path / "elsewhere")
    elif where == "settings":
        (tmp_path / "wandb").mkdir()
        (tmp_path / "wandb" / "settings").write_text(f"[default]\nbase_url = {backend.url}\napi_key = {API_KEY}\n")
        env = {}
    else:
        env["WANDB_API_KEY"] = API_KEY
    process.by_http(owner(tmp_path, **env), target(), soon())

    assert backend.exit_codes("abc") == [75]


def test_without_a_key_nothing_is_sent(process: RepairProcess, backend: WandbBackend, tmp_path: Path) -> None:
    with pytest.raises(RepairError, match="no key"):
        process.by_http(owner(tmp_path), target(backend.url), soon())

    assert backend.calls == ()


def test_the_files_at_home_are_not_those_of_a_container(
    process: RepairProcess, backend: WandbBackend, tmp_path: Path
) -> None:
    (tmp_path / ".netrc").write_text(f"machine {backend.url.removeprefix('http://')} login u password {API_KEY}\n")
    confined = replace(owner(tmp_path), confined=True)

    with pytest.raises(RepairError, match="no key"):
        process.by_http(confined, target(backend.url), soon())


def test_a_server_that_fails_at_first_is_asked_again(
    process: RepairProcess, backend: WandbBackend, tmp_path: Path
) -> None:
    backend.break_down("500")
    thread = threading.Thread(target=process.by_http, args=(owner(tmp_path), target(backend.url, key=API_KEY), soon()))
    thread.start()
    wait_until(lambda: backend.calls)
    backend.mend()
    thread.join()

    assert backend.exit_codes("abc") == [75]


@pytest.mark.parametrize(
    ("fault", "why"), [("500", "the server answers 500"), ("drop", "no network"), ("hang", "no network")]
)
def test_a_server_that_goes_on_failing_costs_the_budget_and_is_named(
    process: RepairProcess, backend: WandbBackend, tmp_path: Path, fault: str, why: str
) -> None:
    backend.break_down(fault)
    began = time.monotonic()

    with pytest.raises(RepairError, match=f"{why}|did not end in time"):
        process.by_http(owner(tmp_path), target(backend.url, key=API_KEY), soon(2.0))
    assert time.monotonic() - began < 5.0


def test_nobody_listening_is_no_network(process: RepairProcess, tmp_path: Path) -> None:
    with pytest.raises(RepairError, match="no network: Connection refused"):
        process.by_http(owner(tmp_path), target("http://127.0.0.1:9", key=API_KEY), soon(6.0))


class Refusing(http.server.BaseHTTPRequestHandler):
    """Answers everything with the server's status, and notes what was asked for."""

    def do_POST(self) -> None:
        assert isinstance(self.server, RefusingServer)
        self.server.seen.append(self.path)
        self.send_response(self.server.status)
        self.send_header("Location", "/elsewhere")
        self.send_header("Content-Length", "0")
        self.end_headers()

    def do_GET(self) -> None:
        self.do_POST()

    def log_message(self, *_args: object) -> None:
        """Say nothing."""


class RefusingServer(http.server.ThreadingHTTPServer):
    def __init__(self, status: int) -> None:
        super().__init__(("127.0.0.1", 0), Refusing)
        self.status = status
        self.seen: list[str] = []


@pytest.mark.parametrize("status", [301, 302, 307, 401, 403, 404])
def test_a_refusal_is_final_and_a_redirect_is_not_followed(process: RepairProcess, tmp_path: Path, status: int) -> None:
    with RefusingServer(status) as server:
        threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}"

        with pytest.raises(RepairError, match=f"the server answers {status}"):
            process.by_http(owner(tmp_path), target(url, key=API_KEY), soon())
        server.shutdown()

    assert server.seen == [f"/files/{ENTITY}/project/abc/file_stream"]


def test_an_address_that_is_no_url_is_refused(process: RepairProcess, tmp_path: Path) -> None:
    with pytest.raises(RepairError, match="no URL"):
        process.by_http(owner(tmp_path), target("file:///etc/passwd", key=API_KEY), soon())


def test_names_cannot_leave_their_place_in_the_path(
    process: RepairProcess, backend: WandbBackend, tmp_path: Path
) -> None:
    odd = replace(target(backend.url, key=API_KEY), run_id="../../x?y#z")
    process.by_http(owner(tmp_path), odd, soon())

    assert {call.path for call in backend.calls} == {f"/files/{ENTITY}/project/..%2F..%2Fx%3Fy%23z/file_stream"}


# -- by wandb itself -----------------------------------------------------------------------------------------------


def fake_wandb(directory: Path, fail: str = "pass") -> None:
    (directory / "wandb.py").write_text(FAKE_WANDB.replace("FAIL", fail))


def said(directory: Path) -> list[list[object]]:
    return [json.loads(line) for line in (directory / "said").read_text().splitlines()]


def theirs(home: Path, **env: str) -> Owner:
    """Return an owner whose wandb is the one in *home*."""
    return owner(home, PYTHONPATH=str(home), SAID=str(home / "said"), **env)


def test_the_run_is_resumed_marked_and_finished(process: RepairProcess, tmp_path: Path) -> None:
    fake_wandb(tmp_path)
    process.by_api(theirs(tmp_path), target(), soon())

    init, _, *rest = said(tmp_path)
    assert init == ["init", {"entity": ENTITY, "project": "project", "id": "abc", "resume": "must"}]
    assert rest == [["mark"], ["finish", 75]]


def test_nothing_that_names_a_run_or_a_sweep_reaches_the_repair(process: RepairProcess, tmp_path: Path) -> None:
    fake_wandb(tmp_path)
    names = ("SERVICE", "RUN_ID", "RESUME", "SWEEP_ID", "NAME", "TAGS", "DISABLED", "X_UPDATE_FINISH_STATE")
    env = {f"WANDB_{name}": "theirs" for name in names}
    process.by_api(theirs(tmp_path, **env, WANDB_MODE="offline", WANDB_API_KEY=API_KEY), target("http://a:1"), soon())

    got = said(tmp_path)[1][1]
    assert isinstance(got, dict)
    assert "theirs" not in got.values()
    assert (got["WANDB_MODE"], got["WANDB_API_KEY"], got["WANDB_BASE_URL"]) == ("online", API_KEY, "http://a:1")
    assert not os.path.exists(got["WANDB_DIR"])


def test_what_wandb_raises_is_the_reason(process: RepairProcess, tmp_path: Path) -> None:
    fake_wandb(tmp_path, "raise ValueError('the run\\nis gone')")

    with pytest.raises(RepairError, match="ValueError: the run is gone"):
        process.by_api(theirs(tmp_path), target(), soon())


def test_packages_that_the_interpreter_does_not_find_are_those_of_wandb_core(
    process: RepairProcess, tmp_path: Path
) -> None:
    (tmp_path / "packages").mkdir()
    fake_wandb(tmp_path / "packages")
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "sitecustomize.py").write_text(
        "import sys; sys.path[:] = [p for p in sys.path if 'packages' not in p]"
    )
    env = {"PYTHONPATH": str(tmp_path / "empty"), "SAID": str(tmp_path / "said")}
    process.by_api(replace(owner(tmp_path, **env), packages=str(tmp_path / "packages")), target(), soon())

    assert len(said(tmp_path)) == 4


def test_modules_in_the_working_directory_are_not_ours_to_import(process: RepairProcess, tmp_path: Path) -> None:
    (tmp_path / "json.py").write_text("raise RuntimeError")
    (tmp_path / "packages").mkdir()
    fake_wandb(tmp_path / "packages")
    env = {"PYTHONPATH": str(tmp_path / "packages"), "SAID": str(tmp_path / "said")}
    process.by_api(owner(tmp_path, **env), target(), soon())

    assert said(tmp_path)[-1] == ["finish", 75]


def test_a_repair_that_hangs_is_ended_when_its_time_is_up(process: RepairProcess, tmp_path: Path) -> None:
    fake_wandb(tmp_path, "import time; time.sleep(60)")
    began = time.monotonic()

    with pytest.raises(RepairError, match="no time left"):
        process.by_api(theirs(tmp_path), target(), soon(1.0))
    assert time.monotonic() - began < 5.0


def test_a_repair_that_hangs_is_ended_when_told_to(process: RepairProcess, tmp_path: Path) -> None:
    fake_wandb(tmp_path, "import time; time.sleep(60)")
    why: list[str] = []

    def repair() -> None:
        try:
            process.by_api(theirs(tmp_path), target(), soon(50.0))
        except RepairError as error:
            why.append(str(error))

    thread = threading.Thread(target=repair)
    thread.start()
    wait_until((tmp_path / "said").exists)
    process.stop()
    thread.join(10)

    assert why == ["stopped"]


def test_a_repair_that_dies_is_no_success(process: RepairProcess, tmp_path: Path) -> None:
    fake_wandb(tmp_path, "os._exit(0)")

    with pytest.raises(RepairError, match="without a word"):
        process.by_api(theirs(tmp_path), target(), soon())


def test_an_interpreter_that_is_gone_is_named(process: RepairProcess, tmp_path: Path) -> None:
    with pytest.raises(RepairError, match="could not be started"):
        process.by_api(replace(theirs(tmp_path), interpreter="/nonexistent/python"), target(), soon())


def test_nothing_of_a_container_is_run_outside_it(process: RepairProcess, tmp_path: Path) -> None:
    with pytest.raises(RepairError, match="container"):
        process.by_api(replace(theirs(tmp_path), confined=True), target(), soon())


# -- rights --------------------------------------------------------------------------------------------------------

ROOT = Rights(0, 0, frozenset({0}), 0b111, split=False)
LIMITED_ROOT = Rights(0, 0, frozenset({0}), 0b001, split=False)
ALICE = Rights(1000, 1000, frozenset({1000, 50}), 0, split=False)
BOB = Rights(1001, 1001, frozenset({1001}), 0, split=False)


def test_for_itself_nothing_is_to_be_changed() -> None:
    assert identity_of(ALICE, ALICE) == {}
    assert identity_of(ROOT, ROOT) == {}


def test_root_becomes_the_user_with_all_groups() -> None:
    assert identity_of(ALICE, ROOT) == {"user": 1000, "group": 1000, "extra_groups": [50, 1000]}


@pytest.mark.parametrize(
    ("training", "ours", "why"),
    [
        (BOB, ALICE, "only root"),
        (ROOT, ALICE, "only root"),
        (LIMITED_ROOT, ROOT, "fewer rights"),
        (Rights(1000, 1000, frozenset(), 0, split=False), ALICE, "other groups"),
        (Rights(1000, 1000, frozenset(), 0, split=True), ROOT, "two users"),
    ],
)
def test_the_repair_never_has_more_rights_than_the_training(training: Rights, ours: Rights, why: str) -> None:
    with pytest.raises(RepairError, match=why):
        identity_of(training, ours)


def test_the_key_is_in_no_text_that_is_made_of_the_settings() -> None:
    assert API_KEY not in repr(target(key=API_KEY))


def test_what_the_run_has_told_beats_the_environment(tmp_path: Path) -> None:
    env = environment_for(owner(tmp_path, WANDB_API_KEY="old"), RunSettings(base_url="http://b", api_key="new"), "/d")

    assert (env[b"WANDB_API_KEY"], env[b"WANDB_BASE_URL"], env[b"WANDB_DIR"]) == (b"new", b"http://b", b"/d")
