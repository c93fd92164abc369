"""A whole `preemptd watch` at the clouds' real addresses, in network namespaces, with no variable set."""

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.conftest import ROOT
from tests.lab.test_real_addresses import BLACK_HOLE, ENVIRON, V4, V6, Namespace
from tests.watching import read_lines, trainer

HIDE_DMI = 'if [ -d /sys/class/dmi ]; then mount -t tmpfs none /sys/class/dmi; fi; exec "$@"'
"""The machine under the namespace may stand in a cloud, and says so; here nobody knows but the network."""
DROPS_THE_ANSWER_TO_THE_PUT = f"""
table ip hops {{
  chain input {{
    type filter hook input priority 0;
    ip saddr {V4} ip ttl 1 drop
  }}
}}
"""


class Run:
    """What `preemptd watch` did in a namespace, from its start to its end."""

    def __init__(self, here: Namespace, directory: Path, *command: str, **env: str) -> None:
        journal, log = directory / "journal", directory / "log"
        self.began = time.monotonic()
        self.status = preemptd(
            here, directory, "watch", "--journal", str(journal), "--", *command, LOG=str(log), **env
        ).returncode
        self.lines = read_lines(journal)
        self.said = read_lines(log)

    def mono(self, event: str) -> float:
        return float(str(next(line for line in self.lines if line["event"] == event)["mono"]))

    def events(self, event: str) -> list[dict[str, object]]:
        return [line for line in self.lines if line["event"] == event]

    @property
    def until_ready(self) -> float:
        """Seconds from our start to the first thing that the training said."""
        return float(str(self.said[0]["mono"])) - self.began


def preemptd(here: Namespace, directory: Path, *arguments: str, **env: str) -> "subprocess.CompletedProcess[str]":
    inside = ["ip", "netns", "exec", here.name, "sh", "-c", HIDE_DMI, "sh"]
    environ = {**ENVIRON, "PYTHONPATH": str(ROOT), "XDG_RUNTIME_DIR": str(directory), "CHECKPOINTS": str(directory)}
    return subprocess.run(
        [*inside, sys.executable, "-m", "preemptd", *arguments],
        cwd=directory,
        env={**environ, **env},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
        timeout=50,
    )


@pytest.fixture
def namespace(needs_netns: None) -> Iterator[Callable[[str], Namespace]]:  # noqa: ARG001  # asked for, not used
    with contextlib.ExitStack() as stack:

        def make(hosts: str) -> Namespace:
            one = Namespace(f"preemptdw{os.getpid()}", hosts)
            stack.callback(one.close)
            return one

        yield make


@pytest.mark.parametrize(
    ("cloud", "address", "hosts"),
    [
        ("ec2", V4, ""),
        ("ec2", V6, ""),
        ("gce", V4, f"{V4} metadata.google.internal"),
        ("gce", "10.66.0.1", "10.66.0.1 metadata.google.internal"),
    ],
)
def test_the_platform_is_found_by_asking_and_its_notice_is_heard(
    tmp_path: Path, namespace: Callable[[str], Namespace], cloud: str, address: str, hosts: str
) -> None:
    here = namespace(hosts)
    here.address(address)
    here.serve(cloud, address)

    run = Run(here, tmp_path, *trainer("USR1"))

    assert run.status == 75
    assert [line["name"] for line in run.said if line["what"] == "signal"] == ["SIGUSR1"]
    assert [(line["provider"], line["state"]) for line in run.events("provider")] == [(cloud, "watching")]
    assert [line["provider"] for line in run.events("notice")] == [cloud]
    assert len(run.events("told")) == 1
    assert run.mono("started") < run.mono("provider")  # nobody waited for the probe
    assert run.until_ready < 2  # 0.3 on an idle machine


def test_a_black_hole_does_not_delay_the_training_and_is_named(
    tmp_path: Path, namespace: Callable[[str], Namespace]
) -> None:
    here = namespace("")
    here.address(V4)
    here.drop(BLACK_HOLE)

    run = Run(here, tmp_path, *trainer("USR1"), STEPS="100")
    providers = preemptd(here, tmp_path, "providers")

    print("until ready:", run.until_ready)
    assert run.status == 0
    assert run.until_ready < 2  # 0.3 on an idle machine
    assert [line["state"] for line in run.events("provider")] == ["none"]
    assert run.events("notice") == []
    assert providers.returncode == 0
    (ec2,) = (line for line in providers.stdout.splitlines() if line.startswith("ec2"))
    assert "not here" in ec2
    assert f"{V4}" in ec2
    assert "no connection within" in ec2


def test_an_answer_that_the_hop_limit_drops_does_not_delay_the_training_and_is_named(
    tmp_path: Path, namespace: Callable[[str], Namespace]
) -> None:
    here = namespace("")
    here.address(V4)
    here.serve("ec2", V4, "1")
    here.drop(DROPS_THE_ANSWER_TO_THE_PUT)

    run = Run(here, tmp_path, *trainer("USR1"), STEPS="100")
    providers = preemptd(here, tmp_path, "providers")

    print("until ready:", run.until_ready)
    assert run.status == 0
    assert run.until_ready < 2
    assert [line["state"] for line in run.events("provider")] == ["none"]
    (ec2,) = (line for line in providers.stdout.splitlines() if line.startswith("ec2"))
    assert "hop limit?" in ec2
    assert "HttpPutResponseHopLimit" in ec2
