"""A small `watch`: Inbox, Child and Helpers under one loop, and nothing else.

CHILD_LOG names a file that gets a line for each thing that happens. CHILD_HOLD=1 keeps the command behind the gate
until SIGUSR2; CHILD_HOLD=abandon ends it then. CHILD_TALKS=1 says all on stderr, too.
"""

import os
import signal
import sys
import time

from preemptd.errors import CommandError
from preemptd.events import Inbox, SignalArrived
from preemptd.targets.child import Child, Continued, Exited, Stopped
from preemptd.targets.reaping import Helpers
from preemptd.targets.terminal import interrupt_own_group

CAUGHT = frozenset(
    {
        signal.SIGHUP,
        signal.SIGINT,
        signal.SIGQUIT,
        signal.SIGTERM,
        signal.SIGUSR1,
        signal.SIGUSR2,
        signal.SIGCHLD,
        signal.SIGCONT,
        signal.SIGTSTP,
    }
)


def say(text: str) -> None:
    path = os.environ.get("CHILD_LOG")
    if path:
        with open(path, "a") as log:
            log.write(text + "\n")
    if "CHILD_TALKS" in os.environ:
        print(text, file=sys.stderr, flush=True)


def on_signal(signum: signal.Signals, child: Child, helpers: Helpers, hold: str) -> None:
    if signum is signal.SIGCHLD:
        for change in child.changes():
            if isinstance(change, Stopped):
                say(f"stopped {signal.Signals(change.signum).name}")
                child.suspend_with()
            elif isinstance(change, Continued):
                say("continued")
            elif isinstance(change, Exited):
                say(f"exited {change.outcome.status}")
        reaped = helpers.reap_orphans(child.pid)
        if reaped:
            say(f"reaped {reaped}")
    elif signum is signal.SIGCONT:
        child.resume()
        say("resumed")
    elif signum is signal.SIGUSR2 and hold == "abandon":
        child.abandon()
    elif signum is signal.SIGUSR2 and hold:
        before = time.monotonic()
        child.release()
        say(f"released {1000 * (time.monotonic() - before):.1f}")
    else:
        say(f"forwarding {signum.name}")
        child.forward(signum)


def main() -> int:
    hold = os.environ.get("CHILD_HOLD", "")
    inbox = Inbox()
    kept = {s for s in (signal.SIGHUP, signal.SIGINT, signal.SIGQUIT) if signal.getsignal(s) is signal.SIG_IGN}
    inbox.catch(CAUGHT - kept)
    helpers = Helpers()
    env = {name: value for name, value in os.environ.items() if not name.startswith("CHILD_")}
    if "CHILD_PATH" in os.environ:
        env["PATH"] = os.environ["CHILD_PATH"]
    child = Child.prepare(sys.argv[1:], env)
    say(f"prepared {child.pid} {child.id.start}")
    try:
        if not hold:
            child.release()
            say("released")
        while child.outcome is None:
            event = inbox.get(1.0)
            if isinstance(event, SignalArrived):
                on_signal(event.signum, child, helpers, hold)
            elif event is None:
                helpers.reap_orphans(child.pid)
    except CommandError as error:
        print(f"preemptd: {error}", file=sys.stderr)
        return error.status
    finally:
        child.finish()
        inbox.close()
    if child.interrupted:
        interrupt_own_group()
    return child.outcome.status


sys.exit(main())
