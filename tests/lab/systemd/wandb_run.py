"""A training with an offline W&B run: logs until SIGUSR1, and ends as if nothing had happened. wandb_run.py LOG"""

import json
import os
import signal
import sys
import time

import wandb

told: list[int] = []
signal.signal(signal.SIGUSR1, lambda signum, _: told.append(signum))


def note(what: str, run_id: str) -> None:
    with open(sys.argv[1], "a") as file:
        file.write(json.dumps({"what": what, "pid": os.getpid(), "run_id": run_id}) + "\n")


with wandb.init(project="lab", mode="offline", dir=os.path.expanduser("~")) as run:
    note("ready", run.id)
    while not told:
        run.log({"loss": 1.0})
        time.sleep(0.1)
note("ended", run.id)
