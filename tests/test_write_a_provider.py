"""docs/write-a-provider.md is true: its provider is installed and run as it stands on the page."""

import re
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from preemptd.errors import ConfigError
from preemptd.events import Event, NoticeArrived, NoticeRevoked, WatchChanged
from preemptd.poller import Poller
from preemptd.provider import Provider, State, Surroundings
from preemptd.registry import build, check_tables, choose, installed, load, read_machine
from tests.conftest import ROOT
from tests.plugin_packages import PluginPackages, plugins
from tests.waiting import wait_until

__all__ = ["plugins"]

PAGE = (ROOT / "docs" / "write-a-provider.md").read_text()
CODE = re.findall(r"^```python\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE)
TOML = re.findall(r"^```toml\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE)


class FlagServer:
    """Answers each connection with `self.answer`, byte for byte; None: not at all."""

    def __init__(self) -> None:
        self.answer: bytes | None = b""
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = "http://{}:{}/preempt".format(*self._listener.getsockname())
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def says(self, text: str, status: int = 200) -> None:
        self.answer = f"HTTP/1.1 {status} X\r\nContent-Length: {len(text)}\r\n\r\n{text}".encode()

    def _serve(self) -> None:
        while True:
            connection, _ = self._listener.accept()
            with connection:
                if not connection.recv(4096):
                    return
                if self.answer:
                    connection.sendall(self.answer)

    def close(self) -> None:
        with socket.create_connection(self._listener.getsockname()):
            pass
        self._thread.join()
        self._listener.close()


@pytest.fixture
def server() -> Iterator[FlagServer]:
    server = FlagServer()
    yield server
    server.close()


@pytest.fixture
def make(plugins: PluginPackages) -> Callable[[str], Provider]:
    """Install the page's code and entry point, and set it up as the daemon would."""
    plugins.add("provider_http_flag", CODE[0], TOML[0].partition("\n")[2].replace('"', ""))

    def make(url: str) -> Provider:
        entries = installed()
        tables = {"http-flag": {"url": url}}
        check_tables(tables, entries)
        choice = choose(load(entries, ["http-flag"]), ["http-flag"], read_machine({}))
        (provider,) = build(choice.chosen, tables, Surroundings({})).providers
        return provider

    return make


def test_the_page_shows_the_example_as_it_is_in_30_lines() -> None:
    assert [(ROOT / "docs" / "examples" / "provider_http_flag.py").read_text()] == CODE
    assert len([line for line in CODE[0].splitlines() if line.strip()]) <= 30
    assert "in 30 lines" in PAGE
    assert TOML[0].startswith('[project.entry-points."preemptd.providers"]\nhttp-flag = ')


def test_it_tells_what_its_server_says_once(make: Callable[[str], Provider], server: FlagServer) -> None:
    (watch,) = make(server.url).watches()
    watch.interval = 0.02
    events: list[Event] = []
    poller = Poller(watch, events.append)
    server.says('{"preempt": false}')
    poller.start()
    wait_until(lambda: len(events) == 1)
    server.says("oops", 500)
    wait_until(lambda: len(events) == 2)
    server.says('{"preempt": true, "seconds": 60}')
    wait_until(lambda: len(events) == 4)
    server.says('{"preempt": false}')
    wait_until(lambda: len(events) == 5)
    poller.stop()

    assert [type(event) for event in events] == [
        WatchChanged,
        WatchChanged,
        NoticeArrived,
        WatchChanged,
        NoticeRevoked,
    ]


@pytest.mark.parametrize(
    ("text", "status"),
    [
        ('{"preempt": true}', 500),
        ('{"preempt": true}', 302),
        ('{"preempt": "yes"}', 200),
        ('{"preempt": true, "seconds": NaN}', 200),
        ('{"preempt": tr', 200),
        ("{}", 200),
        ("[]", 200),
        ("<html>log in</html>", 200),
        ("", 200),
    ],
)
def test_what_is_no_answer_is_unknown(
    make: Callable[[str], Provider], server: FlagServer, text: str, status: int
) -> None:
    (watch,) = make(server.url).watches()
    server.says(text, status)

    assert watch.observe().state is State.UNKNOWN


@pytest.mark.parametrize("answer", [None, b"HTTP", b"\xff\r\n\r\n", b"HTTP/1.1 200 X\r\nContent-Length: 99\r\n\r\n{"])
def test_what_is_no_http_is_unknown(make: Callable[[str], Provider], server: FlagServer, answer: bytes | None) -> None:
    (watch,) = make(server.url).watches()
    server.answer = answer

    assert watch.observe().state is State.UNKNOWN


def test_neither_a_proxy_nor_a_redirect_is_believed(
    make: Callable[[str], Provider], server: FlagServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    notice = 'HTTP/1.1 200 X\r\n\r\n{"preempt": true}'
    elsewhere = FlagServer()
    elsewhere.answer = notice.encode()
    monkeypatch.setenv("http_proxy", elsewhere.url)
    server.answer = f"HTTP/1.1 302 X\r\nLocation: {elsewhere.url}\r\nContent-Length: 0\r\n\r\n".encode()
    (watch,) = make(server.url).watches()
    observation = watch.observe()
    elsewhere.close()

    assert observation.state is State.UNKNOWN
    assert "status 302" in str(observation.error)


def test_the_options_of_the_page_are_checked(make: Callable[[str], Provider]) -> None:
    assert make("http://127.0.0.1:8080/preempt").options.model_dump() == {"url": TOML[1].split('"')[1]}
    with pytest.raises(ConfigError, match=r"\[providers\.http-flag\] url = 'https://"):
        make("https://127.0.0.1:8080/preempt")


@pytest.mark.slow
def test_the_contract_test_runs_over_it_as_the_page_says(make: Callable[[str], Provider], tmp_path: Path) -> None:
    del make  # installed is all it has to be
    site = str(tmp_path / "site packages")
    command = [
        sys.executable,
        "-m",
        "pytest",
        "tests/test_provider_contract.py",
        "-q",
        "-k",
        "http-flag",
        "-p",
        "no:cacheprovider",
    ]
    environ = {"PATH": "/usr/bin:/bin", "PYTHONPATH": site, "HOME": str(tmp_path)}
    done = subprocess.run(command, cwd=ROOT, env=environ, check=False, capture_output=True, text=True)

    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(r"[1-9]\d* passed", done.stdout)
