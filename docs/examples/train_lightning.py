"""A small network that learns which points lie in a circle, by Lightning. It downloads nothing.

preemptd rehearse -- python docs/examples/train_lightning.py
preemptd rehearse -- python docs/examples/train_lightning.py --devices 2
"""

import argparse

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from torch.utils.data import DataLoader, TensorDataset

from preemptd.integrations.lightning import PreemptionCallback, last_checkpoint


class Circle(LightningModule):
    def __init__(self):
        super().__init__()
        self.layers = torch.nn.Sequential(torch.nn.Linear(2, 16), torch.nn.Tanh(), torch.nn.Linear(16, 1))

    def training_step(self, batch, _index):
        points, labels = batch
        loss = torch.nn.functional.binary_cross_entropy_with_logits(self.layers(points), labels)
        if self.trainer.is_global_zero and self.global_step % 100 == 0:
            print(f"step {self.global_step} loss {loss.item():.3f}", flush=True)
        return loss

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=0.01)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--checkpoints", default="checkpoints")
    parser.add_argument("--steps", type=int, default=1_000_000)
    parser.add_argument("--devices", type=int, default=1)
    options = parser.parse_args()

    points = torch.rand(20_000, 2) * 2 - 1
    labels = (points.square().sum(1, keepdim=True) < 0.5).float()
    trainer = Trainer(
        accelerator="cpu",
        devices=options.devices,
        strategy="ddp" if options.devices > 1 else "auto",
        max_epochs=-1,
        max_steps=options.steps,
        logger=False,
        enable_progress_bar=False,
        callbacks=[PreemptionCallback(), ModelCheckpoint(options.checkpoints, save_last=True)],
    )
    newest = last_checkpoint(trainer)
    if newest and trainer.is_global_zero:
        print(f"resumed from {newest}", flush=True)
    loader = DataLoader(TensorDataset(points, labels), batch_size=16, shuffle=True, num_workers=2)
    trainer.fit(Circle(), loader, ckpt_path=newest)
    print("trained", flush=True)  # not reached by a training that was preempted


if __name__ == "__main__":
    main()
