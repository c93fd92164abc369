"""The same for several processes: torchrun --nproc-per-node 2 docs/examples/train_ddp.py

Each rank may be told at another moment, or only one of them. agree() makes all of them leave the loop after the same
step; rank 0 saves. With preemptd around, its link tells the ranks; without it, SIGUSR1 or SIGTERM to one of them does.
"""

import argparse
import os
from pathlib import Path

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

import preemptd
from preemptd.integrations.torch import agree

try:
    import wandb
except ImportError:
    wandb = None


def save(path, step, model, optimizer, run_id):
    """Whole or not at all: another name first, on the disk, then the real name."""
    with path.with_suffix(".tmp").open("wb") as file:
        torch.save(
            {"step": step, "model": model.state_dict(), "optimizer": optimizer.state_dict(), "run": run_id}, file
        )
        file.flush()
        os.fsync(file.fileno())
    path.with_suffix(".tmp").rename(path)
    print(f"saved {path}", flush=True)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--checkpoints", type=Path, default=Path("checkpoints"))
    parser.add_argument("--steps", type=int, default=30_000)
    args = parser.parse_args()

    dist.init_process_group("gloo")
    first = dist.get_rank() == 0
    torch.manual_seed(dist.get_rank())
    model = DistributedDataParallel(
        torch.nn.Sequential(torch.nn.Linear(2, 16), torch.nn.Tanh(), torch.nn.Linear(16, 1))
    )
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    step, run_id = 0, None

    args.checkpoints.mkdir(parents=True, exist_ok=True)
    newest = max(args.checkpoints.glob("step-*.pt"), default=None)
    if newest:
        state = torch.load(newest, weights_only=True)
        step, run_id = state["step"], state["run"]
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        if first:
            print(f"resumed from {newest}", flush=True)
    run = wandb.init(project="preemptd-example", id=run_id, resume="allow") if wandb and first else None

    stop = False
    while step < args.steps and not stop:
        points = torch.rand(64, 2) * 2 - 1
        labels = (points.square().sum(1, keepdim=True) < 0.5).float()
        loss = torch.nn.functional.binary_cross_entropy_with_logits(model(points), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        step += 1
        if run:
            run.log({"loss": loss.item()}, step=step)
        if first and step % 500 == 0:
            print(f"step {step} loss {loss.item():.3f}", flush=True)
        stop = agree()  # the same answer on every rank after the same step

    path = args.checkpoints / f"step-{step:08d}.pt"
    if first:
        preemptd.saving()
        save(path, step, model, optimizer, run.id if run else None)
        if run:
            run.finish(exit_code=0 if step == args.steps else 75)  # W&B gives a run back to its sweep for 75 alone
    dist.barrier()  # nobody leaves before the checkpoint is whole
    preemptd.saved(step, path)
    if step == args.steps:
        preemptd.done()  # told or not: there is nothing left to resume
    dist.destroy_process_group()
    # Exit 0 all the same: torchrun --max-restarts would start failed ranks again, on a machine that is going away.


if __name__ == "__main__":
    main()
