import os
import select
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from preemptd.cli.environment import for_command
from preemptd.observe.sdnotify import ServiceManager

DAEMON = """
import os
from preemptd.observe.sdnotify import ServiceManager
print(ServiceManager({**os.environ, "WATCHDOG_PID": str(os.getpid())}).interval)
"""


@pytest.fixture
def systemd(tmp_path: Path) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind(str(tmp_path / "notify"))
        listener.settimeout(10)
        yield listener


def heard(systemd: socket.socket) -> list[str]:
    return systemd.recv(4096).decode().split("\n")


def drained(systemd: socket.socket) -> list[str]:
    """Read all that is there."""
    lines = []
    while select.select([systemd], [], [], 0)[0]:
        lines += heard(systemd)
    return lines


def test_it_says_what_systemd_waits_for(systemd: socket.socket) -> None:
    manager = ServiceManager({"NOTIFY_SOCKET": systemd.getsockname()})
    before = time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
    manager.ready("watching\nec2")
    manager.reloading()
    manager.alive()
    manager.stopping()
    said = [heard(systemd) for _ in range(4)]
    manager.close()

    ready, reloading, alive, stopping = said
    assert ready == ["READY=1", "STATUS=watching ec2"]
    assert reloading[0] == "RELOADING=1"
    assert before <= int(reloading[1].removeprefix("MONOTONIC_USEC=")) <= time.clock_gettime_ns(time.CLOCK_MONOTONIC)
    assert (alive, stopping) == (["WATCHDOG=1"], ["STOPPING=1"])


def test_an_abstract_address_begins_with_an_at_sign() -> None:
    name = f"preemptd-test-{os.getpid()}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind(f"\0{name}")
        listener.settimeout(10)
        manager = ServiceManager({"NOTIFY_SOCKET": f"@{name}"})
        manager.status("so far so good")
        manager.close()

        assert heard(listener) == ["STATUS=so far so good"]


@pytest.mark.parametrize("address", [None, "", "relative", "vsock:2:1234"])
def test_where_no_systemd_listens_it_says_nothing_and_nobody_waits(address: str | None) -> None:
    manager = ServiceManager({"WATCHDOG_USEC": "3000000", **({"NOTIFY_SOCKET": address} if address else {})})
    manager.ready("")
    manager.close()

    assert manager.interval is None


def test_a_systemd_that_has_gone_is_no_error(tmp_path: Path) -> None:
    manager = ServiceManager({"NOTIFY_SOCKET": str(tmp_path / "nobody")})
    manager.ready("")
    manager.alive()
    manager.close()


def test_it_never_waits_for_a_systemd_that_does_not_read_and_says_later_what_was_not_taken(
    systemd: socket.socket,
) -> None:
    manager = ServiceManager({"NOTIFY_SOCKET": systemd.getsockname()})
    for _ in range(2000):  # far more than the socket takes
        manager.alive()
    manager.ready("late")
    taken = drained(systemd)
    manager.alive()
    taken += drained(systemd)
    manager.close()

    assert taken.count("READY=1") == 1
    assert len(taken) < 2000


@pytest.mark.parametrize("usec", ["", "0", "-1", "much", "\N{ARABIC-INDIC DIGIT ONE}"])
def test_a_watchdog_time_that_makes_no_sense_is_none(usec: str) -> None:
    assert ServiceManager({"NOTIFY_SOCKET": "/x", "WATCHDOG_USEC": usec}).interval is None


def test_it_is_alive_three_times_as_often_as_systemd_wants_if_it_is_the_one_that_is_meant() -> None:
    environ = {"NOTIFY_SOCKET": "/x", "WATCHDOG_USEC": "3000000"}
    meant = subprocess.run(
        [sys.executable, "-c", DAEMON], env={**os.environ, **environ}, capture_output=True, check=True
    )

    assert ServiceManager(environ).interval == 1.0
    assert meant.stdout == b"1.0\n"
    assert ServiceManager({**environ, "WATCHDOG_PID": "1"}).interval is None


def test_what_is_meant_for_us_is_not_handed_to_the_command() -> None:
    environ = {"NOTIFY_SOCKET": "/run/x", "WATCHDOG_PID": "1", "WATCHDOG_USEC": "1", "HOME": "/x"}

    assert for_command(environ, None, 0, None).keys() & environ.keys() == {"HOME"}
