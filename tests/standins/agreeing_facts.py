"""What `agree` answers with no group of several, and as groups come and go: RANK DIRECTORY; prints a JSON object."""

import json
import os
import socket
import sys
import threading
import time
from collections.abc import Callable

import torch.distributed as dist

import preemptd
from preemptd.integrations.torch import agree


def threads() -> int:
    return sum(thread.name == "preemptd-agree" for thread in threading.enumerate())


def refuse(_: threading.Thread) -> None:
    raise RuntimeError("can't start new thread")


def path(name: str) -> str:
    return os.path.join(sys.argv[2], name)


def wait_for(look: Callable[[], bool]) -> bool:
    end = time.monotonic() + 30
    while not look() and time.monotonic() < end:
        time.sleep(0.02)
    return look()


def init(name: str, rank: int, world: int) -> None:
    """Make the group from a file: two processes that take one port again would meet each other's last server."""
    dist.init_process_group("gloo", init_method=f"file://{path(name)}", rank=rank, world_size=world)


def init_by_tcp(rank: int) -> int:
    """Have rank 0 serve the store; return the port."""
    if rank == 0:
        store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
        with open(path("port.tmp"), "w") as file:
            file.write(str(store.port))
        os.rename(path("port.tmp"), path("port"))
    else:
        wait_for(lambda: os.path.exists(path("port")))
        with open(path("port")) as file:
            store = dist.TCPStore("127.0.0.1", int(file.read()), is_master=False)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=2)
    port: int = store.port
    return port


def is_refused(port: int) -> bool:
    with socket.socket() as connection:
        return connection.connect_ex(("127.0.0.1", port)) != 0


def in_a_child() -> list[bool]:
    """Fork, and let the child ask: it must not speak for its parent."""
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.write(write, json.dumps([agree(), threads() > 0]).encode())
        os._exit(0)
    os.waitpid(pid, 0)
    found: list[bool] = json.loads(os.read(read, 100))
    return found


def main() -> None:
    rank = int(sys.argv[1])
    found: dict[str, object] = {}
    is_available = dist.is_available
    dist.is_available = lambda: False  # as in a torch that was built without it
    found["without torch.distributed"] = agree()
    dist.is_available = is_available
    found["without a group"] = agree()
    init(f"alone{rank}", 0, 1)
    found["alone in a group"] = [agree(), threads()]
    dist.destroy_process_group()
    port = 0
    for time_around in range(3):
        if time_around < 2:
            init(f"time{time_around}", rank, 2)
        else:
            port = init_by_tcp(rank)
        found[f"time {time_around}"] = [agree() for _ in range(100)].count(True)
        found["in a group of rank 0"] = agree(group=dist.new_group([0]))
        dist.barrier()
        found["child"] = in_a_child()
        dist.barrier()
        dist.destroy_process_group()
    found["after the group"] = agree()
    found["the store's server has ended"] = wait_for(lambda: is_refused(port))
    wait_for(lambda: threads() == 0)
    found["threads at the end"] = threads()
    init("last", rank, 2)
    start = threading.Thread.start
    setattr(threading.Thread, "start", refuse)  # noqa: B010  # as if the kernel had none
    found["no thread to be had"] = agree()
    setattr(threading.Thread, "start", start)  # noqa: B010
    both = dist.new_group([0, 1])
    if rank == 0:
        preemptd.notify(20.0, "the test says so")
    calls = 0
    while not agree(group=both):
        calls += 1
        time.sleep(0.001)
    found["stopped at"] = calls
    found["a second user stops as well"] = agree(group=both)
    found["source"] = notice.source if (notice := preemptd.notice()) else None
    dist.barrier()
    print(json.dumps(found), flush=True)
    # And no destroy_process_group: the end of the interpreter finds the thread of the other group at work.
    agree()
    dist.barrier()


if __name__ == "__main__":
    main()
