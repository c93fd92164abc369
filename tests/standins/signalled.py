"""A training that notes every signal: survives as many as its argument says, and dies of the next that would end it.

LOG names the file for its JSON lines. CORE names a directory: a stand-in for wandb-core with a run opens there.
"""

import json
import os
import resource
import signal
import sys
import time
from pathlib import Path

from tests.standins.wandb_core_process import CoreStandIn

SURVIVES = int(sys.argv[1])
HARMLESS = {signal.SIGCONT, signal.SIGTSTP, signal.SIGWINCH}
ENDING = {signal.SIGHUP, signal.SIGINT, signal.SIGQUIT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2}
CAME: list[int] = []


def note(what: str, **more: object) -> None:
    line = json.dumps({"what": what, "pid": os.getpid(), **more})
    fd = os.open(os.environ["LOG"], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    os.write(fd, line.encode() + b"\n")
    os.close(fd)


def on_signal(signum: int, _: object) -> None:
    note("signal", name=signal.Signals(signum).name)
    if signum in HARMLESS:
        return
    CAME.append(signum)
    if len(CAME) > SURVIVES:
        signal.signal(signum, signal.SIG_DFL)
        signal.raise_signal(signum)


def main() -> None:
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # SIGQUIT
    core = CoreStandIn(Path(os.environ["CORE"]), "good").wait_ready() if "CORE" in os.environ else None
    if core is not None:
        core.order("open run42")
    for signum in ENDING | HARMLESS:
        signal.signal(signum, on_signal)
    note("ready")
    while True:
        time.sleep(0.02)  # a signal that reaches another thread, or comes just before the sleep, does not end it


main()
