"""What runs inside a network namespace: a metadata server at a real address, or a provider that looks for one.

``serve ec2|gce ADDRESS [PUT-TTL]`` and ``hear ec2|gce``; each prints JSON lines.
"""

import json
import socket
import sys
import time

from preemptd.provider import Provider, State, Surroundings
from preemptd.rehearsal.servers import Ec2Server, GceServer
from preemptd.rehearsal.serving import Announcement, Reply, Request
from preemptd_providers.ec2 import Ec2, Ec2Options
from preemptd_providers.gce import Gce, GceOptions


class HopLimitedEc2(Ec2Server):
    """The answer to the PUT, and that alone, dies after *put_ttl* hops."""

    put_ttl = 64

    def write(self, connection: socket.socket, request: Request, reply: Reply) -> None:
        if request.method == "PUT" and connection.family is socket.AF_INET:
            connection.setsockopt(socket.IPPROTO_IP, socket.IP_TTL, self.put_ttl)
        super().write(connection, request, reply)


def say(**what: object) -> None:
    print(json.dumps(what), flush=True)


def serve(cloud: str, address: str, put_ttl: str = "64") -> None:
    announcement = Announcement(0.5, 30.0, None, lambda _: None)
    server = HopLimitedEc2(announcement, address, 80) if cloud == "ec2" else GceServer(announcement, address, 80)
    if isinstance(server, HopLimitedEc2):
        server.put_ttl = int(put_ttl)
    with server:
        say(ready=server.url)
        sys.stdin.read()


def hear(cloud: str) -> None:
    """Probe; where that finds something, look until a look fails."""
    import requests  # noqa: F401  # its import is not what is measured here

    provider: Provider = Ec2(Ec2Options(), Surroundings({})) if cloud == "ec2" else Gce(GceOptions(), Surroundings({}))
    began = time.monotonic()
    found = provider.probe()
    say(probe=found.why if found else None, took=time.monotonic() - began, describe=provider.describe())
    if found is None:
        return
    watch = provider.watches()[0]
    state = State.CLEAR
    while state is not State.UNKNOWN:
        began = time.monotonic()
        observation = watch.observe()
        state = observation.state
        say(
            state=state.value,
            event_id=observation.notice.event_id if observation.notice else None,
            error=str(observation.error),
            took=time.monotonic() - began,
            describe=provider.describe(),
        )
        if not watch.waits:
            time.sleep(0.1)


if __name__ == "__main__":
    if sys.argv[1] == "serve":
        serve(*sys.argv[2:])
    else:
        hear(sys.argv[2])
