"""SLURM for a machine without it: an `srun`, and the slurmd that starts tasks for it, outside of srun's tree.

`srun.py --slurmd` listens on the socket `slurmd` in the directory FAKE_SLURM and says `ready`. As srun it understands
--nodes=N, --ntasks-per-node=N and --input=all, and passes over every other option. Node K is called fK; each has a
process that looks like slurmstepd, whose children are the tasks. In FAKE_SLURM it counts steps and notes the pids of
tasks (`step-S-NODE-TASK`). FAKE_SRUN_FAILS: it refuses steps that are to overlap, as old versions do.
"""

import contextlib
import json
import os
import select
import signal
import socket
import subprocess
import sys
import threading

HERE = os.path.abspath(__file__)
STATE = os.environ["FAKE_SLURM"]
SOCKET = f"{STATE}/slurmd"
LONGEST = 2**20


def srun() -> int:
    with open("/proc/self/comm", "w") as comm:
        comm.write("srun")
    first = next(place for place, word in enumerate(sys.argv) if place and not word.startswith("-"))
    given = dict(option.partition("=")[::2] for option in sys.argv[1:first])
    if "--overlap" in given and os.environ.get("FAKE_SRUN_FAILS"):
        print("srun: unrecognized option '--overlap'", file=sys.stderr, flush=True)
        return 255
    step, broadcast, count = next_step(), given.get("--input") == "all", int(given.get("--ntasks-per-node", 1))
    nodes, pipes = [], []
    for node in range(int(given.get("--nodes", 1))):
        end, pipe = os.pipe() if broadcast else (os.open(os.devnull, os.O_RDONLY), -1)
        pipes += [pipe] if broadcast else []
        environ = {**os.environ, "SLURMD_NODENAME": f"f{node}", "SLURM_STEP_ID": str(step), "SLURM_NODEID": str(node)}
        nodes.append(connection := socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET))
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, LONGEST)
        connection.connect(SOCKET)
        request = {"environ": environ, "count": count, "command": sys.argv[first:], "cwd": os.getcwd()}
        socket.send_fds(connection, [json.dumps(request).encode()], [end, 1, 2])
        os.close(end)
    return wait(nodes, pipes)


def next_step() -> int:
    for number in range(1000):
        with contextlib.suppress(FileExistsError):
            os.close(os.open(f"{STATE}/step-{number}", os.O_CREAT | os.O_EXCL))
            return number
    raise AssertionError


def wait(nodes: list[socket.socket], pipes: list[int]) -> int:
    """Give our stdin to all tasks, until they end; return the highest status."""
    statuses: dict[socket.socket, int] = {}
    signal.signal(signal.SIGPIPE, signal.SIG_IGN)
    while len(statuses) < len(nodes):
        waiting = {node.fileno(): node for node in nodes if node not in statuses}
        for ready in select.select([*waiting, *([0] if pipes else [])], [], [])[0]:
            if ready in waiting:
                statuses[waiting[ready]] = int(waiting[ready].recv(16) or b"1")
                continue
            text = os.read(0, 65536)
            for pipe in pipes:
                with contextlib.suppress(OSError):
                    os.write(pipe, text) if text else os.close(pipe)
            pipes = pipes if text else []
    return max(statuses.values())


def slurmd() -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listening:
        listening.bind(SOCKET)
        listening.listen(50)
        print("ready", flush=True)
        while True:
            threading.Thread(target=run_node, args=(listening.accept()[0],), daemon=True).start()


def run_node(connection: socket.socket) -> None:
    text, fds, _, _ = socket.recv_fds(connection, LONGEST, 3)
    request = json.loads(text)
    environ = request["environ"]
    title = f"slurmstepd: [{environ['SLURM_JOB_ID']}.{environ['SLURM_STEP_ID']}]"
    stepd = subprocess.Popen(
        [title, "-S", HERE, "--stepd", str(request["count"]), *request["command"]],
        executable=sys.executable,
        env=environ,
        cwd=request["cwd"],
        stdin=fds[0],
        stdout=fds[1],
        stderr=fds[2],
        start_new_session=True,
    )
    for fd in fds:
        os.close(fd)
    status = stepd.wait()
    with contextlib.suppress(OSError):
        connection.send(str(status if status >= 0 else 128 - status).encode())
    connection.close()


def run_tasks() -> int:
    with open("/proc/self/comm", "w") as comm:
        comm.write("slurmstepd")
    count, command = int(sys.argv[2]), sys.argv[3:]
    tasks = []
    for task in range(count):
        rank = str(int(os.environ["SLURM_NODEID"]) * count + task)
        tasks.append(subprocess.Popen(command, env={**os.environ, "SLURM_PROCID": rank, "SLURM_LOCALID": str(task)}))
        name = f"{STATE}/step-{os.environ['SLURM_STEP_ID']}-{os.environ['SLURMD_NODENAME']}-{task}"
        with open(name + ".new", "w") as file:
            file.write(str(tasks[-1].pid))
        os.rename(name + ".new", name)
    statuses = [task.wait() for task in tasks]
    return max(status if status >= 0 else 128 - status for status in statuses)


if sys.argv[1] == "--slurmd":
    slurmd()
sys.exit(run_tasks() if sys.argv[1] == "--stepd" else srun())
