"""A launcher with ranks that train on whatever is announced, until the file END is there or their launcher has gone.

Usage: crew.py HOW...: for each a rank of which the launcher knows nothing. link: asks preemptd's client, and notes each
change of what is open; USR1: catches it, and notes when. LOG names the file of notes, one JSON line each.
"""

import json
import os
import signal
import subprocess
import sys
import time

END = os.environ["END"]
ABOVE = os.getppid()


def note(what: str, **more: object) -> None:
    line = json.dumps({"what": what, "pid": os.getpid(), "mono": time.monotonic(), **more})
    fd = os.open(os.environ["LOG"], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    os.write(fd, line.encode() + b"\n")
    os.close(fd)


def goes_on() -> bool:
    time.sleep(0.01)
    return os.getppid() == ABOVE and not os.path.exists(END)


def asks() -> None:
    import preemptd

    preemptd.should_preempt()
    note("ready")
    known: object = None
    while goes_on():
        notice = preemptd.notice()
        if notice != known:
            note("open", event=notice and notice.event_id, deadline=notice and notice.deadline)
            known = notice


def catches() -> None:
    signal.signal(signal.SIGUSR1, lambda *_: note("signal"))
    note("ready")
    while goes_on():
        pass


def launches(ways: list[str]) -> None:
    ranks = [subprocess.Popen([sys.executable, __file__, "rank", how]) for how in ways]
    while goes_on() and any(rank.poll() is None for rank in ranks):
        pass
    for rank in ranks:
        rank.wait()


if sys.argv[1] != "rank":
    launches(sys.argv[1:])
elif sys.argv[2] == "link":
    asks()
else:
    catches()
