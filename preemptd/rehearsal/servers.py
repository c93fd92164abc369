"""Metadata servers on loopback that speak like the clouds' own, and announce an interruption when someone looks.

``python -m preemptd.rehearsal.servers CLOUD [--event WORD] --after S --grace S [--revoke S]`` prints
``ready http://127.0.0.1:PORT`` and then what happens: ``watched`` (the first good look at the signal), ``raised``
(S seconds later), ``revoked``, ``over`` (the grace has gone). It ends when its standard input does, so it never
outlives who started it.
"""

import argparse
import contextlib
import os
import sys
from collections.abc import Mapping, Sequence
from types import MappingProxyType

from preemptd.rehearsal.clouds import CLOUDS
from preemptd.rehearsal.ec2 import Ec2Server
from preemptd.rehearsal.gce import GceServer
from preemptd.rehearsal.other_clouds import AlibabaServer, AzureServer, BytePlusServer, TencentServer
from preemptd.rehearsal.page import PageServer
from preemptd.rehearsal.serving import Announcement, MetadataServer

__all__ = ["SERVERS", "Ec2Server", "GceServer"]

SERVERS: Mapping[str, type[MetadataServer]] = MappingProxyType(
    {
        "ec2": Ec2Server,
        "gce": GceServer,
        "azure": AzureServer,
        "alibaba": AlibabaServer,
        "tencent": TencentServer,
        "byteplus": BytePlusServer,
        "http": PageServer,
        "exec": PageServer,
    }
)
"""By the names of `clouds.CLOUDS`."""


def main(arguments: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(prog="python -m preemptd.rehearsal.servers", description=__doc__)
    parser.add_argument("cloud", choices=sorted(SERVERS))
    parser.add_argument("--event", default=None, help="what is announced; by default the first that the cloud has")
    parser.add_argument("--after", type=float, default=5.0, help="seconds from the first look to the notice")
    parser.add_argument("--grace", type=float, default=30.0, help="seconds from the notice to the end")
    parser.add_argument("--revoke", type=float, default=None, help="seconds from the notice to its withdrawal")
    chosen = parser.parse_args(arguments)
    events = CLOUDS[chosen.cloud].events
    if chosen.event not in (None, *events):
        parser.error(f"--event {chosen.event}: {chosen.cloud} has {', '.join(events)}")
    announcement = Announcement(chosen.after, chosen.grace, chosen.revoke, _say)
    with SERVERS[chosen.cloud](announcement) as server:
        server.event = chosen.event or server.event
        _say(f"ready {server.url}")
        with contextlib.suppress(KeyboardInterrupt):
            while os.read(sys.stdin.fileno(), 4096):
                pass


def _say(line: str) -> None:
    with contextlib.suppress(OSError):  # who listened has gone: our own end comes with standard input's
        sys.stdout.write(line + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main(sys.argv[1:])
