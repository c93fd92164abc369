"""What stands between a user and a command: nothing, the usual ones, and us."""

import os
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent

# What the internet tells people to write: the trap passes the signal on, `wait` is for the trap to run at once.
TRAP = "trap 'kill -HUP $child' HUP; \"$@\" & child=$!; while kill -0 $child 2>/dev/null; do wait $child; done"


@dataclass(frozen=True)
class Wrapper:
    name: str
    prefix: Sequence[str]


def plain_venv(directory: Path) -> Path:
    """Make an environment with preemptd and nothing else, as a user has it; return its `preemptd`."""
    python = directory / "bin" / "python"
    if not (directory / "bin" / "preemptd").exists():
        print("making a plain environment to measure in", file=sys.stderr)
        subprocess.run([sys.executable, "-m", "venv", str(directory)], check=True)
        subprocess.run([str(python), "-m", "pip", "install", "-qq", str(ROOT)], check=True)
    return directory / "bin" / "preemptd"


def wrappers(preemptd: Path) -> list[Wrapper]:
    """List those that this machine has."""
    known = [
        Wrapper("no wrapper", []),
        Wrapper("tini -s", ["tini", "-s", "--"]),
        Wrapper("dumb-init", ["dumb-init", "--"]),
        Wrapper("bash trap", ["bash", "-c", TRAP, "bash"]),
        Wrapper("preemptd watch", [str(preemptd), "watch", "--"]),
    ]
    return [wrapper for wrapper in known if not wrapper.prefix or shutil.which(wrapper.prefix[0])]


def environment(extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """Keep the measured programs off the network of this machine."""
    return {**os.environ, "AWS_EC2_METADATA_DISABLED": "true", "NO_GCE_CHECK": "true", **(extra or {})}


def percentile(values: Sequence[float], part: float) -> float:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(part * len(ordered)))]
