"""Speaks as squeue, scontrol and srun of SLURM 22.05 do, from a state file that a test writes.

Usage: slurm_command.py STATE CALLS NAME ARGUMENT...   (tests/slurm_world.py makes programs of it)
STATE is JSON: `row` (State, Reason, EndTime, PreemptTime as Unix time or text, RestartCnt), the `ids` of it
(JobID, ArrayJobID, ArrayTaskID, HetJobID) and `others`, lines of its array or het job; or raw `squeue`; texts of
`scontrol show job|config|node`; `srun_dies_alone`: the step's task is not srun itself, and has an input of its own;
what `requeue` (with the `row` from then on), `update` and `srun` answer: {"status": 1, "stderr": "..."}; `hang` names
commands that never answer. CALLS gets a JSON line a call.
"""

import json
import os
import signal
import sys
import time

STATE, CALLS, NAME, *ARGUMENTS = sys.argv[1:]


def show_time(value: object) -> str:
    """Print as slurm_make_time_str does: the client's own zone, in the format that the user wishes."""
    if not isinstance(value, (int, float)):
        return "N/A" if value is None else str(value)
    standard = os.environ.get("SLURM_TIME_FORMAT", "standard") == "standard"
    return time.strftime("%Y-%m-%dT%H:%M:%S" if standard else "%H:%M:%S", time.localtime(value))


def squeue(state: dict) -> str:  # type: ignore[type-arg]  # whatever the test says
    if "squeue" in state:
        return str(state["squeue"])
    name, reason, end, preempted, restarts = state["row"]
    if os.environ.get("SQUEUE_STATES", name) != name:
        return ""
    ids = state.get("ids", ["12", "12", "N/A", "N/A"])
    fields = [name, reason, show_time(end), show_time(preempted), str(restarts), *ids, "\n"]
    return "|".join(fields) + "".join(state.get("others", []))


def answer(said: dict) -> None:  # type: ignore[type-arg]
    sys.stdout.write(said.get("stdout", ""))
    sys.stderr.write(said.get("stderr", ""))
    sys.exit(said.get("status", 0))


def hang() -> None:
    """Never answer, and outlive neither the asker nor the test: a preemptd that was killed ends nobody."""
    asker, end = os.getppid(), time.monotonic() + 60
    while os.getppid() == asker and time.monotonic() < end:
        time.sleep(0.1)
    sys.exit(1)


def note(**more: object) -> None:
    ignored = [
        s.name for s in (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2) if signal.getsignal(s) == signal.SIG_IGN
    ]
    line = {"name": NAME, "arguments": ARGUMENTS, "pid": os.getpid(), "ignored": ignored, **more}
    fd = os.open(CALLS, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    os.write(fd, json.dumps(line).encode() + b"\n")
    os.close(fd)


def read() -> dict:  # type: ignore[type-arg]
    with open(STATE) as file:
        return dict(json.load(file))


def requeue(state: dict) -> None:  # type: ignore[type-arg]
    said = state.get("requeue", {})
    if isinstance(said, list):  # one answer after the other
        said = said.pop(0) if len(said) > 1 else said[0]
    if "row" in said:
        state["row"] = said["row"]
    elif not said and "row" in state:
        state["row"] = ["COMPLETING", "None", None, None, int(state["row"][4]) + 1]
    with open(f"{STATE}.{os.getpid()}", "w") as file:
        json.dump(state, file)
    os.rename(file.name, STATE)
    if said.get("hang"):
        hang()
    answer(said)


def relay() -> None:
    """Go on in a child whose pipes are slurmstepd's, and stay to hand on what it says."""
    (stdin, _), (said, stdout) = os.pipe(), os.pipe()
    if os.fork() == 0:
        for number, own in enumerate((stdin, stdout, os.open(os.devnull, os.O_WRONLY))):
            os.dup2(own, number)
        return
    os.close(stdout)
    while line := os.read(said, 4096):
        os.write(1, line)
    sys.exit(0)


def srun(state: dict) -> None:  # type: ignore[type-arg]
    if "srun" in state:
        answer(state["srun"])
    for signum in (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(signum, signal.SIG_DFL)  # tasks are started by slurmstepd, not by srun
    if state.get("srun_dies_alone"):
        relay()
    program = next(index for index, word in enumerate(ARGUMENTS) if "python" in word)
    os.execv(ARGUMENTS[program], ARGUMENTS[program:])


def main() -> None:
    state = read()
    note(environment={name: os.environ.get(name) for name in ("TZ", "SLURM_CLUSTERS", "SLURM_CPU_BIND")})
    what = NAME if NAME != "scontrol" else ARGUMENTS[1] if ARGUMENTS[0] == "show" else ARGUMENTS[0]
    if what in state.get("hang", []):
        hang()
    if what == "srun":
        srun(state)
    elif what == "requeue":
        requeue(state)
    elif what == "update":
        answer(state.get("update", {}))
    else:
        said = state.get("squeue") if what == "squeue" else state[what]
        answer(said if isinstance(said, dict) else {"stdout": squeue(state) if what == "squeue" else said})


main()
