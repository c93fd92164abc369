"""Metadata servers that misbehave on demand: the ones that rehearsals use, and faults in front of them."""

import socket
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from preemptd.rehearsal.other_clouds import AlibabaServer, AzureServer, BytePlusServer, TencentServer
from preemptd.rehearsal.servers import Ec2Server, GceServer
from preemptd.rehearsal.serving import Announcement, MetadataServer, Reply, Request


@dataclass(frozen=True)
class Exchange:
    """One request that meets a fault, and what the server would have said."""

    server: MetadataServer
    connection: socket.socket
    request: Request
    reply: Reply

    def closes_within(self, seconds: float | None) -> bool:
        """Wait *seconds* (None: as long as it takes) for the end of the server."""
        announcement = self.server.announcement
        with announcement.changed:
            return announcement.changed.wait_for(lambda: announcement.closed, seconds)


Fault = Callable[[Exchange], None]


def announcement(grace: float = 120.0) -> Announcement:
    """Make one that comes when the test calls announce()."""
    return Announcement(3600.0, grace, None, lambda _: None)


class _Faulty(MetadataServer):
    def __init__(self, grace: float = 120.0, address: str = "127.0.0.1", port: int = 0) -> None:
        super().__init__(announcement(grace), address, port)
        self.fault: Fault | None = None
        """None: behave."""
        self.fault_on = ""
        """Only requests whose path ends so meet the fault; empty: all."""
        self.asked: list[Request] = []
        """Every request so far."""

    def write(self, connection: socket.socket, request: Request, reply: Reply) -> None:
        self.asked.append(request)
        fault = self.fault  # a test may take it back at this moment
        if fault is None or not request.path.endswith(self.fault_on):
            super().write(connection, request, reply)
        else:
            fault(Exchange(self, connection, request, reply))

    def asked_paths(self) -> list[str]:
        return [f"{request.method} {request.path}" for request in self.asked]


class FaultyEc2(_Faulty, Ec2Server):
    pass


class FaultyGce(_Faulty, GceServer):
    waits = True
    """False: be a server, or a proxy in front of it, that does not know of hanging GETs."""
    waiting = 0
    """Hanging GETs under way."""

    def wait(self, key: str, last_etag: str | None, limit: float) -> None:
        if not self.waits:
            return
        with self.announcement.changed:
            self.waiting += 1
        super().wait(key, last_etag, limit)
        with self.announcement.changed:
            self.waiting -= 1


class FaultyAzure(_Faulty, AzureServer):
    pass


class FaultyAlibaba(_Faulty, AlibabaServer):
    pass


class FaultyTencent(_Faulty, TencentServer):
    pass


class FaultyBytePlus(_Faulty, BytePlusServer):
    pass


class RollingEc2(FaultyEc2):
    """Its time is another one at each GET."""

    rolled = 0

    def time(self, deadline: float) -> str:
        self.rolled += 1
        return super().time(deadline + self.rolled)


def status(code: int, headers: Mapping[str, str] | None = None, content: bytes = b"no") -> Fault:
    """Answer everything with *code*, and the true headers but for *headers*."""

    def fault(exchange: Exchange) -> None:
        reply = Reply(code, content, {**exchange.reply.headers, **(headers or {})})
        exchange.connection.sendall(reply.wire(time.time()))

    return fault


def body(content: bytes) -> Fault:
    """Answer 200, the true headers, and *content*."""
    return status(200, content=content)


def redirect(exchange: Exchange) -> None:
    """Send everyone to a page that says terminate, with that page as the body too."""
    page = b'{"action": "terminate", "time": "2030-01-01T00:00:00Z"}'
    status(302, {"Location": f"{exchange.server.url}/elsewhere"}, page)(exchange)


def hang(exchange: Exchange) -> None:
    """Take the request and say nothing, until the server is closed."""
    exchange.closes_within(None)


def drip(exchange: Exchange) -> None:
    """Send the true answer, a byte every 50 ms: its status line alone takes a second."""
    for byte in exchange.reply.wire(time.time()):
        exchange.connection.sendall(bytes([byte]))
        if exchange.closes_within(0.05):
            return


def drip_body(exchange: Exchange) -> None:
    """Send the headers at once, and a body that never ends, in bytes that come in time each."""
    exchange.connection.sendall(b"HTTP/1.1 200 OK\r\nMetadata-Flavor: Google\r\nContent-Length: 60000\r\n\r\n")
    while not exchange.closes_within(0.05):
        exchange.connection.sendall(b" ")


def hang_up(exchange: Exchange) -> None:
    """Close the connection without a word."""
    exchange.connection.shutdown(socket.SHUT_RDWR)


def raw(content: bytes) -> Fault:
    """Send *content* instead of an HTTP answer, and hang up."""

    def fault(exchange: Exchange) -> None:
        exchange.connection.sendall(content)
        exchange.connection.shutdown(socket.SHUT_RDWR)

    return fault
