"""SLURM: four wake-ups (signals, canary step, squeue, signal files), one classifier, one notice, and the requeue."""
