"""The same small network as in train_ddp.py, by accelerate: one process or many, all of them stop at the same step.

preemptd rehearse -- python docs/examples/train_accelerate.py
preemptd rehearse -- accelerate launch --num_processes 2 docs/examples/train_accelerate.py
"""

import argparse
import os
import shutil
import sys
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import DataLoaderConfiguration

import preemptd
from preemptd.integrations.torch import agree, shield_worker


class Points(torch.utils.data.Dataset):
    """Is the point inside the circle?"""

    def __len__(self):
        return 64_000

    def __getitem__(self, index):
        point = torch.rand(2, generator=torch.Generator().manual_seed(index)) * 2 - 1
        return point, (point.square().sum() < 0.5).float()


class Progress:
    """What accelerate is to save and restore with the rest."""

    def __init__(self):
        self.step = 0

    def state_dict(self):
        return {"step": self.step}

    def load_state_dict(self, state):
        self.step = state["step"]


def save(accelerator, directory, step):
    """Whole or not at all: another name first, then the real name. All ranks call this."""
    path = directory / f"step-{step:08d}"
    if not path.exists():
        preemptd.saving()
        accelerator.save_state(str(path.with_suffix(".tmp")))
        accelerator.wait_for_everyone()
        if accelerator.is_main_process:
            path.with_suffix(".tmp").rename(path)
            for old in sorted(directory.glob("step-????????"))[:-2]:
                shutil.rmtree(old)
            print(f"saved {path}", flush=True)
        accelerator.wait_for_everyone()  # nobody goes on, or leaves, before the checkpoint is whole
    preemptd.saved(step, path)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--checkpoints", type=Path, default=Path("checkpoints"))
    parser.add_argument("--steps", type=int, default=30_000)
    options = parser.parse_args()

    preemptd.should_preempt()  # who has asked is told from now on
    accelerator = Accelerator(
        cpu=not torch.cuda.is_available(),
        dataloader_config=DataLoaderConfiguration(use_seedable_sampler=True, data_seed=0),  # the same at each start
    )
    model = torch.nn.Sequential(torch.nn.Linear(2, 16), torch.nn.Tanh(), torch.nn.Linear(16, 1))
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    loader = torch.utils.data.DataLoader(
        Points(), batch_size=64, shuffle=True, num_workers=2, worker_init_fn=shield_worker
    )
    model, optimizer, loader = accelerator.prepare(model, optimizer, loader)
    progress = Progress()
    accelerator.register_for_checkpointing(progress)

    newest = max(options.checkpoints.glob("step-????????"), default=None)
    if newest:
        accelerator.load_state(str(newest))
        accelerator.print(f"resumed from {newest}", flush=True)

    while progress.step < options.steps:
        epoch, done_before = divmod(progress.step, len(loader))
        loader.set_epoch(epoch)
        for points, labels in accelerator.skip_first_batches(loader, done_before) if done_before else loader:
            loss = torch.nn.functional.binary_cross_entropy_with_logits(model(points).squeeze(1), labels)
            optimizer.zero_grad()
            accelerator.backward(loss)
            optimizer.step()
            progress.step += 1
            if progress.step % 50 == 0:
                accelerator.print(f"step {progress.step} loss {loss.item():.3f}", flush=True)
            preempted = agree()  # the same answer on all ranks, after the same step
            if preempted or progress.step % 500 == 0:
                save(accelerator, options.checkpoints, progress.step)
            if preempted:
                sys.exit(0 if "TORCHELASTIC_RUN_ID" in os.environ else 75)  # torchrun would restart ranks that fail
            if progress.step == options.steps:
                break
    preemptd.done()
    accelerator.end_training()


if __name__ == "__main__":
    main()
