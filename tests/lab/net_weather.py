"""A metadata service and a machine in two network namespaces, and between them a network as bad as a test wants it.

The kernels of test machines lack netem: packets go through TUN devices and this process, which delays and loses them.
"""

import contextlib
import ctypes
import fcntl
import heapq
import os
import random
import select
import struct
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

V4 = "169.254.169.254"
HERE = "10.66.3.2"
_CLONE_NEWNET = 0x40000000
_TUNSETIFF = 0x400454CA
_TUN_WITHOUT_HEADER = 0x1001
_LIBC = ctypes.CDLL(None, use_errno=True)


@contextlib.contextmanager
def inside(namespace: str) -> Iterator[None]:
    """Let this thread make its sockets, and start its processes, in *namespace*."""
    with open("/proc/thread-self/ns/net", "rb") as own, open(f"/run/netns/{namespace}", "rb") as other:
        _enter(other.fileno())
        try:
            yield
        finally:
            _enter(own.fileno())


def _enter(fd: int) -> None:
    if _LIBC.setns(fd, _CLONE_NEWNET) != 0:
        raise OSError(ctypes.get_errno(), "setns")


@dataclass(frozen=True)
class Sky:
    """How the network is: both ways."""

    loss: float = 0.0
    """The part of the packets that is lost."""
    delay: float = 0.0
    """Seconds that each packet takes."""
    jitter: float = 0.0
    """Seconds by which that may be more or less: later packets overtake earlier ones."""


CLEAR = Sky()
BLACK_HOLE = Sky(loss=1.0)


class Weather:
    """Carries packets between two TUN devices, in a thread, as one hop. `sky` may be changed at any time."""

    def __init__(self, ends: tuple[int, int], seed: int) -> None:
        self.sky = CLEAR
        self._ends = ends
        self._dice = random.Random(seed)
        self._on_their_way: list[tuple[float, int, int, bytes]] = []
        self._stop = os.eventfd(0)
        self._thread = threading.Thread(target=self._run, name="weather")
        self._thread.start()

    def close(self) -> None:
        os.eventfd_write(self._stop, 1)
        self._thread.join()
        for fd in (*self._ends, self._stop):
            os.close(fd)

    def _run(self) -> None:
        poll, there = select.poll(), self._on_their_way
        for fd in (*self._ends, self._stop):
            poll.register(fd, select.POLLIN)
        number = 0
        while True:
            ready = poll.poll(max(0.0, there[0][0] - time.monotonic()) * 1000 if there else None)
            if any(fd == self._stop for fd, _ in ready):
                return
            for fd, _ in ready:
                number += 1
                self._take(fd, number)
            while there and there[0][0] <= time.monotonic():
                _, _, to, packet = heapq.heappop(there)
                with contextlib.suppress(OSError):  # the other end is down
                    os.write(to, packet)

    def _take(self, fd: int, number: int) -> None:
        with contextlib.suppress(OSError):
            packet = os.read(fd, 65536)
            sky = self.sky
            if packet[0] >> 4 == 4 and packet[8] > 1 and self._dice.random() >= sky.loss:  # IPv4 with hops left
                arrives = time.monotonic() + sky.delay + self._dice.uniform(-sky.jitter, sky.jitter)
                to = self._ends[fd == self._ends[0]]
                heapq.heappush(self._on_their_way, (arrives, number, to, packet))


class World:
    """The namespaces *machine* and *service*, and the weather between them."""

    def __init__(self, name: str, seed: int = 1) -> None:
        self.machine, self.service = f"{name}m", f"{name}s"
        with contextlib.ExitStack() as stack:
            for namespace in (self.machine, self.service):
                ip("netns", "add", namespace)
                stack.callback(ip, "netns", "del", namespace)
                ip("-n", namespace, "link", "set", "lo", "up")
            self.weather = Weather((_tun(self.machine), _tun(self.service)), seed)
            stack.callback(self.weather.close)
            self._up(self.machine, HERE, V4)
            self._up(self.service, V4, HERE)
            self._ends = stack.pop_all()

    def close(self) -> None:
        self._ends.close()

    def _up(self, namespace: str, own: str, peer: str) -> None:
        ip("-n", namespace, "addr", "add", f"{own}/32", "dev", "em0")
        ip("-n", namespace, "link", "set", "em0", "up")
        ip("-n", namespace, "route", "add", f"{peer}/32", "dev", "em0")

    def filter(self, rule: str) -> Callable[[], None]:
        """Put *rule* on what the machine sends; return what takes it away."""
        nft = ["ip", "netns", "exec", self.machine, "nft", "-f", "-"]
        table = f"table ip fault {{\n chain output {{\n type filter hook output priority 0;\n {rule}\n }}\n}}\n"
        subprocess.run(nft, input=table, text=True, check=True)

        def back() -> None:
            subprocess.run(nft, input="delete table ip fault\n", text=True, check=True)

        return back

    def route(self, *kind: str) -> Callable[[], None]:
        """Replace the machine's route to the service by one of *kind* (empty: none); return what puts it back."""
        ip("-n", self.machine, "route", "del", f"{V4}/32")
        if kind:
            ip("-n", self.machine, "route", "add", *kind, f"{V4}/32")

        def back() -> None:
            ip("-n", self.machine, "route", "replace", f"{V4}/32", "dev", "em0")

        return back

    def under(self, sky: Sky) -> Callable[[], None]:
        """Let the network be as *sky* says; return what makes it good again."""
        self.weather.sky = sky

        def back() -> None:
            self.weather.sky = CLEAR

        return back


def ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True, text=True)


def _tun(namespace: str) -> int:
    with inside(namespace):
        fd = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
        fcntl.ioctl(fd, _TUNSETIFF, struct.pack("16sH22x", b"em0", _TUN_WITHOUT_HEADER))
    return fd
