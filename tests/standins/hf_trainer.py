"""A training by the Trainer of Hugging Face in miniature; LOG names a file to which it appends JSON lines.

Usage: hf_trainer.py ARGUMENTS [options]. ARGUMENTS is JSON: those of the Trainer.
It notes which samples each step has seen, so that a test can count them.
"""

import argparse
import json
import os
import time

os.environ["HF_HUB_OFFLINE"] = "1"


def note(what: str, **more: object) -> None:
    line = json.dumps({"what": what, "pid": os.getpid(), "rank": RANK, "mono": time.monotonic(), **more})
    fd = os.open(os.environ["LOG"], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    os.write(fd, line.encode() + b"\n")
    os.close(fd)


RANK = int(os.environ.get("RANK", "0"))
note("importing")

import torch  # noqa: E402
from transformers import (  # noqa: E402
    GPT2Config,
    GPT2LMHeadModel,
    Trainer,
    TrainerCallback,
    TrainerState,
    TrainingArguments,
    set_seed,
)


class Sequences(torch.utils.data.Dataset):  # type: ignore[misc]  # mypy does not see torch
    """Sample N begins with N."""

    def __init__(self, count: int) -> None:
        self.count = count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        ids = torch.arange(index, index + 8) % 4096
        return {"input_ids": ids, "labels": ids}


class Noted(Trainer):  # type: ignore[misc]  # mypy does not see transformers
    def training_step(self, model: object, inputs: dict[str, torch.Tensor], *more: object) -> torch.Tensor:
        time.sleep(PACE)
        loss = super().training_step(model, inputs, *more)
        note("batch", step=self.state.global_step, samples=inputs["input_ids"][:, 0].tolist(), loss=loss.item())
        return loss

    def prediction_step(self, *given: object, **more: object) -> object:
        time.sleep(PACE)
        note("predicted", step=self.state.global_step)
        return super().prediction_step(*given, **more)


class Notes(TrainerCallback):  # type: ignore[misc]  # mypy does not see transformers
    def on_train_begin(self, _args: object, state: TrainerState, _control: object, **_parts: object) -> None:
        note("ready", step=state.global_step)

    def on_save(self, _args: object, state: TrainerState, _control: object, **_parts: object) -> None:
        note("saved", step=state.global_step)

    def on_train_end(self, _args: object, state: TrainerState, _control: object, **_parts: object) -> None:
        note("end", step=state.global_step)


parser = argparse.ArgumentParser()
parser.add_argument("arguments", type=json.loads)
parser.add_argument("--without", action="store_true", help="train without preemptd")
parser.add_argument("--callbacks", type=int, default=1, help="how many of preemptd's are given")
parser.add_argument("--before", type=int, default=0, help="steps of another training that comes before")
parser.add_argument("--evaluate", type=int, default=0, help="batches of an evaluation")
parser.add_argument("--pace", type=float, default=0.02, help="seconds a batch")
parser.add_argument(
    "--linger", type=float, default=0, help="seconds between the end of training and that of the script"
)
options = parser.parse_args()
PACE = options.pace
defaults = {
    "output_dir": "out",
    "use_cpu": True,
    "per_device_train_batch_size": 2,
    "per_device_eval_batch_size": 2,
    "max_steps": 3000,
    "save_strategy": "no",
    "logging_strategy": "no",
    "report_to": "none",
    "disable_tqdm": True,
    "ddp_backend": "gloo" if "RANK" in os.environ else None,
}
arguments = TrainingArguments(**{**defaults, **options.arguments})
config = GPT2Config(vocab_size=4096, n_positions=8, n_embd=8, n_layer=1, n_head=1)
callbacks: list[TrainerCallback] = []
found = None
if not options.without:
    from preemptd.integrations.transformers import PreemptionCallback, last_checkpoint

    callbacks.extend(PreemptionCallback() for _ in range(options.callbacks))
    found = last_checkpoint(arguments.output_dir)
    if options.before:
        own = {"output_dir": "before", "max_steps": options.before, "save_strategy": "no", "eval_strategy": "no"}
        given = {**defaults, **options.arguments, **own, "load_best_model_at_end": False, "report_to": "none"}
        ours = [PreemptionCallback()]
        Trainer(
            GPT2LMHeadModel(config), TrainingArguments(**given), train_dataset=Sequences(4000), callbacks=ours
        ).train()
set_seed(0)
note("constructing")
trainer = Noted(
    GPT2LMHeadModel(config),
    arguments,
    train_dataset=Sequences(4000),
    eval_dataset=Sequences(options.evaluate * 2 * arguments.world_size) if options.evaluate else None,
    callbacks=[Notes(), *callbacks],
)
trainer.train(resume_from_checkpoint=found)
note("returned", step=trainer.state.global_step, best=trainer.state.best_model_checkpoint)
time.sleep(options.linger)
