"""A training that notes each signal that reaches it in LOG, and ends with status 0 when the file GO appears."""

import json
import os
import signal
import time


def note(what: str, **more: object) -> None:
    line = json.dumps({"what": what, "pid": os.getpid(), "mono": time.monotonic(), **more})
    fd = os.open(os.environ["LOG"], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    os.write(fd, line.encode() + b"\n")
    os.close(fd)


for signum in (signal.SIGUSR1, signal.SIGUSR2, signal.SIGTERM):
    signal.signal(signum, lambda n, _: note("signal", name=signal.Signals(n).name))
note("ready")
end = time.monotonic() + 60
while not os.path.exists(os.environ["GO"]) and time.monotonic() < end:
    time.sleep(0.01)
note("exit")
