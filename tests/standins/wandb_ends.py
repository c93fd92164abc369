"""A training script that uses W&B and ends in one of many ways: python wandb_ends.py WAY [--log-before N]

Prints ``ready PID RUN_ID`` when it trains. When SIGUSR1 comes it ends as the function WAY does; or it is ended from
outside (``uncaught``). Its config has ``lr``; it logs ``loss`` for steps 0 and up.
"""

import argparse
import builtins
import os
import signal
import sys
import time
from collections.abc import Callable
from sys import exit as early_exit  # bound before wandb.init() patches the attribute

import wandb

TOLD: list[bool] = []


def falls_off(_run: "wandb.Run") -> None:
    """Save, return."""


def sys_exit_0(_run: "wandb.Run") -> None:
    sys.exit(0)


def sys_exit_143(_run: "wandb.Run") -> None:
    sys.exit(143)


def early_sys_exit(_run: "wandb.Run") -> None:
    early_exit(143)


def raise_system_exit(_run: "wandb.Run") -> None:
    raise SystemExit(143)


def builtin_exit(_run: "wandb.Run") -> None:
    builtins.exit(3)  # noqa: PLR1722 - just that is the point


def finish_then_143(run: "wandb.Run") -> None:
    run.finish()
    sys.exit(143)


def finish_143(run: "wandb.Run") -> None:
    run.finish(exit_code=143)


def exception(_run: "wandb.Run") -> None:
    raise RuntimeError("preempted")


def with_block(run: "wandb.Run") -> None:
    with run:
        sys.exit(0)


def interrupt(_run: "wandb.Run") -> None:
    raise KeyboardInterrupt


def os_exit(_run: "wandb.Run") -> None:
    os._exit(143)


def uncaught(_run: "wandb.Run") -> None:
    """Wait for a signal with the default action."""
    time.sleep(60)


WAYS: dict[str, Callable[["wandb.Run"], None]] = {
    way.__name__: way
    for way in (
        *(falls_off, sys_exit_0, sys_exit_143, early_sys_exit, raise_system_exit, builtin_exit, finish_then_143),
        *(finish_143, exception, with_block, interrupt, os_exit, uncaught),
    )
}


def main() -> None:
    parser = argparse.ArgumentParser(allow_abbrev=False)
    parser.add_argument("way", choices=WAYS)
    parser.add_argument("--log-before", type=int, default=3)
    options = parser.parse_args()
    signal.signal(signal.SIGUSR1, lambda _signum, _frame: TOLD.append(True))
    run = wandb.init(config={"lr": 0.1})
    for step in range(options.log_before):
        run.log({"loss": step})
    print("ready", os.getpid(), run.id, flush=True)
    while not TOLD:
        time.sleep(0.01)
    WAYS[options.way](run)


if __name__ == "__main__":
    main()
