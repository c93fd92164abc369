"""Forks and ends many held commands: no signal may be swallowed or come back to us, no descriptor may be left."""

import os
import signal

from preemptd.errors import CommandError
from preemptd.events import Inbox, SignalArrived
from preemptd.targets.child import Child, Exited

ROUNDS = 60


def end_of(child: Child, inbox: Inbox) -> list[object]:
    """Wait for the end of *child*; what arrived besides SIGCHLD comes back."""
    others: list[object] = []
    ended = False
    while not ended:
        event = inbox.get(5)
        if event != SignalArrived(signal.SIGCHLD):
            others.append(event)
        ended = any(isinstance(change, Exited) for change in child.changes())
    return others


def main() -> None:
    inbox = Inbox()
    inbox.catch(frozenset({signal.SIGCHLD, signal.SIGTERM, signal.SIGUSR1}))
    before = set(os.listdir("/proc/self/fd"))
    wrong: list[object] = []
    for turn in range(ROUNDS):
        signum = (signal.SIGTERM, signal.SIGUSR1)[turn % 2]
        child = Child.prepare(["sleep", "60"], os.environ)
        if turn % 4 == 0:
            child.release()
        child.forward(signum)
        wrong += end_of(child, inbox)
        if child.outcome is None or child.outcome.status != 128 + signum:
            wrong.append(child.outcome)
        if os.getpgid(child.pid) != child.pid:  # not reaped before finish(): pid and group are still its own
            wrong.append("reaped early")
        child.finish()
        child.forward(signal.SIGKILL)
        child.finish()
    for _ in range(5):
        child = Child.prepare(["./none"], {})
        try:
            child.release()
        except CommandError as error:
            if error.status != 127:
                wrong.append(error)
        Child.prepare(["true"], {}).abandon()
    left = set(os.listdir("/proc/self/fd")) - before
    try:
        os.waitpid(-1, os.WNOHANG)
        wrong.append("a child is left")
    except ChildProcessError:
        inbox.close()
    print(f"wrong {wrong}, left {left}")


main()
