"""The contract that each registered provider keeps, ours and anyone's (docs/write-a-provider.md)."""

import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack

import pytest

from preemptd.errors import ConfigError
from preemptd.provider import (
    Conclusion,
    Detection,
    Machine,
    Observation,
    Options,
    Outcome,
    Provider,
    State,
    Surroundings,
    Watch,
)
from preemptd.registry import installed, load
from tests.waiting import wait_until

PROVIDERS = load(installed()).providers

HOSTILE: Mapping[str, Surroundings] = {
    "nothing at all": Surroundings({}),
    "a job id that is a path": Surroundings({}, job_id="../../etc/passwd"),
    "a job id of two lines": Surroundings({}, job_id="1\n2", attempt=-1, started=-1.0, grace=0.0),
    "a null byte": Surroundings({"PREEMPTD_SIGNAL_DIR": "/a\0b", "HOME": "\0"}, job_id="\0"),
    "bytes that are no text": Surroundings({"PREEMPTD_SIGNAL_DIR": "/\udcff"}, job_id="\udcff"),
    "a SLURM that makes no sense": Surroundings(
        {"SLURM_JOB_ID": "", "SLURM_ARRAY_JOB_ID": "x", "SLURM_RESTART_COUNT": "many", "SLURMD_NODENAME": "/"}
    ),
    "names without end": Surroundings({"PREEMPTD_SIGNAL_DIR": "/" + "x" * 5000}, job_id="y" * 5000),
    "a clock of tomorrow": Surroundings({}, started=time.time() + 86400, attempt=10**30),
}

# Told of in a process of its own, where an audit hook sees every socket and connection.
CONSTRUCT = """
import json, sys, threading
from preemptd.errors import ConfigError
from preemptd.provider import Surroundings
from preemptd.registry import installed, load
provider = load(installed(), [sys.argv[1]]).providers[sys.argv[1]]
seen = []
forbidden = ("socket.", "subprocess.", "os.fork")
sys.addaudithook(lambda event, args: seen.append(event) if event.startswith(forbidden) else None)
provider(provider.options_type.model_validate(json.loads(sys.argv[2])), Surroundings({}))
print(json.dumps({"seen": seen, "threads": threading.active_count()}))
"""


def endpoints(address: tuple[str, int]) -> Mapping[str, str]:
    """Lead every provider whose platform has a variable for it to *address*."""
    host = "{}:{}".format(*address)
    ours = {f"PREEMPTD_{cloud}_ENDPOINT": f"http://{host}" for cloud in ("ALIBABA", "AZURE", "BYTEPLUS", "TENCENT")}
    return {
        "AWS_EC2_METADATA_SERVICE_ENDPOINT": f"http://{host}/",
        "GCE_METADATA_HOST": host,
        "GCE_METADATA_IP": host,
        **ours,
    }


def needed(kind: type[Provider], url: str = "http://127.0.0.1:9/") -> Mapping[str, object]:
    """Return the options of those that mean nothing without."""
    page: Mapping[str, object] = {"url": url, "notice": "yes", "clear": "no", "within": 60}
    return page if kind.name == "http" else {"command": "exec sleep 600"} if kind.name == "exec" else {}


PATIENT = {"AWS_METADATA_SERVICE_TIMEOUT": "60", "GCE_METADATA_TIMEOUT": "60"}


@pytest.fixture(params=sorted(PROVIDERS))
def kind(request: pytest.FixtureRequest) -> type[Provider]:
    provider: type[Provider] = PROVIDERS[request.param]
    return provider


def provider_in(kind: type[Provider], surroundings: Surroundings) -> Provider:
    led = surroundings.environ.get("PREEMPTD_AZURE_ENDPOINT", "")
    return kind(kind.options_type.model_validate(needed(kind, led) if is_url(led) else needed(kind)), surroundings)


def is_url(text: str) -> bool:
    return text.startswith("http://127.0.0.1:")


@pytest.fixture
def closed_port() -> Iterator[tuple[str, int]]:
    """An address that refuses connections: bound by us, so that nobody else listens there."""
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        yield bound.getsockname()


