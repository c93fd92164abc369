"""A small network by plain PyTorch that goes on bit by bit where it was: preemptd rehearse -- python train_torch.py"""

import argparse

import torch

import preemptd
from preemptd.integrations.checkpoint import Checkpointer


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--checkpoints", default="checkpoints")
    parser.add_argument("--steps", type=int, default=1_000_000)
    options = parser.parse_args()

    model = torch.nn.Sequential(torch.nn.Linear(2, 16), torch.nn.Tanh(), torch.nn.Linear(16, 1))
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    checkpointer = Checkpointer(options.checkpoints, model=model, optimizer=optimizer)
    restored = checkpointer.load_latest()
    if restored:
        print(f"resumed from {restored.path}", flush=True)

    for step in range(restored.step + 1 if restored else 1, options.steps + 1):
        points = torch.rand(64, 2) * 2 - 1
        labels = (points.square().sum(1, keepdim=True) < 0.5).float()
        loss = torch.nn.functional.binary_cross_entropy_with_logits(model(points), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step % 5000 == 0:
            print(f"step {step} loss {loss.item():.3f}", flush=True)
        if preemptd.should_preempt() or step % 50_000 == 0:
            checkpointer.step(step)  # saves, and leaves if this job is being preempted
    preemptd.done()


if __name__ == "__main__":
    main()
