"""Uses Checkpointer in one way after the other; prints a JSON line for each: its name, what it found, what was logged.

argv: a directory. torch is imported once: each case runs in a forked child, in a directory of its own.
"""

import inspect
import json
import logging
import os
import random
import re
import resource
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch

from preemptd.integrations import random_state
from preemptd.integrations.checkpoint import Checkpointer, CheckpointError, run_ids


class Counter:
    """Anybody's object."""

    def __init__(self, value: Any = 0) -> None:
        self.value = value

    def state_dict(self) -> Any:
        return {"value": self.value}

    def load_state_dict(self, state: Any) -> None:
        self.value = state["value"]


class Broken(Counter):
    def state_dict(self) -> Any:
        raise KeyError("gradient")


def error_of(act: Callable[[], object]) -> str:
    try:
        act()
    except CheckpointError as error:
        return str(error)
    return ""


def training() -> dict[str, Any]:
    model = torch.nn.Linear(4, 4)
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.ones(1, 4)).sum().backward()
    optimizer.step()
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1)
    scheduler.step()
    return {"model": model, "optimizer": optimizer, "scheduler": scheduler, "scaler": torch.amp.GradScaler("cpu")}


def everything_comes_back() -> object:
    first, second = training(), training()
    Checkpointer("c", **first, counter=Counter(7), nothing=None).save(1_234_567)
    counter = Counter()
    restored = Checkpointer("c", **second, counter=counter).load_latest()
    assert restored is not None
    same = [str(first[name].state_dict()) == str(second[name].state_dict()) for name in first]
    return [restored.step, counter.value, same, restored.metadata, sorted(os.listdir(restored.path))]


def drawn() -> list[float]:
    return [random.random(), random.gauss(0, 1), np.random.rand(), np.random.randn(), float(torch.rand(1))]


def the_random_numbers_go_on_where_they_were() -> object:
    random.gauss(0, 1)
    np.random.randn()  # of a pair: the other one is part of the state
    Checkpointer("c").save(1)
    expected = drawn()
    for seed in (random.seed, np.random.seed, torch.manual_seed):
        seed(99)
    Checkpointer("c").load_latest()
    return drawn() == expected


def the_state_of_a_gpu_that_is_gone_is_left_out() -> object:
    states = {**random_state.state(), "cuda": torch.zeros(16, dtype=torch.uint8)}
    random_state.restore(states)
    return "done"


def metadata_is_plain_when_it_comes_back() -> object:
    checkpointer = Checkpointer("c")
    checkpointer.save(
        int(np.int64(5)),
        {"loss": np.float32(0.5), "n": torch.tensor(3), "a": (np.float64(1), True), "best": float("inf")},
    )
    restored = checkpointer.load_latest()
    assert restored is not None
    return [restored.step, restored.metadata == {"loss": 0.5, "n": 3, "a": [1.0, True], "best": float("inf")}]


def metadata_that_would_not_come_back_is_refused_at_the_save() -> object:
    checkpointer = Checkpointer("c")
    checkpointer.save(1)
    error = error_of(lambda: checkpointer.save(2, {"a": np.zeros(2)}))
    restored = checkpointer.load_latest()
    return [error, restored and restored.step, os.listdir("c/default")]


def what_could_not_be_loaded_is_refused_at_the_save() -> object:
    checkpointer = Checkpointer("c", counter=Counter(Path("x")))
    Checkpointer("c", counter=Counter(1)).save(1)
    error = error_of(lambda: checkpointer.save(2))
    there = os.listdir("c/default")
    trusting = Checkpointer("c", counter=Counter(Path("x")), weights_only=False)
    trusting.save(3)
    restored = trusting.load_latest()
    return [error, there, restored and restored.step]


def a_state_dict_that_raises_leaves_nothing_behind() -> object:
    Checkpointer("c", counter=Counter()).save(1)
    raises = error_of(lambda: Checkpointer("c", counter=Broken()).save(2))
    pickles = error_of(lambda: Checkpointer("c", counter=Counter(lambda: 1)).save(2))
    return [raises, pickles, os.listdir("c/default")]


def flip(path: str) -> None:
    data = bytearray(Path(path).read_bytes())
    data[len(data) // 2] ^= 1
    Path(path).write_bytes(data)


def a_flipped_bit_costs_one_checkpoint_and_one_line() -> object:
    counter = Counter(1)
    checkpointer = Checkpointer("c", counter=counter)
    checkpointer.save(1)
    counter.value = 2
    flip(f"{checkpointer.save(2)}/rank-0.pt")
    restored = checkpointer.load_latest()
    checkpointer.save(3)
    checkpointer.save(4)
    return [restored and restored.step, counter.value, sorted(os.listdir("c/default"))]


def the_damaged_one_does_not_count_as_one_that_is_kept() -> object:
    checkpointer = Checkpointer("c")
    checkpointer.save(1)
    flip(f"{checkpointer.save(2)}/shared.pt")
    checkpointer.load_latest()
    flip(f"{checkpointer.save(3)}/shared.pt")
    restored = checkpointer.load_latest()
    return restored and restored.step


def nothing_that_is_whole_is_an_error() -> object:
    checkpointer = Checkpointer("c")
    flip(f"{checkpointer.save(1)}/shared.pt")
    return error_of(checkpointer.load_latest)


def nothing_at_all_is_none() -> object:
    return [Checkpointer("c").load_latest(), os.path.exists("c")]


def a_state_that_does_not_fit_is_an_error() -> object:
    Checkpointer("c", model=torch.nn.Linear(2, 2)).save(1)
    return [
        error_of(Checkpointer("c", model=torch.nn.Linear(3, 2)).load_latest),
        error_of(Checkpointer("c", model=torch.nn.Linear(2, 2), ema=Counter()).load_latest),
        error_of(Checkpointer("c").load_latest),
    ]


def a_full_disk_is_an_error_and_leaves_what_was_there() -> object:
    counter = Counter(torch.zeros(10))
    checkpointer = Checkpointer("c", counter=counter)
    checkpointer.save(1)
    counter.value = torch.zeros(2**22)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2**21, -1))
    error = error_of(lambda: checkpointer.save(2))
    counter.value = torch.zeros(20)
    checkpointer.save(3)
    return [error, sorted(os.listdir("c/default")), os.listdir("c/default/generation-00000001") != []]


