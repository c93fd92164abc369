"""Watches a process that is not its child, as a restarted preemptd does; passes on the signals that stdin names."""

import signal
import sys
import threading

from preemptd.events import Event, Inbox, TargetExited
from preemptd.model import ProcessId
from preemptd.targets.attached import Attached


def listen(attached: Attached) -> None:
    for line in sys.stdin:
        attached.forward(signal.Signals[line.strip()])


def main() -> None:
    pid, start, group = map(int, sys.argv[1:])
    inbox = Inbox()
    attached = Attached(ProcessId(pid, start), group, inbox.put)
    attached.start()
    threading.Thread(target=listen, args=(attached,), daemon=True).start()
    print("ready", flush=True)
    event: Event | None = inbox.get(30)
    assert isinstance(event, TargetExited)
    print(event.process.pid, event.outcome.status, event.outcome.known, flush=True)
    assert inbox.get(0.05) is None
    attached.finish()
    inbox.close()


main()
