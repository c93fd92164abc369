import os
from collections.abc import Iterator

import pytest

from tests.conftest import HOW
from tests.lab.systemd.booted import Machine, booted

SIGNALS = "/run/preemptd-signals"
NOTICE = f"{SIGNALS}/node-lab.preempt"


@pytest.fixture(scope="session")
def needs_systemd(needs_netns: None) -> None:  # noqa: ARG001 - its checks
    for program in ("/lib/systemd/systemd", "/usr/bin/dbus-daemon", "/usr/bin/pkcheck", "/usr/sbin/useradd"):
        if not os.path.exists(program):
            pytest.skip(f"needs {program}: {HOW}")


@pytest.fixture(scope="module")
def machine(needs_systemd: None) -> Iterator[Machine]:  # noqa: ARG001 - its checks
    """Boot a machine with preemptd's units, and a signal directory, in which nothing of preemptd runs."""
    with booted() as machine:
        machine.install()
        machine.run("mkdir", "-m", "755", SIGNALS)
        yield machine
