"""What a step pays for agreeing, on RANKS gloo ranks: prints a JSON object, way to µs a call, as rank 0 saw it."""

import json
import multiprocessing
import sys
import time
from collections.abc import Callable
from multiprocessing.queues import SimpleQueue

import torch
import torch.distributed as dist

from preemptd.integrations.torch import agree

CALLS = {"agree()": 20_000, "all_reduce": 50, "broadcast": 50}


def all_reduce() -> bool:
    """Agree as examples do: the flag, reduced over all."""
    stop = torch.zeros(1)
    dist.all_reduce(stop, dist.ReduceOp.MAX)
    return bool(stop.item())


def broadcast() -> bool:
    """Do what Lightning 2.6 does on each batch, for rank 0's flag alone."""
    stop = torch.tensor([0])
    dist.broadcast(stop, src=0)
    return bool(stop.item())


def measure(ask: Callable[[], bool], calls: int, rounds: int) -> list[float]:
    took = []
    for _ in range(rounds):
        dist.barrier()
        began = time.perf_counter()
        for _ in range(calls):
            ask()
        took.append((time.perf_counter() - began) / calls * 1e6)
    return took


def rank(number: int, ranks: int, ports: "SimpleQueue[int]", rounds: int) -> None:
    torch.set_num_threads(1)
    store = dist.TCPStore("127.0.0.1", ports.get(), is_master=False)
    dist.init_process_group("gloo", store=store, rank=number, world_size=ranks)
    ways = {"agree()": agree, "all_reduce": all_reduce, "broadcast": broadcast}
    took = {name: measure(ask, CALLS[name], rounds) for name, ask in ways.items()}
    if number == 0:
        print(json.dumps(took), flush=True)
    dist.barrier()
    dist.destroy_process_group()


def main() -> None:
    ranks, rounds = int(sys.argv[1]), int(sys.argv[2])
    fork = multiprocessing.get_context("fork")
    ports: SimpleQueue[int] = fork.SimpleQueue()
    processes = [fork.Process(target=rank, args=(number, ranks, ports, rounds)) for number in range(ranks)]
    for process in processes:
        process.start()
    # Only now: its server is a thread, and a fork in the middle of what a thread does waits for its locks for ever.
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    for _ in processes:
        ports.put(store.port)
    for process in processes:
        process.join()
    sys.exit(any(process.exitcode for process in processes))


if __name__ == "__main__":
    main()
