"""The providers at the clouds' real addresses, in network namespaces, with no variable set."""

import contextlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import ROOT

V4 = "169.254.169.254"
V6 = "fd00:ec2::254"
ENVIRON = {"PATH": os.environ.get("PATH", "/usr/bin:/usr/sbin"), "PYTHONUNBUFFERED": "1"}
BLACK_HOLE = f"""
table ip hole {{
  chain input {{
    type filter hook input priority 0;
    ip daddr {V4} drop
    ip saddr {V4} drop
    udp dport 53 drop
  }}
}}
"""


def ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True, text=True)


class Namespace:
    """A network namespace with a hosts file of its own, and the drivers that run in it."""

    def __init__(self, name: str, hosts: str) -> None:
        self.name = name
        self._etc = Path("/etc/netns") / name
        self._drivers: list[subprocess.Popen[str]] = []
        ip("netns", "add", name)
        self._etc.mkdir(parents=True)
        (self._etc / "hosts").write_text(f"127.0.0.1 localhost\n{hosts}\n")
        (self._etc / "resolv.conf").write_text("nameserver 127.0.0.1\n")
        self.ip("link", "set", "lo", "up")

    def ip(self, *arguments: str) -> None:
        ip("-n", self.name, *arguments)

    def address(self, address: str, device: str = "lo") -> None:
        self.ip("addr", "add", f"{address}/{128 if ':' in address else 32}", "dev", device)

    def drop(self, rules: str) -> None:
        subprocess.run(["ip", "netns", "exec", self.name, "nft", "-f", "-"], input=rules, text=True, check=True)

    def drive(self, *arguments: str) -> Iterator[dict[str, Any]]:
        """Start a driver; iterate over what it says."""
        command = ["ip", "netns", "exec", self.name, sys.executable, "-m", "tests.lab.metadata_driver", *arguments]
        driver = subprocess.Popen(
            command, cwd=ROOT, env=ENVIRON, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self._drivers.append(driver)
        assert driver.stdout is not None
        return map(json.loads, driver.stdout)

    def serve(self, *arguments: str) -> None:
        assert "ready" in next(self.drive("serve", *arguments))

    def close(self) -> None:
        for driver in self._drivers:
            driver.kill()
            with driver:
                driver.wait(10)
        ip("netns", "del", self.name)
        shutil.rmtree(self._etc)


MakeNamespace = Callable[..., Namespace]


@pytest.fixture
def namespace(needs_netns: None) -> Iterator[MakeNamespace]:  # noqa: ARG001  # asked for, not used
    with contextlib.ExitStack() as stack:
        made: list[Namespace] = []

        def make(hosts: str = "") -> Namespace:
            one = Namespace(f"preemptd{os.getpid()}-{len(made)}", hosts)
            made.append(one)
            stack.callback(one.close)
            return one

        yield make


@pytest.mark.parametrize(
    ("cloud", "address", "hosts", "where"),
    [
        ("ec2", V4, "", f"http://{V4}"),
        ("ec2", V6, "", f"http://[{V6}]"),
        ("gce", V4, f"{V4} metadata.google.internal", f"http://{V4}"),
        ("gce", "10.66.0.1", "10.66.0.1 metadata.google.internal", "http://metadata.google.internal"),
        ("gce", "fd20:ce::254", "fd20:ce::254 metadata.google.internal", "http://metadata.google.internal"),
    ],
)
def test_a_notice_is_heard_at_the_real_address(
    cloud: str, address: str, hosts: str, where: str, namespace: MakeNamespace
) -> None:
    here = namespace(hosts)
    here.address(address)
    here.serve(cloud, address)

    heard = here.drive("hear", cloud)

    probe = next(heard)
    assert probe["probe"].startswith(where)
    assert next(heard)["state"] == "clear"
    notice = next(look for look in heard if look["state"] != "clear")
    assert notice["event_id"] == {"ec2": "ec2:terminate", "gce": "gce:preempted"}[cloud]
    assert notice["describe"].startswith(where)


@pytest.mark.parametrize("cloud", ["ec2", "gce"])
def test_a_black_hole_is_left_within_a_second_and_named(cloud: str, namespace: MakeNamespace) -> None:
    """Name servers are gone too: the C library alone would wait 10 s for them."""
    here = namespace()
    here.address(V4)
    here.drop(BLACK_HOLE)

    probe = next(here.drive("hear", cloud))

    assert probe["probe"] is None
    assert probe["took"] < 3  # 0.5 to 0.9 on an idle machine
    assert f"{V4}" in probe["describe"]
    assert "no connection within" in probe["describe"]


@pytest.mark.parametrize("cloud", ["ec2", "gce"])
def test_a_machine_without_a_metadata_server_says_so_at_once(cloud: str, namespace: MakeNamespace) -> None:
    probe = next(namespace().drive("hear", cloud))

    assert probe["probe"] is None
    assert probe["took"] < 3
    assert "unreachable" in probe["describe"]


def test_a_hanging_get_over_a_black_hole_is_noticed_in_seconds(namespace: MakeNamespace) -> None:
    here = namespace()
    here.address(V4)
    here.serve("gce", V4)
    heard = here.drive("hear", "gce")
    next(look for look in heard if look.get("state") == "notice")  # from here on nothing changes: it hangs

    here.drop(BLACK_HOLE)

    lost = next(heard)
    assert lost["state"] == "unknown"
    assert "the network lost the connection" in lost["error"]
    assert lost["took"] < 20  # 4 to 6 on an idle machine; 65 without probes of the kernel


def test_the_hop_limit_of_a_container_is_named(namespace: MakeNamespace) -> None:
    container, host, service = namespace(), namespace(), namespace()
    link = f"{os.getpid()}"
    ip("link", "add", f"c{link}", "netns", container.name, "type", "veth", "peer", "name", "c0", "netns", host.name)
    ip("link", "add", f"s{link}", "netns", service.name, "type", "veth", "peer", "name", "s0", "netns", host.name)
    for end, device, address in (
        (container, f"c{link}", "10.66.1.2/24"),
        (host, "c0", "10.66.1.1/24"),
        (host, "s0", "10.66.2.1/24"),
        (service, f"s{link}", "10.66.2.2/24"),
    ):
        end.ip("addr", "add", address, "dev", device)
        end.ip("link", "set", device, "up")
    service.address(V4)
    container.ip("route", "add", "default", "via", "10.66.1.1")
    service.ip("route", "add", "default", "via", "10.66.2.1")
    host.ip("route", "add", V4, "via", "10.66.2.2")
    subprocess.run(
        ["ip", "netns", "exec", host.name, "sysctl", "-qw", "net.ipv4.ip_forward=1"], check=True, capture_output=True
    )
    service.serve("ec2", V4, "1")

    probe = next(container.drive("hear", "ec2"))

    assert probe["probe"] is None
    assert "hop limit?" in probe["describe"]
    assert "HttpPutResponseHopLimit" in probe["describe"]
    assert probe["took"] < 3
    on_the_host = next(host.drive("hear", "ec2"))
    assert on_the_host["probe"] is not None
