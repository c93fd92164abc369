"""A torch training in miniature for every launcher: says `ready`, notes what reaches it, saves, ends as it is told to.

LOG names a file to which it appends JSON lines. HOW: USR1 or TERM (a handler that sets a flag), link (preemptd's
client; signals are only noted), none (no handler). Under torchrun, accelerate and --spawn each rank trains by DDP, and
the ranks agree on the step at which they stop; with --alone nobody asks the others.
Files whose names are in the environment: IMPORT_WHEN (imports torch when it exists), SAVE_WHEN (finishes the save),
STOP_WHEN (ends without saving).
"""

import argparse
import json
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

TOLD: list[int] = []


class Numbers:
    """A data set; spawned workers load this module, so torch is imported where it is needed."""

    def __len__(self) -> int:
        return 1_000_000

    def __getitem__(self, number: int) -> float:
        return number / len(self)


def note(what: str, **more: object) -> None:
    line = {"what": what, "pid": os.getpid(), "rank": int(os.environ.get("RANK", "0")), "mono": time.monotonic()}
    fd = os.open(os.environ["LOG"], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    os.write(fd, json.dumps({**line, **more}).encode() + b"\n")
    os.close(fd)


def wait_for(name: str) -> None:
    while not os.path.exists(os.environ.get(name, "/")):
        time.sleep(0.02)


def on_signal(signum: int, _: object) -> None:
    TOLD.append(signum)
    note("signal", name=signal.Signals(signum).name)


def listen(how: str) -> Callable[[], bool]:
    """Install what *how* asks for; the result says whether we were told."""
    for name in {"USR1": ["USR1"], "TERM": ["TERM"], "link": ["USR1", "TERM"]}.get(how, []):
        signal.signal(signal.Signals[f"SIG{name}"], on_signal)
    if how != "link":
        return lambda: bool(TOLD)
    import preemptd

    preemptd.should_preempt()
    return preemptd.should_preempt


def batches(loader: str) -> Iterator["torch.Tensor"]:
    from torch.utils.data import DataLoader

    workers = 2 if loader != "none" else 0
    loaded = DataLoader(Numbers(), 4, num_workers=workers, multiprocessing_context=loader if workers else None)
    return (batch.float() for batch in loaded)


def steps(data: "Iterator[torch.Tensor]", is_told: Callable[[], bool]) -> Iterator[int]:
    """Train until all agree that one of us was told; yield each step."""
    import torch
    import torch.distributed as dist

    together = dist.is_initialized()
    model: torch.nn.Module = torch.nn.Linear(4, 1)
    if together:
        model = torch.nn.parallel.DistributedDataParallel(model)
    for step in range(10_000):
        model(next(data)).sum().backward()
        wanted = torch.tensor([float(is_told()), float(os.path.exists(os.environ.get("STOP_WHEN", "")))])
        if together:
            dist.all_reduce(wanted, dist.ReduceOp.MAX)
        yield step
        if wanted.any():
            return
        time.sleep(0.02)
    note("nobody came")


def save(options: argparse.Namespace, step: int) -> None:
    link = sys.modules.get("preemptd") if options.how == "link" else None
    if link:
        link.saving()
    note("saving")
    wait_for("SAVE_WHEN")
    time.sleep(options.save)
    path = f"{os.environ['CHECKPOINTS']}/step-{os.environ.get('RANK', '0')}.ckpt"
    with open(path + ".tmp", "w") as file:
        file.write(str(step))
    os.rename(path + ".tmp", path)
    note("saved", step=step, path=path)
    if link:
        link.saved(step, path)
        if link.should_preempt():
            note("heard", left=link.time_left())


def train(options: argparse.Namespace) -> None:
    note("importing")
    wait_for("IMPORT_WHEN")
    import torch
    import torch.distributed as dist

    torch.set_num_threads(1)
    if "RANK" in os.environ and not options.alone:
        dist.init_process_group("gloo")
    step, data = 0, batches(options.loader)  # held here, the workers live through the save
    for step in steps(data, listen(options.how)):
        if step == 2:  # both workers have delivered
            note("ready")
        if step % 25 == 0:
            note("step", step=step)
    if not os.path.exists(os.environ.get("STOP_WHEN", "")):
        save(options, step)
    if dist.is_initialized():
        dist.barrier()  # a rank that leaves first takes the others' connections with it
        dist.destroy_process_group()
    note("exit", code=options.exit)


def spawned(rank: int, options: argparse.Namespace, port: int) -> None:
    os.environ.update(RANK=str(rank), WORLD_SIZE=str(options.spawn), MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    train(options)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("how", choices=["USR1", "TERM", "link", "none"])
    parser.add_argument("--loader", choices=["none", "fork", "spawn"], default="none")
    parser.add_argument("--alone", action="store_true")
    parser.add_argument("--spawn", type=int, default=0)
    parser.add_argument("--save", type=float, default=0.5)
    parser.add_argument("--exit", type=int, default=0)
    options = parser.parse_args()
    if options.spawn:
        import torch.multiprocessing

        # Below the range that the kernel hands out, and another one for each test.
        port = 20_000 + os.getpid() % 10_000
        torch.multiprocessing.spawn(spawned, (options, port), options.spawn)
    else:
        train(options)
    sys.exit(options.exit)


if __name__ == "__main__":
    main()
