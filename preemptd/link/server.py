"""The daemon's end of the link: tells subscribed processes, and puts what they say into the inbox."""

import threading
from collections.abc import Callable

from preemptd.events import Event
from preemptd.link import protocol
from preemptd.link.address import Address
from preemptd.link.exchange import Exchange
from preemptd.link.protocol import Message
from preemptd.model import ProcessId


class Server:
    """`tell`, `announce` and `answer` never block; what peers say arrives through *put*, from the server's thread.

    A process that registers while a notice is open gets it with the answer: the server remembers each notice that
    it was given to send, until its revocation is announced.

    Args:
        path: of the socket; its directory is made (0700) if there is none.
        put: takes LinkJoined, LinkSaid, LinkLeft and LinkAsked.
        version: of preemptd, for the answer to a registration.
        attempt: how often this job was started before, for the same.
        resumed: whether this is a proven continuation, for the same.
        group: id of a group whose members may connect too; None: only the daemon's own uid and root.
    """

    def __init__(
        self,
        path: str,
        put: Callable[[Event], None],
        version: str,
        attempt: int = 0,
        resumed: bool = False,
        group: int | None = None,
    ) -> None:
        self._address = Address(path, group)
        self._put = put
        self._about: tuple[str, int, bool] = (version, attempt, resumed)
        self._exchange: Exchange | None = None
        self._thread: threading.Thread | None = None

    @property
    def path(self) -> str:
        """The absolute path, for ``$PREEMPTD_LINK``."""
        return self._address.path

    @property
    def linked(self) -> frozenset[ProcessId]:
        """The processes that are registered now."""
        return self._exchange.linked if self._exchange else frozenset()

    def open(self) -> None:
        """Make the socket; raises `ConfigError` with one clear line."""
        self._exchange = Exchange(self._address.listen(), self._put, self._greeting)

    def start(self) -> None:
        """Start the thread: after `open`, and after the command was forked."""
        if self._exchange is not None:
            thread = threading.Thread(target=self._exchange.run, name="preemptd-link", daemon=True)
            thread.start()
            self._thread = thread

    def sync(self) -> None:
        """Wait, a moment at the most, until all that peers have sent up to now was put."""
        if self._exchange is not None and self._thread is not None and self._thread.is_alive():
            self._exchange.sync()

    def tell(self, process: ProcessId, message: Message) -> bool:
        """Send *message* to *process*; False: it is not registered, and gets nothing."""
        if self._exchange is None or process not in self.linked:
            return False
        self._exchange.send(process, message)
        return True

    def announce(self, message: Message) -> None:
        """Send *message* to every registered process."""
        if self._exchange is not None:
            self._exchange.send(None, message)

    def answer(self, peer: int, message: Message) -> None:
        """Answer a `LinkAsked`; nothing happens if the peer has gone."""
        if self._exchange is not None:
            self._exchange.send(peer, message)

    def close(self) -> None:
        """Send what is on its way, for at most 100 ms; then end the thread and take the socket away."""
        exchange, self._exchange = self._exchange, None
        if exchange is None:
            return
        exchange.stop()
        if self._thread is not None:
            self._thread.join()
        exchange.close()
        self._address.remove()

    def _greeting(self, notices: list[Message]) -> Message:
        return protocol.registered(self._about[0], notices, self._about[1], self._about[2])
