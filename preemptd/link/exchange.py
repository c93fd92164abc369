"""The link's thread: one epoll over all connections, which no peer can stop, slow down for others, or make fail."""

import contextlib
import logging
import os
import resource
import select
import socket
import time
from collections import deque
from collections.abc import Callable, Iterator

from preemptd.events import Event, LinkAsked, LinkJoined, LinkLeft, LinkSaid
from preemptd.link import protocol
from preemptd.link.connection import Allowance, Connection, HangupError
from preemptd.link.peer import Peer, identify
from preemptd.link.protocol import ALLOWED, Message, ProtocolError, Register, Said, Who
from preemptd.model import ProcessId

MOST_CONNECTIONS = 1024
MOST_OF_ONE_PID = 64
MOST_ALLOWANCES = 4096
"""Processes whose lines are counted, before those are forgotten that have not said much lately."""
ROUND = 0.25
"""Seconds between two looks at connections against which a clock runs."""
LAST_WORDS = 0.1
"""Seconds for messages that are still on their way when the daemon ends."""
SYNC_WITHIN = 0.2
"""Seconds for what peers have said and nobody has read yet; a peer that floods us makes it no longer."""

logger = logging.getLogger(__name__)


class Exchange:
    """`send`, `stop` and `linked` are for other threads; `run` is the thread; `close` comes after it.

    *greet* makes the answer to a registration out of the notices that are open.
    """

    def __init__(
        self, listener: socket.socket, put: Callable[[Event], None], greet: Callable[[list[Message]], Message]
    ) -> None:
        self.linked: frozenset[ProcessId] = frozenset()
        """The registered processes: replaced whole, so that other threads may look without a lock."""
        self._listener = listener
        self._put = put
        self._greet = greet
        self._most = _most_connections()
        self._queue: deque[tuple[ProcessId | int | None, Message]] = deque()
        self._stopping = False
        self._connections: dict[int, Connection] = {}
        self._restless: set[Connection] = set()
        self._allowances: dict[tuple[int, int], Allowance] = {}
        self._looked = 0.0
        self._notices: dict[str, Message] = {}
        self._serial = 0
        self._deaf = False
        self._wakeup = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._to_sync: deque[int] = deque()
        self._epoll = select.epoll()
        self._epoll.register(listener, select.EPOLLIN)
        self._epoll.register(self._wakeup, select.EPOLLIN)

    def send(self, to: ProcessId | int | None, message: Message) -> None:
        """Send to a registered process, to a connection by its number, or (None) to all that are registered."""
        self._queue.append((to, protocol.with_deadline(message)))
        os.eventfd_write(self._wakeup, 1)

    def sync(self) -> None:
        """Wait, a moment at the most, until all that peers have sent up to now was put."""
        done = os.eventfd(0, os.EFD_CLOEXEC)
        try:
            self._to_sync.append(done)
            os.eventfd_write(self._wakeup, 1)
            poll = select.poll()
            poll.register(done, select.POLLIN)
            if not poll.poll(SYNC_WITHIN * 1000):
                try:
                    self._to_sync.remove(done)
                except ValueError:
                    poll.poll()  # it is written to at this very moment
        finally:
            os.close(done)

    def stop(self) -> None:
        self._stopping = True
        os.eventfd_write(self._wakeup, 1)

    def close(self) -> None:
        for connection in self._connections.values():
            connection.sock.close()
        self._listener.close()
        self._epoll.close()
        os.close(self._wakeup)

    def run(self) -> None:
        while not self._stopping:
            self._turn(0.0 if self._to_sync else ROUND if self._restless or self._deaf else None)
        end = time.monotonic() + LAST_WORDS
        self._epoll.modify(self._listener, 0)
        self._send_queued()
        while any(c.unsent for c in self._connections.values()) and time.monotonic() < end:
            self._turn(end - time.monotonic())

    def _turn(self, timeout: float | None) -> None:
        waiting = len(self._to_sync)  # who asks only now has to wait for another look
        ready = self._epoll.poll(timeout)
        for fd, mask in ready:
            if fd == self._listener.fileno():
                self._accept()
            elif fd == self._wakeup:
                os.eventfd_read(fd)
            elif fd in self._connections:
                self._serve(self._connections[fd], mask)
        self._send_queued()
        for _ in range(0 if ready else waiting):
            with contextlib.suppress(IndexError):  # it waits no longer
                os.eventfd_write(self._to_sync.popleft(), 1)
        now = time.monotonic()
        if now - self._looked >= ROUND:
            self._looked = now
            self._look_round(now)

    def _accept(self) -> None:
        try:
            sock, _ = self._listener.accept()
        except BlockingIOError:
            return
        except OSError as error:  # EMFILE would be reported again at once, for ever
            logger.warning("link: cannot accept a connection: %s", error.strerror)
            self._deaf = True
            self._epoll.modify(self._listener, 0)
            return
        self._serial += 1
        try:
            peer = identify(sock, self._serial)
        except OSError:
            peer = None
        if peer is None or self._is_full(peer):
            sock.close()
            return
        now = time.monotonic()
        connection = Connection(sock, self._serial, peer, self._allowance(peer, now), now)
        self._connections[sock.fileno()] = connection
        self._epoll.register(sock, 0)
        self._await(connection, now)

    def _allowance(self, peer: Peer, now: float) -> Allowance:
        """Return what this process may still say; a connection costs a line."""
        if len(self._allowances) > MOST_ALLOWANCES:
            self._allowances = {who: left for who, left in self._allowances.items() if not left.is_whole(now)}
        allowance = self._allowances.setdefault(peer.origin, Allowance.of_process(now))
        allowance.spend(1, now)
        return allowance

    def _is_full(self, peer: Peer) -> bool:
        """Peers without a pid here that the kernel does not tell apart share only the limit for all."""
        if len(self._connections) >= self._most:
            return True
        return sum(c.peer.origin == peer.origin for c in self._connections.values()) >= MOST_OF_ONE_PID

    def _serve(self, connection: Connection, mask: int) -> None:
        now = time.monotonic()
        with self._hanging_up(connection):
            if mask & select.EPOLLOUT:
                connection.flush()
            if mask & select.EPOLLIN:
                for line in connection.receive(now):
                    self._hear(connection, line)
            elif mask & (select.EPOLLHUP | select.EPOLLERR):  # it left while it was paused
                for line in connection.last_lines(now):
                    self._hear(connection, line)
                raise HangupError
            self._await(connection, now)

    @contextlib.contextmanager
    def _hanging_up(self, connection: Connection) -> Iterator[None]:
        """End the connection if the body says so."""
        try:
            yield
        except HangupError as why:
            if str(why):
                logger.info("link: disconnected pid %d: %s", connection.peer.pid, why)
            del self._connections[connection.sock.fileno()]
            self._restless.discard(connection)
            connection.sock.close()
            self._leave(connection)

    def _await(self, connection: Connection, now: float) -> None:
        """Ask epoll for what this connection may do now."""
        paused = connection.pause(now) > 0
        if paused or not connection.is_calm():
            self._restless.add(connection)
        else:
            self._restless.discard(connection)
        self._epoll.modify(
            connection.sock, (0 if paused else select.EPOLLIN) | (select.EPOLLOUT if connection.unsent else 0)
        )

    def _look_round(self, now: float) -> None:
        if self._deaf and not self._stopping:
            self._deaf = False
            self._epoll.modify(self._listener, select.EPOLLIN)
        for connection in list(self._restless):
            with self._hanging_up(connection):
                if connection.is_overdue(now):
                    raise HangupError("it did not register, or did not finish a line")
                self._await(connection, now)

    def _hear(self, connection: Connection, line: bytes) -> None:
        try:
            said = protocol.parse(line)
            self._allow(connection, said)
        except ProtocolError as error:
            connection.send(protocol.encode(protocol.error(str(error))))
            connection.bad_line()
            return
        if isinstance(said, Register):
            self._join(connection, said)
        elif ALLOWED[said.verb] is Who.OWNER:
            self._put(LinkAsked(connection.serial, said.verb, said.fields()))
        else:
            self._put(LinkSaid(connection.peer.process, said.verb, said.fields()))

    def _allow(self, connection: Connection, said: Said) -> None:
        who = ALLOWED[said.verb]
        if who is Who.SUBSCRIBER and connection.role is None:
            raise ProtocolError(f"{said.verb}: register first")
        if who is Who.OWNER and connection.peer.uid not in (0, os.geteuid()):
            raise ProtocolError(f"{said.verb}: only for root and the user that preemptd runs as")
        if isinstance(said, Register) and not connection.peer.owns(said.pid):
            raise ProtocolError("register: a process registers itself only, by its own pid")

    def _join(self, connection: Connection, said: Register) -> None:
        is_new = connection.peer.process not in self.linked
        connection.role = connection.role or said.role
        self.linked |= {connection.peer.process}
        notices = [protocol.as_of_now(notice) for notice in self._notices.values()]
        connection.send(protocol.encode(self._greet(notices)))
        if is_new:
            self._put(LinkJoined(connection.peer.process, connection.role))

    def _leave(self, connection: Connection) -> None:
        process = connection.peer.process
        others = (c for c in self._connections.values() if c.role is not None)
        if connection.role is not None and all(c.peer.process != process for c in others):
            self.linked -= {process}
            self._put(LinkLeft(process))

    def _send_queued(self) -> None:
        while self._queue:
            to, message = self._queue.popleft()
            if to is None or isinstance(to, ProcessId):
                self._remember(to, message)
            line = protocol.encode(message)
            for connection in self._addressed(to):
                with self._hanging_up(connection):
                    connection.send(line)
                    self._await(connection, time.monotonic())

    def _addressed(self, to: ProcessId | int | None) -> list[Connection]:
        if isinstance(to, int):
            return [c for c in self._connections.values() if c.serial == to]
        return [c for c in self._connections.values() if c.role is not None and to in (None, c.peer.process)]

    def _remember(self, to: ProcessId | None, message: Message) -> None:
        event_id = str(message.get("event_id", ""))
        if message.get("type") == "notice":
            self._notices[event_id] = message
        elif message.get("type") == "revoked" and to is None:
            self._notices.pop(event_id, None)


def _most_connections() -> int:
    """Leave to telling and marking the descriptors that they need."""
    descriptors, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return MOST_CONNECTIONS if descriptors == resource.RLIM_INFINITY else min(MOST_CONNECTIONS, descriptors // 2)
