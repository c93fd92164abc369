"""What a job script does after the training: says that it runs, takes its time, says that it is done; no handlers."""

import json
import os
import time


def note(what: str) -> None:
    with open(os.environ["LOG"], "a") as log:
        log.write(json.dumps({"what": what, "pid": os.getpid(), "mono": time.monotonic()}) + "\n")


note("uploading")
time.sleep(3)  # many looks of the daemon
note("uploaded")
