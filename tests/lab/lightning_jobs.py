"""Trainings by Lightning for the tests and the table of docs/lightning.md: how they are started, how they are told."""

import json
import os
import signal
import subprocess
import time
import uuid
from collections.abc import Mapping, Sequence

from tests.lab.launchers import MARK, STANDINS, Job, Place
from tests.waiting import wait_until
from tests.watching import environment

TRAINER = str(STANDINS / "lightning_trainer.py")
PATIENCE = 200.0
"""Seconds for what takes ten: two ranks import torch and Lightning on a machine that does other things as well."""
DDP = {"devices": 2, "strategy": "ddp"}
APART = 0.02
"""Seconds between two SIGTERMs of which one is passed on by a launcher."""


def alone(place: Place, *options: str, **arguments: object) -> list[str]:
    return [place.python, TRAINER, json.dumps(arguments), *options]


def by_itself(place: Place, *options: str, **arguments: object) -> list[str]:
    """Let Lightning start the second rank."""
    return alone(place, "--workers", "2", *options, **{**DDP, **arguments})


def under_torchrun(place: Place, *options: str, **arguments: object) -> list[str]:
    return place.torchrun(TRAINER, json.dumps({**DDP, **arguments}), "--workers", "2", *options)


LAUNCHERS = {"Lightning's own launcher": by_itself, "torchrun": under_torchrun}
SIGNALLED = {"rank 1 only": (1,), "both ranks": (0, 1), "both ranks, twice": (0, 1, 0, 1), "rank 0, twice": (0, 0)}
"""Whom a SIGTERM is sent, in this order; the same rank again after APART."""


class Bare(Job):
    """A training without `preemptd watch` around it; nothing of it outlives the test."""

    def __init__(self, place: Place, command: Sequence[str], env: Mapping[str, str] | None = None) -> None:
        self.mark = f"{MARK}={uuid.uuid4()}"
        self.journal, self.log = place.directory / "job.journal", place.directory / "job.log"
        self.env = {
            "GLOO_SOCKET_IFNAME": "lo",
            "OMP_NUM_THREADS": "1",
            "LOG": str(self.log),
            MARK: self.mark.partition("=")[2],
            **(env or {}),
        }
        self.out = self.err = ""
        self.process = subprocess.Popen(
            command,
            env=environment(self.env),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            cwd=place.directory,
            start_new_session=True,
        )

    def terminate(self, ranks: Sequence[int]) -> None:
        """Send each of *ranks* a SIGTERM, when all of them have trained a few batches."""
        wait_until(lambda: {line["rank"] for line in self.said("batch") if line["index"] == 3} == {0, 1}, PATIENCE)
        pids = {line["rank"]: int(str(line["pid"])) for line in self.said("ready")}
        for count, rank in enumerate(ranks):
            if rank in ranks[:count]:
                time.sleep(APART)
            os.kill(pids[rank], signal.SIGTERM)

    def ended(self, within: float) -> int | None:
        """Return the exit status of the command when all of the job has ended. None: it hangs."""
        try:
            wait_until(lambda: not self.processes(), within, pause=0.1)
        except AssertionError:
            return None
        return self.wait(PATIENCE)
