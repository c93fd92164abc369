#!/bin/bash
# sbatch launch.sh TEAM/PROJECT/SWEEP: one run of the sweep a task.
#SBATCH --job-name=sweep
#SBATCH --array=0-2%2
#SBATCH --output=%x-%A_%a.out
#SBATCH --time=01:00:00
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --signal=B:USR1@120

trap '' USR1 USR2 TERM # until preemptd listens; it gives your training the defaults back

# The pause is for W&B: agents that start in the same second ask for a run in the same second.
exec preemptd watch -- bash -c 'sleep $((SLURM_ARRAY_TASK_ID % 10)); exec wandb agent --count 1 "$0"' "$1"
