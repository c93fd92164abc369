"""Train until preemptd says that this machine goes; it is heard over the link, without any signal."""

import argparse
import sys
import time
from pathlib import Path

import preemptd

parser = argparse.ArgumentParser()
parser.add_argument("--checkpoints", type=Path, required=True)
parser.add_argument("--steps", type=int, default=1_000_000)
args = parser.parse_args()

args.checkpoints.mkdir(parents=True, exist_ok=True)
newest = max(args.checkpoints.glob("step-*"), default=None)
step = int(newest.name[len("step-") :]) if newest else 0
print(f"starting at step {step}", flush=True)
while step < args.steps and not preemptd.should_preempt():
    time.sleep(0.01)  # the work of a step
    step += 1

preemptd.saving()
path = args.checkpoints / f"step-{step:08d}"
path.with_suffix(".tmp").write_text("the weights")
path.with_suffix(".tmp").rename(path)
preemptd.saved(step, path)
print(f"saved {path}", flush=True)
if step < args.steps:
    sys.exit(75)  # not 0: there is more to do
preemptd.done()
