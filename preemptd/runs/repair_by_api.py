"""Ends a run anew through the official API. It runs in the training's own interpreter and never in ours.

A program by itself (``python -c``): no preemptd there, and any Python that wandb 0.19 supports (3.8). Its argument is
JSON: entity, project, run_id, code, cwd, packages, answer (a descriptor that gets one line of JSON).
"""

import sys

sys.path[:] = [entry for entry in sys.path if entry]  # with -c the first entry is the working directory

import importlib  # noqa: E402
import json  # noqa: E402
import os  # noqa: E402
import site  # noqa: E402
import typing  # noqa: E402


def main() -> None:
    request = json.loads(sys.argv[1])
    try:
        os.chdir(request["cwd"])  # now, with the rights of the training: its settings may lie there
    except OSError:
        os.chdir("/")
    try:
        repair(request)
        why = ""
    except Exception as error:  # noqa: BLE001 - whatever wandb raises is an answer
        why = "%s: %s" % (type(error).__name__, " ".join(str(error).split()))  # noqa: UP031 - as short as any
    line = json.dumps({"ok": not why, "why": why[:300]}) + "\n"
    os.write(request["answer"], line.encode())
    os._exit(0)  # wandb's own hooks at exit have nothing to do here


def load(packages: str) -> "typing.Any":
    """Import wandb; a mere directory of that name (the one of its runs) is none."""
    try:
        wandb = importlib.import_module("wandb")
        if hasattr(wandb, "init"):
            return wandb
    except ImportError:
        pass
    sys.modules.pop("wandb", None)
    site.addsitedir(packages)
    return importlib.import_module("wandb")


def repair(request: "dict[str, object]") -> None:
    wandb = load(str(request["packages"]))
    run = wandb.init(
        entity=request["entity"] or None, project=request["project"] or None, id=request["run_id"], resume="must"
    )
    run.mark_preempting()
    run.finish(exit_code=request["code"])


main()
