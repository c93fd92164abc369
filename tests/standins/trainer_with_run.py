"""A training with a W&B run `abc`: python -m tests.standins.trainer_with_run DIRECTORY.

It ends with 3 when DIRECTORY/end is there; DIRECTORY/frames says then what its (stand-in of) wandb-core was sent.
"""

import json
import signal
import sys
import time
from pathlib import Path

from tests.standins.wandb_core_process import core_stand_ins


def main(directory: Path) -> int:
    told: list[int] = []
    signal.signal(signal.SIGUSR1, lambda signum, _: told.append(signum))
    with core_stand_ins(directory / "cores", "good") as (core,):
        core.order("open abc")
        (directory / "ready").touch()
        while not (directory / "end").exists():
            time.sleep(0.02)
        (directory / "frames").write_text(json.dumps({"told": len(told), "frames": core.frames}))
    return 3


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
