"""The namespaces of one cluster, seen from outside: own processes, hostname and mounts; the network is everyone's."""

import dataclasses
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from tests.waiting import wait_until

INIT = Path(__file__).with_name("init.py")
HOSTNAME = "lab"
# Removes the state out here, where no mount of the cluster is to be seen, also when pytest was killed.
THEN_REMOVE = 'state=$1; shift; "$@"; status=$?; rm -rf "$state"; exit $status'


@dataclasses.dataclass(frozen=True)
class Layout:
    """How the files look in there."""

    paths: Sequence[str]
    """Directories to which everyone can go."""
    readable: Sequence[str]
    """What the user must then be able to read."""
    uid: int
    files: Mapping[str, str]
    """Which file is shown in place of which."""
    memory: Sequence[str]
    """Directories that are kept in memory."""


class Namespace:
    """All that runs in it dies with it, and it dies with this process: nothing can be left over."""

    def __init__(self, state: Path, layout: Layout) -> None:
        """Remove the directory *state* at the end, whatever the end is."""
        isolate = ["unshare", "--pid", "--mount", "--uts", "--fork", "--kill-child", "--mount-proc"]
        self._process = subprocess.Popen(
            ["sh", "-c", THEN_REMOVE, "sh", str(state), *isolate, sys.executable, "-I", str(INIT)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,  # Ctrl-C is for pytest, which then takes the cluster down
        )
        self._lock = threading.Lock()
        try:
            self._ask({"hostname": HOSTNAME, "staging": str(state / "staging"), **dataclasses.asdict(layout)})
        except BaseException:
            self.close()
            raise
        self.init = _only_child(_only_child(self._process.pid))
        self._identity = os.readlink(f"/proc/{self.init}/ns/pid")

    def _ask(self, request: Mapping[str, object]) -> object:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with self._lock:
            self._process.stdin.write(json.dumps(request) + "\n")
            self._process.stdin.flush()
            answer = self._process.stdout.readline()
        assert answer, "PID 1 of the cluster ended; its message is on stderr"
        return json.loads(answer)

    def spawn(self, argv: Sequence[str], env: Mapping[str, str], log: Path) -> int:
        """Start a daemon; return its pid in there."""
        return int(str(self._ask({"do": "spawn", "argv": argv, "env": env, "log": str(log)})))

    def kill(self, pid: int, signum: int) -> bool:
        """Signal a process by its pid in there (the one that jobs see); return whether there was one."""
        return bool(self._ask({"do": "kill", "pid": pid, "signal": int(signum)}))

    def await_end(self, pid: int, timeout: float = 20.0) -> None:
        wait_until(lambda: not self.kill(pid, 0), timeout, f"the end of process {pid} of the cluster")

    def processes(self) -> Iterator[tuple[int, int]]:
        """Yield the pid out here and the pid in there of every process but PID 1."""
        for entry in os.listdir("/proc"):
            if entry.isdigit():
                try:
                    if os.readlink(f"/proc/{entry}/ns/pid") != self._identity:
                        continue
                    status = Path(f"/proc/{entry}/status").read_text(errors="replace")
                except OSError:
                    continue  # it has ended
                inner = int(status.split("NSpid:")[1].split("\n")[0].split()[-1])
                if inner != 1:
                    yield int(entry), inner

    def outside(self, pid: int) -> int:
        """Return the pid out here of the process that jobs know as *pid*."""
        found = [outer for outer, inner in self.processes() if inner == pid]
        assert found, f"no process {pid} in the cluster"
        return found[0]

    def enter(self, argv: Sequence[str], directory: Path, uid: int | None = None) -> list[str]:
        """Return the command that runs *argv* in there, as root or as the user of that number."""
        inside = ["nsenter", "--target", str(self.init), "--pid", "--mount", "--uts", f"--wd={directory}"]
        if uid is not None:
            inside += [f"--setuid={uid}", f"--setgid={uid}"]
        return [*inside, "--", *argv]

    def close(self) -> None:
        """End everything in there; returns when the kernel has."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.wait(20)
        self._process.stdout.close()


def _only_child(pid: int) -> int:
    (child,) = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return int(child)
