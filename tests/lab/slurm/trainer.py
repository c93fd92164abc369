"""A training in miniature for SLURM jobs: steps, atomic checkpoints, resuming, and an exact count of what reached it.

It writes into --dir, one set of files a rank (SLURM_PROCID): `trainer-RANK` (JSON lines: ready, signal, saved, exit),
`steps-RANK` (attempt and step, a line each), `checkpoint-RANK`. The standard library is all that it needs.
"""

import argparse
import contextlib
import importlib
import json
import os
import select
import signal
import socket
import sys
import time


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    parser.add_argument("--dir", default=".")
    parser.add_argument("--checkpoints", metavar="DIR", help="where the checkpoint goes, if not into --dir")
    parser.add_argument("--steps", type=int, default=1_000_000)
    parser.add_argument("--step-seconds", type=float, default=0.05)
    parser.add_argument("--every", type=int, default=0, metavar="N", help="save each N steps too")
    parser.add_argument("--save-seconds", type=float, default=0.0)
    parser.add_argument("--catch", default="USR1", metavar="NAMES", help="signals on which it saves; '' for none")
    parser.add_argument("--count", default="", metavar="NAMES", help="signals that it catches and only counts")
    parser.add_argument("--when-told", choices=["exit", "train-on"], default="exit", help="after it has saved")
    parser.add_argument("--code", type=int, default=0, help="exit status after it was told")
    parser.add_argument("--late", type=float, default=0.0, help="seconds before it has a handler")
    parser.add_argument("--link", action="store_true", help="ask preemptd.should_preempt() as well")
    return parser.parse_args()


class Trainer:
    def __init__(self, given: argparse.Namespace) -> None:
        self.given = given
        self.attempt = int(os.environ.get("SLURM_RESTART_COUNT", "0"))
        rank = os.environ.get("SLURM_PROCID", "0")
        self.notes, self.steps = (os.path.join(given.dir, f"{name}-{rank}") for name in ("trainer", "steps"))
        self.checkpoint = os.path.join(given.checkpoints or given.dir, f"checkpoint-{rank}")
        self.step = 0
        self.told = self.asked = False
        self.link = importlib.import_module("preemptd") if given.link else None
        self.heard, wakeup = socket.socketpair()
        self.heard.setblocking(False)
        wakeup.setblocking(False)
        # The wakeup descriptor has a byte a delivery, where Python's own handlers may run once for two.
        self.wakeup = wakeup
        signal.set_wakeup_fd(wakeup.fileno())

    def note(self, what: str, **more: object) -> None:
        line = {"event": what, "step": self.step, "attempt": self.attempt, "mono": time.monotonic(), **more}
        self.append(self.notes, json.dumps({**line, "pid": os.getpid(), "node": os.environ.get("SLURMD_NODENAME")}))

    @staticmethod
    def append(path: str, line: str) -> None:
        fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        os.write(fd, line.encode() + b"\n")
        os.close(fd)

    def resume(self) -> None:
        with contextlib.suppress(FileNotFoundError), open(self.checkpoint) as file:
            self.step = int(file.read())

    def save(self, why: str) -> None:
        """Save atomically; the note says what is safe on disk, so a SIGTERM does not come between the two."""
        time.sleep(self.given.save_seconds)
        with open(self.checkpoint + ".new", "w") as file:
            file.write(str(self.step))
            file.flush()
            os.fsync(file.fileno())
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        os.rename(self.checkpoint + ".new", self.checkpoint)
        self.note("saved", why=why)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})

    def listen(self, seconds: float) -> None:
        """Compute for *seconds*, noting each signal when it comes."""
        end = time.monotonic() + seconds
        while True:
            readable, _, _ = select.select([self.heard], [], [], max(0.0, end - time.monotonic()))
            if not readable:
                return
            for number in self.heard.recv(4096):
                name = signal.Signals(number).name.removeprefix("SIG")
                self.note("signal", name=name)
                self.told = self.told or name in self.given.catch.split(",")

    def train(self) -> int:
        time.sleep(self.given.late)
        for name in filter(None, f"{self.given.catch},{self.given.count}".split(",")):
            signal.signal(signal.Signals[f"SIG{name}"], lambda *_: None)
        self.resume()
        self.note("ready", ignored=[each.name for each in signal.Signals if signal.getsignal(each) == signal.SIG_IGN])
        answered = False
        while self.step < self.given.steps:
            self.listen(self.given.step_seconds)
            self.step += 1
            self.append(self.steps, f"{self.attempt} {self.step}")
            if self.link and not self.asked and self.link.should_preempt():
                self.asked = True
                self.note("asked", left=self.link.time_left())
            if (self.told or self.asked) and not answered:
                answered = True
                self.save("told")
                if self.link:
                    self.link.saved(self.step, self.checkpoint)
                if self.given.when_told == "exit":
                    return int(self.given.code)
            elif self.given.every and self.step % self.given.every == 0:
                self.save("every")
        self.save("finished")
        return 0


def main() -> None:
    trainer = Trainer(arguments())
    code = trainer.train()
    trainer.listen(0.0)
    trainer.note("exit", code=code)
    sys.exit(code)


main()
