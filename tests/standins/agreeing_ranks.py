"""Ranks that train by torch and agree on the step at which they stop, many times: RANKS ROUNDS SEED.

They are forked from one process that has imported torch. Each round is a new group with a training of its own: by DDP,
at unequal speed with a collective now and then, or by DDP while rank 0 evaluates. Prints a JSON line when a rank begins
a round, and one when it stops; the next one begins when it hears that its notice was revoked.
With --apart there is one round without any collective, in which each rank goes its own way to the end.
"""

import argparse
import json
import multiprocessing
import os
import random
import sys
import time
from collections.abc import Callable
from multiprocessing.queues import SimpleQueue

import torch
import torch.distributed as dist

import preemptd
from preemptd.integrations.torch import agree

KINDS = ("ddp", "uneven", "evaluating")


def say(**words: object) -> None:
    os.write(1, json.dumps(words).encode() + b"\n")


def training(kind: str, group: object, chance: random.Random) -> Callable[[int], None]:
    """Return what takes a step."""
    model = torch.nn.parallel.DistributedDataParallel(torch.nn.Linear(4, 1), process_group=group)

    def together(_: int) -> None:
        model(torch.ones(2, 4)).sum().backward()
        time.sleep(0.002)

    def unevenly(step: int) -> None:
        time.sleep(chance.choice([0, 0.001, 0.001, 0.01]))
        if step % 7 == 6:
            dist.barrier(group)

    def with_evaluation(step: int) -> None:
        together(step)
        if dist.get_rank() == 0 and step % 10 == 9:
            time.sleep(0.05)

    return {"ddp": together, "uneven": unevenly, "evaluating": with_evaluation}[kind]


def play(rounds: int, chance: random.Random) -> None:
    for number in range(rounds):
        group = dist.new_group()
        take_step = training(KINDS[number % len(KINDS)], group, chance)
        say(round=number, rank=dist.get_rank(), begins=os.getpid())
        step = 0
        stop = False
        while not stop:
            take_step(step)
            step += 1
            stop = agree(group=group)
        say(round=number, rank=dist.get_rank(), stops=step, kind=KINDS[number % len(KINDS)])
        while preemptd.should_preempt():
            time.sleep(0.002)
        dist.barrier()
        dist.destroy_process_group(group)


def play_apart() -> None:
    say(rank=dist.get_rank(), begins=os.getpid())
    step = 0
    while not agree():
        step += 1
        if step == 100:
            say(rank=dist.get_rank(), works=True)
        time.sleep(0.002)
    say(rank=dist.get_rank(), stops=step + 1, left=preemptd.time_left())
    os._exit(0)  # the others may be dead, and the store as well


def rank(number: int, options: argparse.Namespace, addresses: "SimpleQueue[str]") -> None:
    torch.set_num_threads(1)
    preemptd.should_preempt()
    dist.init_process_group("gloo", init_method=addresses.get(), rank=number, world_size=options.ranks)
    if options.apart:
        play_apart()
    play(options.rounds, random.Random(options.seed + number))
    dist.barrier()
    dist.destroy_process_group()


def main() -> None:
    parser = argparse.ArgumentParser()
    for name in ("ranks", "rounds", "seed"):
        parser.add_argument(name, type=int)
    parser.add_argument("--file", help="of a FileStore, instead of a TCPStore")
    parser.add_argument("--apart", action="store_true")
    options = parser.parse_args()
    if not options.file:
        os.environ.update(TORCHELASTIC_USE_AGENT_STORE="True")  # as torchrun has it: no rank serves the store
    fork = multiprocessing.get_context("fork")
    addresses: SimpleQueue[str] = fork.SimpleQueue()
    ranks = [fork.Process(target=rank, args=(number, options, addresses)) for number in range(options.ranks)]
    for process in ranks:
        process.start()
    # Kept open here, so that the port is ours alone, for the ranks' whole life; and made only now, for its server is a
    # thread, and a fork in the middle of what a thread does waits for its locks for ever.
    store = None if options.file else dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    for _ in ranks:
        addresses.put(f"file://{options.file}" if store is None else f"tcp://127.0.0.1:{store.port}")
    for process in ranks:
        process.join()
    sys.exit(any(process.exitcode for process in ranks))


if __name__ == "__main__":
    main()
