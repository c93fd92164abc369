"""``--listen``: /metrics and /healthz of the real program, and a server that no client can stop."""

import http.client
import json
import os
import re
import socket
import threading
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, closing
from http import HTTPStatus
from pathlib import Path

import psutil
import pytest
from prometheus_client.parser import text_string_to_metric_families

from preemptd.errors import ConfigError
from preemptd.observe import web
from preemptd.observe.health import POLLED_WITHIN, Health, Heart, judge
from preemptd.observe.metrics import Metrics
from preemptd.observe.web import Page, Web
from tests.conftest import ROOT
from tests.metadata_server import FaultyEc2, hang
from tests.test_cli import ask
from tests.waiting import wait_until
from tests.watching import Watch, trainer

STAYS = '"$@"; i=0; while [ ! -e done ] && [ $i -lt 300 ]; do i=$((i+1)); sleep 0.1; done > /dev/null 2>&1'
"""A command that goes on when its training has saved."""
LISTEN = ("--listen", "127.0.0.1:0")


def port_of(watch: Watch) -> int:
    """Find the port that the kernel has chosen."""

    def find() -> list[int]:
        found = psutil.Process(watch.process.pid).net_connections("tcp")
        return [connection.laddr.port for connection in found if connection.status == psutil.CONN_LISTEN]

    return wait_until(find, what="it listens")[0]


def get(port: int, path: str, method: str = "GET") -> tuple[int, str]:
    with closing(http.client.HTTPConnection("127.0.0.1", port, timeout=20)) as connection:
        connection.request(method, path)
        answer = connection.getresponse()
        return answer.status, answer.read().decode()


def figures(port: int) -> dict[str, float]:
    """Read /metrics as Prometheus does: name and labels to value."""
    status, content = get(port, "/metrics")
    assert status == 200
    return {
        sample.name + (str(sorted(sample.labels.values())) if sample.labels else ""): sample.value
        for family in text_string_to_metric_families(content)
        for sample in family.samples
    }


def on_ec2(server: FaultyEc2) -> dict[str, str]:
    return {"AWS_EC2_METADATA_SERVICE_ENDPOINT": server.url, "AWS_EC2_METADATA_DISABLED": "false"}


@pytest.fixture
def ec2() -> Iterator[FaultyEc2]:
    with FaultyEc2(grace=60.0) as server:
        yield server


def test_healthz_is_200_when_each_watch_has_had_an_answer(tmp_path: Path, ec2: FaultyEc2) -> None:
    with Watch(tmp_path, trainer("USR1"), *LISTEN, env=on_ec2(ec2)) as watch:
        port = port_of(watch)
        wait_until(lambda: get(port, "/healthz")[1].count('"clear"') == 3)
        health = json.loads(get(port, "/healthz")[1])

        assert health["state"] == "ok"
        assert [(entry["watch"], entry["state"], entry["ok"]) for entry in health["watches"]] == [
            ("ec2:spot/instance-action", "clear", True),
            ("ec2:events/recommendations/rebalance", "clear", True),
            ("ec2:events/maintenance/scheduled", "clear", True),
        ]
        assert get(port, "/healthz", "HEAD") == (200, "")
        assert figures(port)["preemptd_watch_up['ec2:spot/instance-action']"] == 1


def test_healthz_is_503_and_names_the_watch_before_its_first_answer_and_the_process_is_live(
    tmp_path: Path, ec2: FaultyEc2
) -> None:
    ec2.fault = hang
    with Watch(tmp_path, trainer("USR1"), *LISTEN, env=on_ec2(ec2)) as watch:
        watch.await_said("ready")
        port = port_of(watch)
        wait_until(lambda: json.loads(get(port, "/healthz")[1])["watches"])
        status, content = get(port, "/healthz")
        entry, *others = json.loads(content)["watches"]

        assert (status, json.loads(content)["state"]) == (503, "starting")
        assert (entry["watch"], entry["ok"], entry["last_good_s"]) == ("ec2:spot/instance-action", False, None)
        assert [other["ok"] for other in others] == [True, True]  # what comes seldom or early is no outage
        assert get(port, "/healthz?live")[0] == 200
        assert figures(port)["preemptd_healthy"] == 0


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.timeout(180)
def test_healthz_turns_to_503_when_the_platform_falls_silent_and_back_when_it_answers(
    tmp_path: Path, ec2: FaultyEc2
) -> None:
    with Watch(tmp_path, trainer("USR1"), *LISTEN, env=on_ec2(ec2)) as watch:
        port = port_of(watch)
        wait_until(lambda: get(port, "/healthz")[0] == 200)
        ec2.fault = hang
        wait_until(lambda: get(port, "/healthz")[0] == 503, 90)
        silent = json.loads(get(port, "/healthz")[1])
        ec2.fault = None
        wait_until(lambda: get(port, "/healthz")[0] == 200, 60)

    assert silent["state"] == "no answer"
    assert silent["watches"][0]["last_good_s"] >= POLLED_WITHIN  # it is rounded