def a_directory_that_cannot_be_made_is_an_error() -> object:
    Path("c").write_text("a file")
    return [error_of(lambda: Checkpointer("c").save(1)), error_of(Checkpointer("c").load_latest)]


def a_compiled_model_is_the_model() -> object:
    model = torch.nn.Linear(2, 2)
    Checkpointer("c", model=torch.compile(torch.nn.DataParallel(model))).save(1)
    other = torch.nn.Linear(2, 2)
    Checkpointer("c", model=other).load_latest()
    Checkpointer("c", model=torch.compile(other)).load_latest()
    return bool((other.weight == model.weight).all())


def what_has_no_state_is_refused() -> object:
    try:
        Checkpointer("c", model=object())  # type: ignore[arg-type]
    except TypeError as error:
        return str(error)
    return None


def the_run_is_wandbs_if_there_is_one() -> object:
    Checkpointer("c").save(1)
    os.environ["WANDB_RUN_ID"] = "from-env"
    Checkpointer("c").save(1)
    sys.modules["wandb"] = SimpleNamespace(run=SimpleNamespace(id="of-a-day", disabled=True))  # type: ignore[assignment]
    Checkpointer("c").save(1)
    sys.modules["wandb"] = SimpleNamespace(run=SimpleNamespace(id="from-run"))  # type: ignore[assignment]
    Checkpointer("c").save(1)
    Checkpointer("c", run_id="mine").save(1)
    restored = Checkpointer("c", run_id="mine").load_latest()
    return [run_ids("c"), restored and restored.run_id, error_of(Checkpointer("c", run_id="../x").load_latest)]


def who_begins_under_another_name_is_told_of_those_that_are_there() -> object:
    Checkpointer("c", run_id="before").save(1)
    return Checkpointer("c", run_id="now").load_latest()


def the_starts_of_a_run_are_counted() -> object:
    resumes = []
    for step in range(3):
        checkpointer = Checkpointer("c")
        restored = checkpointer.load_latest()
        resumes.append(restored.resumes if restored else None)
        checkpointer.save(step)
        checkpointer.save(step)
    return resumes


def lower_steps_are_the_latest_if_they_were_saved_last() -> object:
    Checkpointer("c").save(2_000_000)
    Checkpointer("c").save(7)
    restored = Checkpointer("c").load_latest()
    return restored and restored.step


def who_takes_longer_than_the_grace_is_told_once() -> object:
    checkpointer = Checkpointer("c", grace=0.0)
    for step in range(3):
        checkpointer.save(step)
    resumed = Checkpointer("c")
    resumed.load_latest()
    return [resumed.seconds is not None and 0 < resumed.seconds < 60]


def it_can_all_be_removed() -> object:
    checkpointer = Checkpointer("c")
    checkpointer.save(1)
    Checkpointer("c", run_id="default_2").save(1)
    checkpointer.remove()
    return [os.listdir("c"), checkpointer.load_latest()]


def nobody_loads_wandb() -> object:
    checkpointer = Checkpointer("c")
    checkpointer.save(1)
    checkpointer.load_latest()
    return "wandb" in sys.modules


def page() -> str:
    return (Path(__file__).parents[2] / "docs" / "checkpointer.md").read_text()


def the_page_names_every_parameter() -> object:
    parameters = inspect.signature(Checkpointer).parameters.values()
    plain_ones = [str(parameter.replace(annotation=parameter.empty)) for parameter in parameters]
    return f"`Checkpointer({', '.join([plain_ones[0], '*', *plain_ones[1:]]).replace(' = ', '=')})`" in page()


def the_examples_of_the_page_work() -> object:
    first, second = re.findall(r"^```python\n(.*?)^```", page(), re.MULTILINE | re.DOTALL)
    there = {**training(), "steps": 3, "train": lambda _: 0.5}
    exec(first, there)
    os.environ |= {"WANDB_MODE": "offline", "WANDB_DIR": os.getcwd()}
    exec(second, there)
    there["wandb"].finish()
    restored = there["restored"]
    return [os.listdir("checkpoints/default"), restored.step, restored.resumes, restored.metadata]


def main() -> None:
    torch.set_num_threads(1)
    top = Path(sys.argv[1])
    for name, case in list(globals().items()):
        if callable(case) and getattr(case, "__module__", "") == "__main__" and "_" in name and name != "error_of":
            (top / name).mkdir()
            child = os.fork()
            if child == 0:
                os.chdir(top / name)
                logging.basicConfig(filename="log", format="%(message)s")
                try:
                    found = case()
                except BaseException:  # noqa: BLE001  # it is reported  # noqa: BLE001  # it is reported
                    found = traceback.format_exc()
                line = {"case": name, "found": found, "log": Path("log").read_text().splitlines()}
                print(json.dumps(line), flush=True)
                os._exit(0)
            os.waitpid(child, 0)


if __name__ == "__main__":
    main()
