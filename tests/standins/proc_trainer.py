"""A training as the launchers see it: it handles the signals it is told to, may load data in workers, and waits.

proc_trainer.py SIGNALS [fork|spawn|forkserver|mp-spawn|mp-fork|mp-forkserver|wandb]; SIGNALS such as USR1,TERM or "-".
Writes "ready PID" to descriptor 1 from each rank.
"""

import multiprocessing
import os
import signal
import sys
import time


class Numbers:
    def __len__(self) -> int:
        return 1_000_000

    def __getitem__(self, index: int) -> int:
        return index


def ready() -> None:
    os.write(1, f"ready {os.getpid()}\n".encode())
    while True:
        time.sleep(60)


def handle(names: str) -> None:
    for name in names.split(","):
        if name != "-":
            signal.signal(signal.Signals[f"SIG{name}"], lambda signum, _: os.write(1, f"got {signum}\n".encode()))


def rank(names: str) -> None:
    handle(names)
    ready()


def main(names: str, kind: str = "") -> None:
    if kind.startswith("mp-"):
        multiprocessing.set_start_method(kind.removeprefix("mp-"))
        ranks = [multiprocessing.Process(target=rank, args=(names,)) for _ in range(2)]
        for process in ranks:
            process.start()
        for process in ranks:
            process.join()
        return
    handle(names)
    kept = []
    if kind == "wandb":
        import wandb

        kept.append(wandb.init(mode="offline", project="p", settings=wandb.Settings(console="off")))
    elif kind:
        from torch.utils.data import DataLoader

        batches = iter(DataLoader(Numbers(), num_workers=2, multiprocessing_context=kind))
        next(batches)
        kept.append(batches)
    ready()


if __name__ == "__main__":
    main(*sys.argv[1:])
