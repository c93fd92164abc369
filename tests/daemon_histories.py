"""A whole `Daemon` in this process, whose world is made by hand: nothing in it is a real process or platform."""

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from signal import Signals
from types import TracebackType
from typing import Any

from preemptd.config import Settings
from preemptd.daemon import Daemon
from preemptd.escalation import Timing
from preemptd.events import Event, Inbox, LinkJoined, LinkSaid, NoticeArrived, NoticeRevoked, SignalArrived
from preemptd.journal import Journal
from preemptd.journal_file import Lines
from preemptd.ledger import Ledger, NoLedger
from preemptd.model import Outcome, Process, ProcessId
from preemptd.notices import Kind, Level, Notice
from preemptd.parts import Marking, Message, NoLink, NoMarker, NoNodes, NoOuter, NoPulse, Parts
from preemptd.provider import Provider
from preemptd.settling import Ending
from preemptd.supervision import Supervision
from preemptd.targets.child import Change, Child, Exited, Helpers
from preemptd.targets.scanner import Scanner
from tests.waiting import wait_until

NO_PID = 5_000_000
"""Above the kernel's largest: what is sent there by mistake reaches nobody."""


def process(number: int = 0, caught: int = 0, state: str = "S") -> Process:
    """Make a process; 0 is the command itself."""
    pid = NO_PID + number
    return Process(pid, 1, NO_PID - 1, NO_PID, state, "train", ("train", str(number)), "/bin/train", caught)


def notice(event_id: str = "ec2:terminate", remaining: float | None = 20.0, **more: Any) -> Notice:
    fields = {"kind": Kind.TERMINATE, "level": Level.ACT, "source": "by hand", "observed": time.monotonic(), **more}
    return Notice(provider="ec2", event_id=event_id, remaining=remaining, **fields)


class Command(Child):
    """The command: it notes what it gets, and ends when the test says so."""

    def __init__(self) -> None:
        self.id = ProcessId(NO_PID, 1)
        self.pid = NO_PID
        self.got: list[object] = []
        self.changed: list[Change] = []

    def release(self) -> None:
        self.got.append("released")

    def abandon(self) -> None:
        self.got.append("abandoned")

    def changes(self) -> list[Change]:
        changes, self.changed = self.changed, []
        return changes

    def forward(self, signum: int) -> None:
        self.got.append(Signals(signum))

    def resume(self) -> None:
        self.got.append("resumed")

    def suspend_with(self) -> None:
        self.got.append("suspended")

    def finish(self) -> None:
        self.got.append("finished")


class NoHelpers(Helpers):
    """This process has children of its own, which are none of the daemon's business."""

    def reap_orphans(self, but_not: int) -> int:  # noqa: ARG002  # a null object
        return 0


class Listening(NoLink):
    """A link over which everybody can be told; what was said is kept."""

    def __init__(self) -> None:
        self.said: list[tuple[int, Message]] = []
        self.announced: list[Message] = []
        self.failures = 0
        """How many of the next messages are a bug of ours."""

    def tell(self, process: ProcessId, message: Message) -> bool:
        if self.failures:
            self.failures -= 1
            raise KeyError("a bug")
        self.said.append((process.pid - NO_PID, message))
        return True

    def announce(self, message: Message) -> None:
        self.announced.append(message)


class World:
    """The daemon's surroundings, as a context: it runs in a thread, and the test makes history."""

    def __init__(
        self,
        *processes: Process,
        marker: Callable[[Inbox], Marking] | None = None,
        ledger: Callable[[Inbox], Ledger] | None = None,
        providers: Mapping[str, Provider] | None = None,
        before: Sequence[Event] = (),
        **settings: Any,
    ) -> None:
        self.processes = processes or (process(),)
        self.inbox = Inbox()
        self.lines = Lines()
        self.link = Listening()
        self.command = Command()
        self.scanning = threading.Event()
        """Clear: /proc hangs."""
        self.scanning.set()
        self._journal = Journal()
        self._journal.add(self.lines)
        self._scanner = Scanner(self._snapshot, self.inbox.put, lambda: ())
        parts = Parts(
            settings=Settings(**settings),
            inbox=self.inbox,
            journal=self._journal,
            ledger=(ledger or (lambda inbox: NoLedger(inbox.put)))(self.inbox),
            scanner=self._scanner,
            marker=(marker or (lambda inbox: NoMarker(inbox.put)))(self.inbox),
            link=self.link,
            outer=NoOuter(),
            nodes=NoNodes(),
            pulse=NoPulse(),
            providers=providers or {},
            reasons={},
            candidates=(),
        )
        for event in before:
            self.inbox.put(event)
        timing = Timing(parts.settings.grace, parts.settings.reserve)
        self.daemon = Daemon(parts, timing, Supervision(self.command, NoHelpers(), lambda: None))
        self._ending: Ending | None = None
        self._thread = threading.Thread(target=self._run, name="the daemon under test", daemon=True)

    def __enter__(self) -> "World":  # noqa: PYI034  # typing.Self is newer than Python 3.10
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.scanning.set()
        self.processes = ()
        self.exit()
        self._thread.join(20)
        self._scanner._thread.join(20)  # the last scan goes into the inbox, which is to be open then
        self._journal.close()
        assert not self._thread.is_alive(), "the loop did not end"
        self.inbox.close()

    def _run(self) -> None:
        ending = self.daemon.run()
        self.daemon.close()
        self._ending = ending

    def _snapshot(self) -> Sequence[Process]:
        self.scanning.wait()
        return self.processes

    # -- what happens ----------------------------------------------------------------------------------------------

    def arrives(self, notice: Notice) -> None:
        self.inbox.put(NoticeArrived("ec2:watch", notice))

    def is_revoked(self, event_id: str = "ec2:terminate") -> None:
        self.inbox.put(NoticeRevoked("ec2:watch", "ec2", event_id))

    def signal(self, signum: Signals) -> None:
        self.inbox.put(SignalArrived(signum))

    def listens(self, number: int = 0) -> None:
        self.inbox.put(LinkJoined(ProcessId(NO_PID + number, 1), "trainer"))

    def says(self, verb: str, number: int = 0) -> None:
        self.inbox.put(LinkSaid(ProcessId(NO_PID + number, 1), verb, {}))

    def exit(self, status: int = 0) -> None:
        self.command.changed.append(Exited(Outcome(status)))
        self.signal(Signals.SIGCHLD)

    # -- what became of it -----------------------------------------------------------------------------------------

    def ending(self) -> Ending:
        return wait_until(lambda: self._ending)  # type: ignore[return-value]  # no longer None

    @property
    def runs(self) -> bool:
        return self._thread.is_alive()

    def notices(self) -> list[int]:
        """List who was sent a notice over the link, by number."""
        return [number for number, message in self.link.said if message["type"] == "notice"]

    def wrote(self, event: str) -> list[Mapping[str, object]]:
        return [line for line in list(self.lines.lines) if line["event"] == event]
