"""Records what /proc says of real launchers at work, as tests/standins/proc_launchers.json.

proc_record.py BIN FILE; BIN holds python, torchrun, accelerate, uv and wandb. Run it again for a new torch or wandb.
"""

import json
import os
import shutil
import subprocess
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path

from preemptd.procfs import Tree

TRAINER = str(Path(__file__).with_name("proc_trainer.py"))


def shapes(python: str, bin_dir: str, scratch: str) -> dict[str, tuple[int, list[str]]]:
    """Name each launcher's shape, with its number of ranks and its command; {} takes the trainer's arguments."""
    train = f"{python} {TRAINER}"
    torchrun = f"{bin_dir}/torchrun --nproc-per-node 2 --rdzv-backend c10d --rdzv-endpoint 127.0.0.1:0 {TRAINER}"
    script = Path(scratch) / "job.sh"
    script.write_text(f'#!/bin/bash\n{train} "$@"\necho after\n')
    trap = Path(scratch) / "trap.sh"
    trap.write_text(
        f"#!/bin/bash\n{train} \"$@\" &\nchild=$!\ntrap 'kill -USR1 $child' USR1\ntrap 'kill -TERM $child' TERM\n"
        "wait $child\n"
    )
    runner = Path(scratch) / "runner.py"
    runner.write_text(f"import subprocess, sys\nsubprocess.run(['bash', {str(script)!r}, *sys.argv[1:]])\n")
    for path in (script, trap):
        path.chmod(0o755)
    return {
        "python": (1, [python, TRAINER, "{}"]),
        "python, workers by fork": (1, [python, TRAINER, "{}", "fork"]),
        "python, workers by spawn": (1, [python, TRAINER, "{}", "spawn"]),
        "python, workers by forkserver": (1, [python, TRAINER, "{}", "forkserver"]),
        "bash script": (1, [str(script), "{}"]),
        "bash script with a trap": (1, [str(trap), "{}"]),
        "sh -c": (1, ["sh", "-c", f"{train} {{}}; true"]),
        "pipe into tee": (1, ["bash", "-c", f"{train} {{}} | tee /dev/stderr"]),
        "python, bash script, python": (1, [python, str(runner), "{}"]),
        "uv run": (1, [f"{bin_dir}/uv", "run", "--no-project", "--offline", "--python", python, TRAINER, "{}"]),
        "accelerate launch": (1, [f"{bin_dir}/accelerate", "launch", "--num_processes", "1", "--cpu", TRAINER, "{}"]),
        "torchrun": (2, [*torchrun.split(), "{}"]),
        "python -m torch.distributed.run": (2, [python, "-m", "torch.distributed.run", *torchrun.split()[1:], "{}"]),
        "torchrun, workers by fork": (2, [*torchrun.split(), "{}", "fork"]),
        "torchrun, workers by spawn": (2, [*torchrun.split(), "{}", "spawn"]),
        "mp.spawn": (2, [python, TRAINER, "{}", "mp-spawn"]),
        "multiprocessing by fork": (2, [python, TRAINER, "{}", "mp-fork"]),
        "multiprocessing by forkserver": (2, [python, TRAINER, "{}", "mp-forkserver"]),
        "wandb offline": (1, [python, TRAINER, "{}", "wandb"]),
        "tini": (1, ["tini", "-s", "--", python, TRAINER, "{}"]),
        "dumb-init, workers by fork": (1, ["dumb-init", python, TRAINER, "{}", "fork"]),
        "bash -c torchrun, workers by fork": (2, ["bash", "-c", f"{' '.join(torchrun.split())} {{}} fork; true"]),
    }


def record(command: list[str], ranks: int, cwd: str) -> tuple[list[int], list[dict[str, object]]]:
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, cwd=cwd) as launcher:
        assert launcher.stdout is not None
        try:
            told = [int(launcher.stdout.readline().split()[1]) for _ in range(ranks)]
            return told, [asdict(process) for process in Tree(launcher.pid, include_root=True).snapshot()]
        finally:
            for process in reversed(Tree(launcher.pid, include_root=True).snapshot()):
                os.kill(process.pid, 9)


def main(bin_dir: str, target: str) -> None:
    found: list[dict[str, object]] = []
    with tempfile.TemporaryDirectory() as scratch:
        for name, (ranks, command) in shapes(f"{bin_dir}/python", bin_dir, scratch).items():
            for signals in ("USR1,TERM", "TERM"):
                words = [word.replace("{}", signals) for word in command]
                told, processes = record(words, ranks, scratch)
                # main is the first of the snapshot.
                found.append({"shape": name, "signals": signals, "ranks": sorted(told), "processes": processes})
                print(name, signals, len(processes), flush=True)
        real = os.path.realpath(f"{bin_dir}/python")
        text = json.dumps(found, separators=(",", ":"))
        places = {real: "/usr/bin/python3", os.path.dirname(os.path.dirname(real)): "/usr", scratch: "/job"}
        places |= {
            str(Path(TRAINER).parents[2]): "/src",
            os.path.dirname(TRAINER): "/job",
            bin_dir: "/venv/bin",
            os.path.dirname(bin_dir): "/venv",
        }
        for place, name in sorted(places.items(), key=lambda item: -len(item[0])):
            text = text.replace(place, name)
    Path(target).write_text(text.replace('{"shape"', '\n{"shape"') + "\n")


if __name__ == "__main__":
    assert shutil.which("tini"), "needs tini and dumb-init"
    main(*sys.argv[1:])