@pytest.fixture
def silent() -> Iterator[socket.socket]:
    """A server that takes connections, and never says a word."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.setblocking(False)
        yield listener


def test_it_is_declared_as_the_registry_needs_it(kind: type[Provider]) -> None:
    assert issubclass(kind.options_type, Options)
    assert isinstance(kind.stands_down_for, frozenset)
    assert isinstance(kind.opt_in, bool)
    assert kind.name not in kind.stands_down_for


@pytest.mark.parametrize("surroundings", HOSTILE.values(), ids=HOSTILE)
def test_it_constructs_from_its_defaults_in_any_surroundings(kind: type[Provider], surroundings: Surroundings) -> None:
    provider = provider_in(kind, surroundings)

    assert "\n" not in provider.describe()
    assert all(isinstance(watch, Watch) for watch in provider.watches())
    provider.close()


@pytest.mark.parametrize("surroundings", HOSTILE.values(), ids=HOSTILE)
def test_detection_takes_any_machine(kind: type[Provider], surroundings: Surroundings) -> None:
    for dmi in ({}, {"sys_vendor": "", "product_name": "\N{REPLACEMENT CHARACTER}\n"}):
        assert isinstance(kind.detect(Machine(surroundings.environ, dmi)), Detection | None)


def test_its_constructor_uses_no_network_no_process_and_no_thread(kind: type[Provider]) -> None:
    command = [sys.executable, "-c", CONSTRUCT, kind.name, json.dumps(needed(kind))]
    environ = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(command, check=True, capture_output=True, text=True, env=environ)

    assert json.loads(done.stdout) == {"seen": [], "threads": 1}


def test_an_environment_that_cannot_be_used_is_a_config_error_or_no_error(kind: type[Provider]) -> None:
    said = []
    for rubbish in ("::", "http://[", "ftp://x", "\n", "a b", "-1"):
        environ = dict.fromkeys(endpoints(("", 0)), rubbish)
        try:
            provider_in(kind, Surroundings(environ)).close()
        except ConfigError as error:
            said.append(str(error))

    assert not any("\n" in text for text in said)


def test_the_names_of_watches_are_unique_and_begin_with_the_providers() -> None:
    names = [w.name for kind in PROVIDERS.values() for w in provider_in(kind, Surroundings({})).watches()]

    assert len(set(names)) == len(names)
    assert all(name.partition(":")[0] in PROVIDERS and name.partition(":")[2] for name in names)


def test_where_nobody_listens_it_knows_of_no_notice(kind: type[Provider], closed_port: tuple[str, int]) -> None:
    provider = provider_in(kind, Surroundings(endpoints(closed_port)))
    for watch in provider.watches():
        for _ in range(3):
            observation = watch.observe()
            assert isinstance(observation, Observation)
            assert observation.state is not State.NOTICE
            assert (observation.state is State.UNKNOWN) == (observation.error is not None)
        watch.close()
    provider.close()


def test_close_breaks_a_look_that_hangs_and_may_be_called_again(kind: type[Provider], silent: socket.socket) -> None:
    provider = provider_in(kind, Surroundings({**endpoints(silent.getsockname()), **PATIENT}))
    for watch in provider.watches():
        assert seen_when_closed(watch, silent).state is not State.NOTICE
        assert watch.observe().state is not State.NOTICE
    provider.close()
    provider.close()


def seen_when_closed(watch: Watch, silent: socket.socket) -> Observation:
    """Close *watch* while its look hangs at the *silent* server, and return what the look came back with."""
    seen: list[Observation] = []
    looking = threading.Thread(target=lambda: seen.append(watch.observe()), daemon=True)
    looking.start()
    with ExitStack() as connections:
        wait_until(lambda: asked(silent, connections) or not looking.is_alive())
        watch.close()
        watch.close()
        looking.join(20)
        assert not looking.is_alive()
    return seen[0]


def asked(silent: socket.socket, connections: ExitStack) -> bool:
    """Take a connection, if there is one, and keep it open."""
    try:
        connections.enter_context(silent.accept()[0])
    except BlockingIOError:
        return False
    return True


def test_it_judges_the_signals_it_asks_for(kind: type[Provider]) -> None:
    provider = provider_in(kind, Surroundings({}))

    for signum in provider.signals():
        observation = provider.on_signal(signum)
        assert observation.state in State
        assert (observation.notice is not None) == (observation.state is State.NOTICE)
        assert observation.notice is None or observation.notice.provider == kind.name


def test_it_takes_the_start_and_the_end_of_the_command(kind: type[Provider], closed_port: tuple[str, int]) -> None:
    provider = provider_in(kind, Surroundings(endpoints(closed_port)))
    began = time.monotonic()
    provider.child_started(os.getpid())
    word = provider.conclude(1.0)
    assert word is None or word.provider == kind.name
    assert provider.settle(Conclusion(Outcome(0), preempted=False), 1.0) == ""
    provider.close()

    assert time.monotonic() - began < 5
