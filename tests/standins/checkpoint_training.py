"""A training with randomness of every kind, which leaves by Checkpointer.step() when it is told; prints each loss.

argv: the directory of the checkpoints; the step at which SIGUSR1 comes, 0: at none. RUN in the environment: the id of
a W&B run to keep.
"""

import os
import random
import signal
import sys
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, Sampler

import preemptd
from preemptd.integrations.checkpoint import Checkpointer


class Squares(Dataset[torch.Tensor]):  # type: ignore[misc]  # mypy does not follow torch
    def __len__(self) -> int:
        return 40

    def __getitem__(self, number: int) -> torch.Tensor:
        return torch.tensor([number / 40, (number / 40) ** 2])


class Shuffled(Sampler[int]):  # type: ignore[misc]
    """Draws an order for each epoch, and can go on in the middle of it."""

    def __init__(self, size: int) -> None:
        self.order: list[int] = []
        self.position = 0
        self._size = size

    def __iter__(self) -> Iterator[int]:
        if self.position == len(self.order):
            self.order, self.position = torch.randperm(self._size).tolist(), 0
        while self.position < len(self.order):
            self.position += 1
            yield self.order[self.position - 1]

    def state_dict(self) -> dict[str, Any]:
        return {"order": self.order, "position": self.position}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.order, self.position = state["order"], state["position"]


def batches(sampler: Shuffled) -> Iterator[torch.Tensor]:
    """Go through epoch after epoch."""
    # With a generator of its own: else each iterator draws a number from torch's, and a resumed run makes one more.
    loader = DataLoader(Squares(), batch_size=4, sampler=sampler, generator=torch.Generator())
    while True:
        yield from loader


def main() -> None:
    directory, tell_at = sys.argv[1], int(sys.argv[2])
    torch.set_num_threads(1)
    for seed in (random.seed, np.random.seed, torch.manual_seed):
        seed(7)
    if os.environ.get("RUN"):
        import wandb

        wandb.init(id=os.environ["RUN"], resume="allow", mode="offline")
    model = torch.nn.Sequential(torch.nn.Linear(2, 16), torch.nn.Dropout(0.3), torch.nn.Linear(16, 1))
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 30)
    sampler = Shuffled(40)
    checkpointer = Checkpointer(directory, model=model, optimizer=optimizer, scheduler=scheduler, sampler=sampler)
    restored = checkpointer.load_latest()
    step, data = restored.step if restored else 0, batches(sampler)
    print("began", step, checkpointer.seconds is not None, flush=True)
    preemptd.should_preempt()
    while step < 30:
        step += 1
        loss = (model(next(data)) + random.gauss(0, 0.1) + float(np.random.randn()) - 1.0).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        scheduler.step()
        print("loss", step, float(loss.detach()).hex(), flush=True)
        if step == tell_at:
            os.kill(os.getpid(), signal.SIGUSR1)  # as a scheduler does
        if tell_at and step > tell_at:
            time.sleep(0.02)  # it is told within 0.1 s
        if preemptd.should_preempt():
            checkpointer.step(step)
        elif step % 8 == 0:
            checkpointer.save(step)
    preemptd.done()


if __name__ == "__main__":
    main()
