"""urllib3 on a line of our own: one deadline for all socket operations of a request, and another thread can cut it."""

import contextlib
import functools
import http.client
import logging
import os
import socket
import threading
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

import urllib3
import urllib3.connection
import urllib3.connectionpool
import urllib3.exceptions

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer, WriteableBuffer

CONNECT_SECONDS = 1.0
FAULTS = (urllib3.exceptions.HTTPError, http.client.HTTPException, OSError, ValueError)
"""All that a server can make urllib3 raise, found by feeding it random bytes."""
TIMEOUTS = (urllib3.exceptions.TimeoutError, TimeoutError)
"""Those of FAULTS that came by a deadline, ours or the kernel's."""

HEADERS = {"User-Agent": "preemptd", "Accept": "*/*", "Accept-Encoding": "identity"}

# A hanging GET over a black hole would be noticed only at its end: probes of the kernel say so within about 5 s.
_OPTIONS = (
    (socket.IPPROTO_TCP, socket.TCP_NODELAY, 1),
    (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
    (socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 2),
    (socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 1),
    (socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 3),
    (socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, 4000),
)


class Line:
    """The TCP connections of one session: made here, bounded by one deadline, cut from any thread."""

    def __init__(self) -> None:
        self.ends = 0.0
        """time.monotonic() at which the request under way must be over."""
        self.connect_ends = 0.0
        self.made = 0
        """Connections made so far: unchanged after a request, it went over a kept one."""
        self.unreachable: OSError | None = None
        """Why the last connection could not be made."""
        self._lock = threading.Lock()
        self._socket: BoundedSocket | None = None
        self._is_cut = False

    def seconds_left(self) -> float:
        """Seconds until the deadline; raises TimeoutError when there are none."""
        left = self.ends - time.monotonic()
        if left <= 0:
            raise TimeoutError("deadline")
        return left

    def connect(self, host: str, port: int) -> "BoundedSocket":
        """Connect to the first address of *host* that takes it."""
        self.made += 1
        self.unreachable = None
        try:
            addresses = _addresses(host, port, self.connect_ends)
        except OSError as problem:
            self.unreachable = problem
            raise
        failed = OSError(f"{host} has no address")
        for family, address in addresses:
            try:
                return self._connect_to(family, address)
            except OSError as problem:  # noqa: PERF203  # each address may fail in its own way
                failed = problem
        self.unreachable = failed
        raise failed

    def _connect_to(self, family: int, address: Any) -> "BoundedSocket":
        made = BoundedSocket(self, family)
        try:
            for option in _OPTIONS:
                made.setsockopt(*option)
            made.settimeout(max(0.001, self.connect_ends - time.monotonic()))
            self._register(made)
            made.connect(address)
        except BaseException:
            made.close()
            raise
        return made

    def _register(self, made: "BoundedSocket") -> None:
        with self._lock:
            if self._is_cut:
                raise ConnectionAbortedError("closed")
            self._socket = made

    def cut(self) -> None:
        """End the request that is under way, and all that would follow."""
        with self._lock:
            self._is_cut = True
            if self._socket is not None:
                with contextlib.suppress(OSError):  # it is not connected, or gone already
                    self._socket.shutdown(socket.SHUT_RDWR)

    def drop(self) -> None:
        """Close the connection, whoever still holds a file of it: http.client forgets some after broken headers."""
        with self._lock:
            left, self._socket = self._socket, None
        if left is not None and left.fileno() != -1:
            os.close(left.detach())


class BoundedSocket(socket.socket):
    """A socket that waits to the line's deadline, not *timeout* anew at each byte that drips in."""

    def __init__(self, line: Line, family: int) -> None:
        super().__init__(family, socket.SOCK_STREAM)
        self._line = line

    def recv_into(self, buffer: "WriteableBuffer", nbytes: int = 0, flags: int = 0) -> int:
        self.settimeout(self._line.seconds_left())
        return super().recv_into(buffer, nbytes, flags)

    def sendall(self, data: "ReadableBuffer", flags: int = 0) -> None:
        self.settimeout(self._line.seconds_left())
        super().sendall(data, flags)


def _addresses(host: str, port: int, ends: float) -> list[tuple[int, Any]]:
    """Resolve *host* until *ends*: the C library itself may take half a minute where no name server answers."""
    found: list[tuple[int, Any]] = []
    problem: list[OSError] = []

    def resolve() -> None:
        try:
            found.extend((a[0], a[4]) for a in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM))
        except (OSError, UnicodeError) as failed:
            problem.append(OSError(f"the name {host} does not resolve ({failed})"))

    if ":" in host or host.replace(".", "").isdigit():
        resolve()  # a number asks no name server
    else:
        asking = threading.Thread(target=resolve, name=f"resolve {host}", daemon=True)
        asking.start()
        asking.join(max(0.0, ends - time.monotonic()))
        if asking.is_alive():
            raise OSError(f"no name server answers for {host}")
    if problem:
        raise problem[0]
    return found


class _Connection(urllib3.connection.HTTPConnection):
    def __init__(self, *args: Any, line: Line, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._line = line

    def _new_conn(self) -> socket.socket:
        return self._line.connect(self.host, self.port or 80)


class _Pool(urllib3.connectionpool.HTTPConnectionPool):
    def __init__(self, *args: Any, line: Line, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.ConnectionCls = functools.partial(_Connection, line=line)  # type: ignore[assignment]  # called only


class Session:
    """Asks over the line, and nothing else: no proxy or netrc of the environment, no cookies, no redirects."""

    def __init__(self, line: Line) -> None:
        self._line = line
        self._pools: dict[tuple[str, int], _Pool] = {}
        # urllib3 logs a warning with a traceback and the server's text at each answer with bad headers: at each poll,
        # and the text may be a token.
        logging.getLogger("urllib3").setLevel(logging.ERROR)

    def ask(
        self, method: str, url: str, headers: Mapping[str, str], body: bytes | None, within: float
    ) -> "urllib3.BaseHTTPResponse":
        """Send a request; return the answer, whose body is still to be read. Raises what is in `FAULTS`."""
        parts = urllib3.util.parse_url(url)
        if not parts.host:
            raise ValueError("the address names no host")
        auth = urllib3.util.make_headers(basic_auth=unquote(parts.auth)) if parts.auth else {}
        given = {name.lower() for name in headers}
        defaults = {name: value for name, value in {**HEADERS, **auth}.items() if name.lower() not in given}
        return self._pool(parts.host, parts.port or 80).urlopen(
            method,
            parts.request_uri,
            body=body,
            headers={**defaults, **headers},
            retries=False,
            redirect=False,
            timeout=within,
            preload_content=False,
        )

    def _pool(self, host: str, port: int) -> _Pool:
        pool = self._pools.get((host, port))
        if pool is None:
            pool = self._pools[host, port] = _Pool(host, port, maxsize=1, line=self._line)
        return pool

    def close(self) -> None:
        """Close the connection; a request after that makes a new one."""
        for pool in self._pools.values():
            pool.close()
        self._pools.clear()
        self._line.drop()
