"""A small GPT-2 that learns the Python it is written in, by the Trainer of Hugging Face. It downloads nothing.

preemptd rehearse -- python docs/examples/train_transformers.py
preemptd rehearse -- torchrun --nproc-per-node 2 docs/examples/train_transformers.py
"""

import argparse
from pathlib import Path

import torch
from transformers import GPT2Config, GPT2LMHeadModel, Trainer, TrainerCallback, TrainingArguments

from preemptd.integrations.transformers import PreemptionCallback, last_checkpoint

LENGTH = 32


class Windows(torch.utils.data.Dataset):
    """Pieces of a text, a byte a token."""

    def __init__(self, text):
        self.bytes = torch.tensor(list(text))

    def __len__(self):
        return len(self.bytes) - LENGTH

    def __getitem__(self, index):
        piece = self.bytes[index : index + LENGTH]
        return {"input_ids": piece, "labels": piece}


class Printed(TrainerCallback):
    def on_step_end(self, _args, state, _control, **_parts):
        if state.is_world_process_zero and state.global_step % 10 == 0:
            print(f"step {state.global_step}", flush=True)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--checkpoints", default="checkpoints")
    parser.add_argument("--steps", type=int, default=30_000)
    options = parser.parse_args()

    arguments = TrainingArguments(
        output_dir=options.checkpoints,
        max_steps=options.steps,
        per_device_train_batch_size=8,
        dataloader_num_workers=2,
        save_steps=500,
        save_total_limit=2,
        use_cpu=not torch.cuda.is_available(),
    )
    text = Path(__file__).read_bytes()
    trainer = Trainer(
        model=GPT2LMHeadModel(
            GPT2Config(
                vocab_size=256, n_positions=LENGTH, n_embd=32, n_layer=2, n_head=2, bos_token_id=0, eos_token_id=0
            )
        ),
        args=arguments,
        train_dataset=Windows(text),
        callbacks=[PreemptionCallback(), Printed()],
    )
    newest = last_checkpoint(options.checkpoints)
    if newest:
        print(f"resumed from {newest}", flush=True)
    trainer.train(resume_from_checkpoint=newest)
    trainer.save_model(f"{options.checkpoints}/final")  # not reached by a training that was preempted


if __name__ == "__main__":
    main()