def test_the_metrics_tell_of_a_notice_from_its_arrival_to_the_saved_checkpoint(tmp_path: Path, ec2: FaultyEc2) -> None:
    with Watch(tmp_path, ["sh", "-c", STAYS, "sh", *trainer("link")], *LISTEN, env=on_ec2(ec2)) as watch:
        watch.await_said("ready")
        port = port_of(watch)
        wait_until(lambda: figures(port).get("preemptd_linked_processes"))
        before = figures(port)
        ec2.announcement.announce()
        watch.await_line("saved")
        wait_until(lambda: figures(port).get("preemptd_saved_total") == 1)
        wait_until(lambda: figures(port)["preemptd_open_notices"] == 1)
        after = figures(port)
        (tmp_path / "done").touch()
        watch.wait()

        assert before["preemptd_linked_processes"] == 1
        assert before["preemptd_open_notices"] == before["preemptd_saved_total"] == 0
        assert "preemptd_notice_seconds_left" not in before
        assert after["preemptd_notices_total['act', 'ec2', 'terminate']"] == 1
        assert after["preemptd_told_total['link']"] == 1
        assert after["preemptd_tell_seconds_count"] == after["preemptd_save_seconds_count"] == 1
        assert 0 < after["preemptd_tell_seconds_sum"] < after["preemptd_save_seconds_sum"] < 60
        assert 0 < after["preemptd_notice_seconds_left"] <= 60
        assert [name for name in after if name.startswith("preemptd_build_info")] == ["preemptd_build_info['0.1.0']"]


def test_without_the_extra_healthz_is_served_all_the_same(tmp_path: Path) -> None:
    absent = tmp_path / "absent" / "prometheus_client"
    absent.mkdir(parents=True)
    (absent / "__init__.py").write_text("raise ImportError('not installed')\n")
    env = {"PYTHONPATH": str(absent.parent)}
    with Watch(tmp_path, ["sleep", "60"], *LISTEN, "--provider", "file", env=env) as watch:
        port = port_of(watch)
        wait_until(lambda: get(port, "/healthz")[0] == 200)
        status, content = get(port, "/metrics")
        watch.process.terminate()
        watch.wait()

    assert (status, content) == (501, "metrics need the extra: pip install 'preemptd[metrics]'\n")
    assert [line["text"] for line in watch.lines("warning") if "extra" in str(line["text"])] == [
        "--listen serves /healthz alone: metrics need the extra: pip install 'preemptd[metrics]'"
    ]


def test_the_port_is_free_and_the_process_gone_at_the_end_whoever_is_still_connected(tmp_path: Path) -> None:
    with Watch(tmp_path, ["sleep", "60"], *LISTEN) as watch:
        port = port_of(watch)
        wait_until(lambda: get(port, "/healthz?live")[0] == 200)
        with socket.create_connection(("127.0.0.1", port)) as idle:
            idle.sendall(b"GET /healthz HTTP/1.1\r\nHost: x\r\n")
            for child in psutil.Process(watch.process.pid).children():
                child.kill()
            status = watch.wait()

    assert status == 137
    with socket.socket() as sock:
        assert sock.connect_ex(("127.0.0.1", port)) != 0


