"""Uses Checkpointer on two gloo ranks in one way after the other; prints a JSON line for each.

argv: a directory. torch is imported once: the ranks are forked. What each rank found is listed by rank; `ended` names
how it ended instead, where it did.
"""

import json
import logging
import os
import random
import signal
import sys
import time
import traceback
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
from torch._dynamo import disable  # noqa: F401  # DDP imports it, which takes seconds: once here, not in each rank
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

import preemptd
from preemptd.integrations.checkpoint import Checkpointer
from tests.standins.checkpoint_cases import Counter, error_of, flip

Case = Callable[[], object]


def rank() -> int:
    return int(dist.get_rank())


def linear(value: float) -> torch.nn.Linear:
    model = torch.nn.Linear(2, 2)
    with torch.no_grad():
        model.weight.fill_(value)
    return model


def each_rank_gets_its_own_back() -> object:
    random.seed(rank())
    Checkpointer("c", model=DistributedDataParallel(linear(1.0)), loader=Counter(rank() + 10)).save(5)
    expected = random.random()
    random.seed(99)
    loader, model = Counter(), linear(0.0)
    restored = Checkpointer("c", model=DistributedDataParallel(model), loader=loader).load_latest()
    assert restored is not None
    return [
        restored.step,
        loader.value,
        random.random() == expected,
        float(model.weight.detach()[0, 0]),
        len(os.listdir(restored.path)),
    ]


def two_ranks_save() -> object:
    Checkpointer("two", model=DistributedDataParallel(linear(3.0)), loader=Counter(rank() + 10)).save(5)
    return "saved"


def a_file_of_one_rank_is_damaged() -> object:
    loader = Counter(1)
    checkpointer = Checkpointer("c", loader=loader)
    checkpointer.save(1)
    loader.value = 2
    path = checkpointer.save(2)
    if rank() == 0:
        flip(f"{path}/rank-1.pt")
    dist.barrier()
    restored = checkpointer.load_latest()
    return [restored and restored.step, loader.value]


def one_rank_dies_before_the_manifest() -> object:
    checkpointer = Checkpointer("c", loader=Counter(rank()))
    checkpointer.save(1)
    if rank() == 1:
        renamed = os.rename

        def rename(before: str, after: str) -> None:
            renamed(before, after)
            os.kill(os.getpid(), signal.SIGKILL)

        os.rename = rename  # type: ignore[assignment]
    try:
        checkpointer.save(2)
    except Exception as error:  # noqa: BLE001  # whatever gloo raises when a peer is gone  # noqa: BLE001  # what gloo raises when a peer is gone
        return type(error).__name__
    return "saved"


def the_next_start_agrees() -> object:
    loader = Counter()
    restored = Checkpointer("../one_rank_dies_before_the_manifest/c", loader=loader).load_latest()
    return [restored and restored.step, loader.value]


def the_ranks_do_not_see_one_directory() -> object:
    if rank() == 1:  # as on a machine where the disk is not mounted
        os.path.isdir = lambda path: not str(path).endswith("generation-00000001")  # type: ignore[assignment]
    return "have to see one and the same directory" in error_of(lambda: Checkpointer("c").save(1))


def one_rank_cannot_write() -> object:
    loader = Counter(rank())
    checkpointer = Checkpointer("c", loader=loader)
    checkpointer.save(1)
    if rank() == 1:
        loader.value = Path("x")
    error = error_of(lambda: checkpointer.save(2))
    restored = Checkpointer("c", loader=Counter()).load_latest()
    return ["rank-1.pt could not be loaded" in error, restored and restored.step, os.listdir("c/default")]


def one_rank_is_told_and_all_leave() -> object:
    checkpointer = Checkpointer("c", loader=Counter(rank()))
    preemptd.should_preempt()
    checkpointer.step(1)
    if rank() == 1:
        os.kill(os.getpid(), signal.SIGUSR1)
    try:
        checkpointer.step(2)
    except SystemExit as error:
        return [error.code, preemptd.should_preempt(), sorted(os.listdir("c/default"))]
    return "stayed"


def a_model_that_is_spread_over_the_ranks_is_refused() -> object:
    model = linear(1.0)
    fully_shard(model)
    return error_of(lambda: Checkpointer("c", model=model))


def alone(case: Callable[[], object]) -> Callable[[], object]:
    case.is_alone = True  # type: ignore[attr-defined]
    return case


@alone
def one_process_loads_what_two_have_saved() -> object:
    model, loader = linear(0.0), Counter("untouched")
    restored = Checkpointer("../two_ranks_save/two", model=model, loader=loader).load_latest()
    return [restored and restored.step, float(model.weight.detach()[0, 0]), loader.value]


CASES: tuple[Case, ...] = (
    each_rank_gets_its_own_back,
    two_ranks_save,
    one_process_loads_what_two_have_saved,
    a_file_of_one_rank_is_damaged,
    one_rank_dies_before_the_manifest,
    the_next_start_agrees,
    the_ranks_do_not_see_one_directory,
    one_rank_cannot_write,
    one_rank_is_told_and_all_leave,
    a_model_that_is_spread_over_the_ranks_is_refused,
)


def run(case: Case, number: int, size: int) -> None:
    logging.basicConfig(filename=f"log-{number}", format="%(message)s")
    if size > 1:
        store = dist.FileStore(os.path.abspath("store"), size)
        dist.init_process_group("gloo", store=store, rank=number, world_size=size, timeout=timedelta(seconds=60))
    try:
        found = case()
    except BaseException:  # noqa: BLE001  # it is reported  # noqa: BLE001  # it is reported
        found = traceback.format_exc()
    Path(f"found-{number}").write_text(json.dumps(found))
    if size > 1 and "dies" not in case.__name__:
        dist.barrier()  # nobody takes the connections away
    os._exit(0)


def main() -> None:
    torch.set_num_threads(1)
    top = Path(sys.argv[1])
    for case in CASES:
        (top / case.__name__).mkdir()
        os.chdir(top / case.__name__)
        began, size = time.monotonic(), 1 if hasattr(case, "is_alone") else 2
        children = []
        for number in range(size):
            children.append(os.fork())
            if children[-1] == 0:
                run(case, number, size)
        for child in children:
            os.waitpid(child, 0)
        texts = [Path(f"found-{number}") for number in range(size)]
        found = [json.loads(text.read_text()) if text.exists() else None for text in texts]
        log = [Path(f"log-{number}").read_text().splitlines() for number in range(size)]
        print(
            json.dumps({"case": case.__name__, "found": found, "log": log, "s": time.monotonic() - began}), flush=True
        )


main()
