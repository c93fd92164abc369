"""A training script that uses W&B and ends in one of many ways: python wandb_ends.py WAY [options]

Prints ``ready PID RUN_ID`` when it trains. When it is told it ends as the function WAY does; or it is ended from
outside (``uncaught``). Its config has ``lr``; it logs ``loss`` for steps 0 and up, --log-before of them. --style says
how it hears: by a handler that sets a flag, one that ends it from inside, one for SIGTERM, by looking whether a signal
is pending that was blocked at its start, or by asking preemptd's client. LOG names a file to which it appends JSON
lines.
"""

import argparse
import builtins
import json
import os
import signal
import sys
import time
from collections.abc import Callable
from sys import exit as early_exit  # bound before wandb.init() patches the attribute

import wandb

TOLD: list[bool] = []
ENDED: list[bool] = []


def note(what: str, **more: object) -> None:
    if "LOG" in os.environ:
        line = json.dumps({"what": what, "pid": os.getpid(), "mono": time.monotonic(), **more})
        with open(os.environ["LOG"], "a", encoding="utf-8") as log:
            log.write(line + "\n")


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
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    note("waits")
    time.sleep(60)


WAYS: dict[str, Callable[["wandb.Run"], None]] = {
    way.__name__: way
    for way in (
        *(falls_off, sys_exit_0, sys_exit_143, early_sys_exit, raise_system_exit, builtin_exit, finish_then_143),
        *(finish_143, exception, with_block, interrupt, os_exit, uncaught),
    )
}


def await_flag() -> None:
    while not TOLD and not ENDED:
        time.sleep(0.01)


def await_pending() -> None:
    while signal.SIGUSR1 not in signal.sigpending():
        time.sleep(0.01)


def ask_client() -> None:
    import preemptd

    while not preemptd.should_preempt():
        time.sleep(0.01)


STYLES: dict[str, Callable[[], None]] = {
    "flag": await_flag,
    "TERM": await_flag,
    "in the handler": await_flag,
    "blocked": await_pending,
    "client": ask_client,
}


def listen(style: str, end: Callable[[], None]) -> None:
    """Say before wandb.init() how it is to be told: a signal that comes early is not lost."""
    if style in ("flag", "TERM"):
        number = signal.SIGTERM if style == "TERM" else signal.SIGUSR1
        signal.signal(number, lambda _signum, _frame: TOLD.append(True))
    elif style == "in the handler":
        signal.signal(signal.SIGUSR1, lambda _signum, _frame: end())


def main() -> None:
    parser = argparse.ArgumentParser(allow_abbrev=False)
    parser.add_argument("way", choices=WAYS)
    parser.add_argument("--log-before", type=int, default=3)
    parser.add_argument("--style", choices=STYLES, default="flag")
    parser.add_argument("--runs", type=int, default=1)
    options = parser.parse_args()
    runs: list[wandb.Run] = []

    def end() -> None:
        WAYS[options.way](runs[0])
        ENDED.append(True)

    listen(options.style, end)
    several = options.runs > 1
    runs += [wandb.init(config={"lr": 0.1}, reinit="create_new" if several else None) for _ in range(options.runs)]
    for step in range(options.log_before):
        for run in runs:
            run.log({"loss": step})
    print("ready", os.getpid(), *(run.id for run in runs), flush=True)
    note("ready", runs=[run.id for run in runs])
    STYLES[options.style]()
    if not ENDED:
        end()


if __name__ == "__main__":
    main()