def test_a_port_that_is_taken_is_one_line_and_status_2(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        ended = ask("watch", "--listen", address, "--", "touch", str(tmp_path / "started"))

    assert (ended.returncode, ended.stdout) == (2, "")
    assert ended.stderr == f"preemptd: --listen {address}: cannot listen there (Address already in use)\n"
    assert not (tmp_path / "started").exists()


@pytest.mark.parametrize("address", ["127.0.0.1:70000", "a..b:80", "192.0.2.1:80", "127.0.0.1", ":x", "[::1:80"])
def test_an_address_that_cannot_be_is_one_line_and_status_2(address: str) -> None:
    ended = ask("watch", "--listen", address, "--", "true")

    assert ended.returncode == 2
    assert ended.stderr.startswith("preemptd: ")
    assert "listen" in ended.stderr
    assert ended.stderr.count("\n") == 1


# -- what it is judged by --------------------------------------------------------------------------------------------


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def health(after: float, *beats: Mapping[str, object]) -> Health:
    """Judge *after* seconds without another word; *beats* came before, a minute from one to the next."""
    clock = Clock()
    heart = Heart(clock)
    for beat in beats:
        clock.now += 60
        heart.beat(lambda beat=beat: beat)  # type: ignore[misc]  # bound at once
    clock.now += after
    return judge(heart)


def status(state: str | None, good: float | None, every: float | None, **more: object) -> dict[str, object]:
    watch = {"watch": "w", "state": state, "last_good_s": good, "every_s": every}
    return {"watches": [watch], "notices": [], **more}


@pytest.mark.parametrize(
    ("beat", "state"),
    [
        (status("clear", 1.0, 1.0), "ok"),
        (status("unknown", 29.0, 1.0), "ok"),
        (status("unknown", 31.0, 1.0), "no answer"),
        (status("clear", 31.0, 1.0), "no answer"),  # its look hangs
        (status("unknown", 80.0, 30.0), "ok"),  # asked each 30 s
        (status("unknown", 91.0, 30.0), "no answer"),
        (status("clear", 5000.0, None), "ok"),  # waits at the server
        (status("notice", 64.0, None), "ok"),
        (status("unknown", 66.0, None), "ok"),
        (status("unknown", 91.0, None), "no answer"),
        (status(None, None, None), "no answer"),
        ({"watches": [], "notices": []}, "ok"),
    ],
)
def test_a_watch_counts_by_its_own_cadence(beat: Mapping[str, object], state: str) -> None:
    assert health(0.0, beat).state == state


def test_a_loop_that_says_nothing_hangs_whatever_it_said_last() -> None:
    fresh = status("clear", 0.1, 1.0)

    assert [health(after, fresh).state for after in (0.0, 14.0, 16.0)] == ["ok", "ok", "hangs"]
    assert [health(after, fresh).live for after in (14.0, 16.0)] == [True, False]


def test_a_loop_that_never_turns_hangs_after_a_minute() -> None:
    assert [(health(after).state, health(after).live) for after in (59.0, 61.0)] == [
        ("starting", True),
        ("hangs", False),
    ]


def test_an_age_grows_while_the_loop_is_silent() -> None:
    assert health(10.0, status("clear", 25.0, 1.0)).state == "no answer"


def test_our_own_end_is_not_ready_but_live_for_as_long_as_a_scheduler_takes() -> None:
    ending = status("clear", 0.1, 1.0, ends=True)

    assert [(health(after, ending).state, health(after, ending).live) for after in (0.0, 300.0, 901.0)] == [
        ("ends", True),
        ("ends", True),
        ("ends", False),
    ]


# -- a server that no client can stop --------------------------------------------------------------------------------


def page(path: str) -> Page:
    if path == "/bug":
        raise ValueError("secret")
    return web.text(HTTPStatus.OK, f"page {path}")


@pytest.fixture
def served() -> Iterator[int]:
    server = Web("127.0.0.1:0", page)
    server.start()
    yield server._listener.getsockname()[1]
    server.stop()


def test_an_end_that_does_not_wait_for_a_slow_page_leaves_no_descriptor() -> None:
    asked, goes_on = threading.Event(), threading.Event()

    def slow(path: str) -> Page:
        asked.set()
        goes_on.wait(60)
        return page(path)

    before = len(os.listdir("/proc/self/fd"))
    server = Web("127.0.0.1:0", slow)
    server.start()
    with socket.create_connection(server._listener.getsockname(), timeout=20) as client:
        client.sendall(b"GET /x HTTP/1.1\r\n\r\n")
        assert asked.wait(20)
        server.stop()
        goes_on.set()
        server._thread.join(20)

    assert len(os.listdir("/proc/self/fd")) == before


def say(port: int, data: bytes) -> bytes:
    with socket.create_connection(("127.0.0.1", port), timeout=20) as sock:
        sock.sendall(data)
        with sock.makefile("rb") as answer:
            return answer.readline().rstrip()


@pytest.mark.parametrize(
    ("request_", "answer"),
    [
        (b"GET /x HTTP/1.0\r\n\r\n", b"HTTP/1.1 200 OK"),
        (b"GET /x HTTP/1.1\r\nHost: a\r\n\r\nand more", b"HTTP/1.1 200 OK"),
        (b"POST /x HTTP/1.1\r\nContent-Length: 9\r\n\r\n", b"HTTP/1.1 405 Method Not Allowed"),
        (b"GET http://elsewhere/ HTTP/1.1\r\n\r\n", b"HTTP/1.1 400 Bad Request"),
        (b"\x16\x03\x01\x02\x00\r\n\r\n", b"HTTP/1.1 400 Bad Request"),
        (b"GET /x HTTP/2\r\n\r\n", b"HTTP/1.1 400 Bad Request"),
        (b"GET /" + b"x" * 9000, b"HTTP/1.1 431 Request Header Fields Too Large"),
        (b"GET /bug HTTP/1.1\r\n\r\n", b"HTTP/1.1 500 Internal Server Error"),
    ],
)
def test_what_is_no_request_gets_its_answer(served: int, request_: bytes, answer: bytes) -> None:
    assert say(served, request_) == answer


def test_clients_that_say_nothing_keep_nobody_out_and_are_closed(served: int) -> None:
    with ExitStack() as stack:
        idle = [stack.enter_context(socket.create_connection(("127.0.0.1", served))) for _ in range(100)]
        for sock in idle[::2]:
            sock.sendall(b"GET /slow HTT")
        answers = [get(served, "/x") for _ in range(20)]
        idle[-1].settimeout(20)
        last = idle[-1].recv(1)

    assert answers == [(200, "page /x\n")] * 20
    assert last == b""


def test_a_client_that_does_not_read_its_answer_keeps_nobody_waiting() -> None:
    server = Web("127.0.0.1:0", lambda _: Page(HTTPStatus.OK, b"x" * 10_000_000))
    server.start()
    port = server._listener.getsockname()[1]
    with ExitStack() as stack:
        stack.callback(server.stop)
        for _ in range(10):
            deaf = stack.enter_context(socket.create_connection(("127.0.0.1", port)))
            deaf.sendall(b"GET / HTTP/1.1\r\n\r\n")
        status_, content = get(port, "/")

    assert (status_, len(content)) == (200, 10_000_000)


def test_an_empty_host_is_every_address_of_the_machine() -> None:
    server = Web(":0", page)
    server.start()
    port = server._listener.getsockname()[1]
    answer = get(port, "/x")
    server.stop()

    assert answer == (200, "page /x\n")


def test_a_server_that_was_never_started_gives_its_port_back() -> None:
    server = Web("127.0.0.1:0", page)
    address = f"127.0.0.1:{server._listener.getsockname()[1]}"
    with pytest.raises(ConfigError, match="in use"):
        Web(address, page)
    server.stop()
    again = Web(address, page)
    again.stop()

    assert again._listener.fileno() == -1


# -- what the documentation says -------------------------------------------------------------------------------------


def test_the_documented_metrics_are_those_that_there_are() -> None:
    heart = Heart()
    watch = {"watch": "w", "state": "clear", "last_good_s": 1.0, "every_s": 1.0}
    heart.beat(lambda: {"watches": [watch], "notices": [{"remaining": 9.0}]})
    metrics = Metrics(heart, "1")
    for line in LINES:
        metrics.write(line)
    _, content = metrics.page()
    samples = [s for family in text_string_to_metric_families(content.decode()) for s in family.samples]
    histograms = {re.sub(r"_(bucket|sum|count)$", "", sample.name) for sample in samples}
    names = {name for name in histograms if not name.startswith("process_")}
    table = (ROOT / "docs" / "operations.md").read_text().split("### /metrics")[1].split("##")[0]
    labels = {sample.name: set(sample.labels) - {"le"} for sample in samples}
    documented = dict(re.findall(r"`(preemptd_\w+)(?:\{([\w,]+)\})?`", table))

    assert names == documented.keys()
    assert all(set(filter(None, found.split(","))) == labels.get(name, set()) for name, found in documented.items())


LINES: list[dict[str, object]] = [
    {"event": "notice", "event_id": "e", "provider": "p", "kind": "k", "level": "act"},
    {"event": "revoked", "event_id": "e", "provider": "p"},
    {"event": "told", "how": "link", "ms": 1.0},
    {"event": "saved", "ms": 2.0},
    {"event": "marked", "ok": True, "ms": 3.0},
    {"event": "repaired", "ok": False},
    {"event": "provider", "state": "outage", "provider": "w"},
    {"event": "warning", "text": "x"},
]


def test_the_documented_answer_of_healthz_has_the_fields_of_a_real_one() -> None:
    page = (ROOT / "docs" / "operations.md").read_text().split("### /healthz")[1]
    documented = json.loads(re.findall(r"```json\n(.*?)\n```", page, re.DOTALL)[0])
    real = health(0.0, status("unknown", 41.2, 1.0)).as_json()

    assert documented["state"] == real["state"] == "no answer"
    assert documented.keys() == real.keys()
    assert [entry.keys() for entry in documented["watches"]] == [entry.keys() for entry in real["watches"]]  # type: ignore[attr-defined]


def test_a_notice_that_comes_again_is_counted_once_until_it_is_taken_back() -> None:
    metrics = Metrics(Heart(), "1")
    for line in (LINES[0], LINES[0], {**LINES[0], "level": "advise"}, LINES[1], LINES[0]):
        metrics.write(line)
    content = metrics.page()[1].decode()

    assert 'preemptd_notices_total{kind="k",level="act",provider="p"} 2.0' in content
    assert 'preemptd_notices_total{kind="k",level="advise",provider="p"} 1.0' in content
