"""A training by Lightning in miniature; LOG names a file to which it appends JSON lines.

Usage: lightning_trainer.py ARGUMENTS [options]. ARGUMENTS is JSON: the Trainer's own. It notes which samples each batch
has seen, so that a test can count them. With --sessions it reads lines of JSON, a directory and such a command line
each, runs one after the other in a forked process of its own, and notes there how each of them ended.
"""

import argparse
import importlib
import json
import os
import signal
import sys
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch.utils.data import DataLoader

RANK = int(os.environ.get("RANK", os.environ.get("LOCAL_RANK", "0")))
COUNTS: Counter[str] = Counter()


def note(what: str, **more: object) -> None:
    line = json.dumps({"what": what, "pid": os.getpid(), "rank": RANK, "mono": time.monotonic(), **more})
    fd = os.open(os.environ["LOG"], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    os.write(fd, line.encode() + b"\n")
    os.close(fd)


class Numbers(torch.utils.data.Dataset):  # type: ignore[misc]  # mypy does not see torch
    def __init__(self, count: int) -> None:
        self.count = count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> torch.Tensor:
        return torch.tensor([float(index)])


class Resumable(DataLoader):  # type: ignore[misc]  # mypy does not see torch
    """Goes on within an epoch, as StatefulDataLoader of torchdata does; Lightning keeps its state in checkpoints."""

    given = skipped = 0

    def __iter__(self) -> Iterator[torch.Tensor]:
        skipped, self.skipped = self.skipped, 0
        return self.rest(super().__iter__(), skipped)

    def rest(self, batches: Iterator[torch.Tensor], skipped: int) -> Iterator[torch.Tensor]:
        self.given = 0
        for batch in batches:
            self.given += 1
            if self.given > skipped:
                yield batch

    def state_dict(self) -> dict[str, int]:
        return {"given": self.given}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.skipped = state["given"]


def model_of(package: Any, options: argparse.Namespace) -> Any:  # noqa: C901  # a model has many methods
    class Model(package.LightningModule):  # type: ignore[misc]  # one of two packages
        def __init__(self) -> None:
            super().__init__()
            self.layer = torch.nn.Linear(1, 1)

        def training_step(self, batch: torch.Tensor, index: int) -> torch.Tensor:
            self.note("batch", index, samples=[int(number) for number in batch[:, 0]])
            return self.layer(batch % 100 / 100).square().mean()

        def validation_step(self, _batch: torch.Tensor, index: int) -> None:
            self.note("sanity" if self.trainer.sanity_checking else "validated", index)

        def test_step(self, _batch: torch.Tensor, index: int) -> None:  # noqa: PT019  # Lightning's test
            self.note("tested", index)

        def predict_step(self, _batch: torch.Tensor, index: int) -> None:
            self.note("predicted", index)

        def note(self, what: str, index: int, **more: object) -> None:
            time.sleep(options.pace)
            note(what, epoch=self.current_epoch, index=index, step=self.global_step, **more)
            COUNTS[what] += 1
            if options.tell == f"{what}:{COUNTS[what]}":
                os.kill(os.getpid(), signal.SIGUSR1)

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.SGD(self.parameters(), 0.01)

        def on_train_start(self) -> None:
            note("ready", step=self.global_step, weight=self.layer.weight.item())

        def on_save_checkpoint(self, _checkpoint: object) -> None:
            note("saving", step=self.global_step, weight=self.layer.weight.item())

    return Model()


def parse(words: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    parser.add_argument("arguments", type=json.loads)
    parser.add_argument("--package", default="lightning.pytorch", help="or pytorch_lightning")
    parser.add_argument("--without", action="store_true", help="train without preemptd")
    parser.add_argument("--on-exception", action="store_true", help="with Lightning's own OnExceptionCheckpoint")
    parser.add_argument("--checkpoints", default="", help="give ModelCheckpoint this directory, and resume by 'last'")
    parser.add_argument("--wandb", action="store_true", help="log to a W&B run")
    parser.add_argument("--workers", type=int, default=0, help="of each DataLoader")
    parser.add_argument("--batches", type=int, default=1000, help="of an epoch and rank")
    parser.add_argument("--validation", type=int, default=0, help="batches of a validation")
    parser.add_argument("--pace", type=float, default=0.02, help="seconds a batch")
    parser.add_argument("--tell", default="", help="WHAT:COUNT, where it sends SIGUSR1 to itself")
    parser.add_argument("--before", action="store_true", help="train another model first, and tell nobody of it")
    parser.add_argument("--then", default="", help="test, predict or validate when it has trained")
    return parser.parse_args(words)


def callbacks(options: argparse.Namespace) -> list[object]:
    offered = importlib.import_module(f"{options.package}.callbacks")
    chosen = []
    if options.checkpoints:
        chosen.append(offered.ModelCheckpoint(options.checkpoints, save_last=True))
    if options.on_exception:
        chosen.append(offered.OnExceptionCheckpoint("."))
    if not options.without:
        from preemptd.integrations.lightning import PreemptionCallback

        chosen.insert(0, PreemptionCallback())
    return chosen


def train_before(package: Any, arguments: Mapping[str, object]) -> None:
    from preemptd.integrations.lightning import PreemptionCallback

    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "enable_checkpointing": False}
    own = {"logger": False, "max_steps": 1, "default_root_dir": "before", "callbacks": [PreemptionCallback()], **quiet}
    package.Trainer(accelerator="cpu", **{**arguments, **own}).fit(package.demos.boring_classes.BoringModel())


def run(options: argparse.Namespace) -> None:
    package = importlib.import_module(options.package)
    if options.before:
        importlib.import_module(f"{options.package}.demos.boring_classes")
        train_before(package, options.arguments)
    loggers = importlib.import_module(f"{options.package}.loggers")
    own = {
        "accelerator": "cpu",
        "max_epochs": 3,
        "logger": loggers.WandbLogger(project="lightning", save_dir=".") if options.wandb else False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "enable_checkpointing": bool(options.checkpoints or options.on_exception),
        "callbacks": callbacks(options),
    }
    trainer = package.Trainer(**{**own, **options.arguments})
    ranks = options.arguments.get("devices", 1)

    def data(batches: int) -> Resumable | None:
        return Resumable(Numbers(2 * ranks * batches), 2, num_workers=options.workers) if batches else None

    torch.manual_seed(1)
    model = model_of(package, options)
    found = "last" if options.checkpoints else None
    if not options.without and not options.checkpoints:
        from preemptd.integrations.lightning import last_checkpoint

        found = last_checkpoint(trainer)
    trainer.fit(model, data(options.batches), data(options.validation), ckpt_path=found)
    if options.then:
        getattr(trainer, options.then)(model, data(options.batches))
    note("returned", step=trainer.global_step, weight=model.layer.weight.item())


def session(line: str) -> None:
    directory, *words = json.loads(line)
    pid = os.fork()
    if pid == 0:
        os.chdir(directory)
        os.environ["LOG"] = f"{directory}/job.log"
        try:
            run(parse(words))
        except SystemExit as leaving:
            os._exit(int(leaving.code or 0))
        os._exit(0)
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    os.environ["LOG"] = f"{directory}/job.log"
    note("ended", status=status)


torch.set_num_threads(1)
if __name__ == "__main__":
    if sys.argv[1] == "--sessions":
        importlib.import_module("preemptd.integrations.lightning")
        for each in sys.stdin:
            session(each)
    else:
        run(parse(sys.argv[1:]))
