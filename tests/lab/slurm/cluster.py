"""SLURM clusters for tests: munged, slurmctld and a slurmd a virtual node, in namespaces of their own (README.md)."""

import os
import pwd
import re
import shlex
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from types import TracebackType

from tests.lab.slurm import configuration, interpreters
from tests.lab.slurm.configuration import Options
from tests.lab.slurm.jobs import FIELDS, OVER, Job, Row, parse
from tests.lab.slurm.namespace import HOSTNAME, Layout, Namespace
from tests.waiting import wait_until

USER = "preemptd-test"
UID = 52000
"""Jobs run as this user, whom only the cluster knows: its /etc/passwd is a copy with one more line."""
PROGRAMS = ("slurmctld", "slurmd", "munged", "sbatch", "srun", "unshare", "nsenter")
PATH = f"{os.path.dirname(sys.executable)}:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
"""Of daemons and jobs: `preemptd` and `python` are those that run these tests."""
ROW_AGE = 0.25
"""How long one answer of squeue serves all who ask, in seconds: many tests may wait side by side."""


class Cluster:
    """Up when the constructor returns; `close` or the end of `with` leaves nothing behind."""

    def __init__(self, options: Options | None = None) -> None:
        self.options = options or Options()
        self.directory = Path(tempfile.mkdtemp(prefix="preemptd-slurm-", dir="/tmp"))
        self.directory.chmod(0o755)
        self.nodes = self.options.node_names()
        self._ports = configuration.Ports(1 + len(self.nodes))
        self.conf = configuration.write(self.directory, self.options, self._ports.numbers)
        self._environment = {"PATH": PATH, "SLURM_CONF": str(self.conf), "LANG": "C.UTF-8"}
        self._pids: dict[str, int] = {}
        self._frozen: set[str] = set()
        self._jobs = 0
        self._rows: tuple[float, dict[str, Row]] = (0.0, {})
        self._lock = threading.Lock()
        layout = Layout(
            paths=interpreters.needed(self.options.readable),
            readable=[sys.executable, str(Path(__file__)), *self.options.readable],
            uid=UID,
            files=self._own_files(),
            memory=[str(self.directory / "ctld")],
        )
        with ExitStack() as stack:
            stack.callback(self._ports.close)
            self._namespace = Namespace(self.directory, layout)
            stack.callback(self._namespace.close)
            stack.callback(lambda: print(self.logs()))
            self._start()
            stack.pop_all()

    def __enter__(self) -> "Cluster":  # noqa: PYI034  # typing.Self is newer than Python 3.10
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        self._namespace.close()
        self._ports.close()

    def _own_files(self) -> dict[str, str]:
        """Write the files of /etc that the cluster sees in place of this machine's."""
        assert UID not in {entry.pw_uid for entry in pwd.getpwall()}, f"uid {UID} is taken here"
        jobs = self.directory / "jobs"
        os.chown(jobs, UID, UID)
        more = {
            "/etc/passwd": f"{USER}:x:{UID}:{UID}::{jobs}:/bin/sh\n",
            "/etc/group": f"{USER}:x:{UID}:\n",
            "/etc/hosts": f"127.0.0.1 {' '.join([HOSTNAME, *self.nodes])}\n",
        }
        shown = {}
        for path, line in more.items():
            own = self.directory / Path(path).name
            own.write_text(Path(path).read_text() + line)
            shown[str(own)] = path
        return shown

    def _start(self) -> None:
        state = self.directory
        munge = ["munged", "--foreground", "--force", f"--socket={state}/munge/socket", f"--key-file={state}/munge/key"]
        munge += [f"--pid-file={state}/run/munged.pid", f"--seed-file={state}/munge/seed", "--num-threads=2"]
        self._spawn("munged", munge)
        wait_until((state / "munge" / "socket").exists, what="munged's socket")
        self.start_controller()
        self.wait_controller()  # a slurmd that comes too early tries again a second later
        for node in self.nodes:
            self.start_slurmd(node)
        self.wait_nodes("idle")

    # --- daemons, and what may befall them

    def _spawn(self, name: str, argv: Sequence[str]) -> None:
        assert name not in self._pids, f"{name} runs already"
        self._pids[name] = self._namespace.spawn(argv, self._environment, self.directory / "log" / f"{name}.err")

    def _end(self, name: str, signum: signal.Signals) -> None:
        pid = self._pids.pop(name)
        self._namespace.kill(pid, signum)
        if name in self._frozen:
            self._frozen.remove(name)
            self._namespace.kill(pid, signal.SIGCONT)
        self._namespace.await_end(pid)

    def start_controller(self) -> None:
        """Start slurmctld, which remembers its jobs."""
        self._spawn("slurmctld", ["slurmctld", "-D", "-f", str(self.conf)])

    def stop_controller(self, signum: signal.Signals = signal.SIGTERM) -> None:
        self._end("slurmctld", signum)

    def restart_controller(self) -> None:
        self.stop_controller()
        self.start_controller()
        self.wait_controller()

    def wait_controller(self) -> None:
        wait_until(lambda: self._ask("scontrol", "ping").returncode == 0, what="slurmctld answers")

    def freeze_controller(self) -> None:
        """SIGSTOP: connections are accepted by the kernel, and nobody answers."""
        self._frozen.add("slurmctld")
        self._namespace.kill(self._pids["slurmctld"], signal.SIGSTOP)

    def thaw_controller(self) -> None:
        self._frozen.remove("slurmctld")
        self._namespace.kill(self._pids["slurmctld"], signal.SIGCONT)

    def start_slurmd(self, node: str) -> None:
        self._spawn(f"slurmd-{node}", ["slurmd", "-D", "-N", node, "-f", str(self.conf)])

    def kill_slurmd(self, node: str) -> None:
        """SIGKILL to the daemon alone: jobs of that node run on (slurmctld notices after SlurmdTimeout, 30 s)."""
        self._end(f"slurmd-{node}", signal.SIGKILL)

    def drain(self, node: str, reason: str = "maintenance") -> None:
        self.scontrol("update", f"NodeName={node}", "State=DRAIN", f"Reason={reason}")

    def down(self, node: str, reason: str = "failure") -> None:
        self.scontrol("update", f"NodeName={node}", "State=DOWN", f"Reason={reason}")

    def resume(self) -> None:
        """Bring drained and downed nodes back; some come back by themselves in the meantime."""
        for node, state in self.node_states().items():
            if state.rstrip("*") in {"drain", "drng", "down"}:
                done = self._ask("scontrol", "update", f"NodeName={node}", "State=RESUME")
                assert done.returncode == 0 or "Invalid node state" in done.stderr, done.stderr

    def node_states(self) -> dict[str, str]:
        return dict(line.split() for line in self._ask("sinfo", "-h", "-N", "-o", "%N %t").stdout.splitlines())

    def wait_nodes(self, state: str, *nodes: str, timeout: float = 60.0) -> None:
        """Wait until *nodes* (default: all) are in *state*: idle, alloc, mix, comp, drain, drng, down."""
        names = nodes or self.nodes
        wait_until(
            lambda: {self.node_states().get(node) for node in names} == {state}, timeout, f"{names} {state}", pause=0.02
        )

    # --- processes in there

    def rpcs_owed(self) -> int:
        """Count the messages that slurmctld has not been able to deliver, and those that it delivers now."""
        said = self._do("sdiag")
        return sum(int(n) for n in re.findall(r"^Agent (?:queue size|count):\s*(\d+)", said, re.MULTILINE))

    def signal(self, pid: int, signum: signal.Signals) -> bool:
        """Signal a process by the pid that jobs see."""
        return self._namespace.kill(pid, signum)

    def outside(self, pid: int) -> int:
        """Return the pid that tests see of the process that jobs see as *pid*."""
        return self._namespace.outside(pid)

    def outside_pids(self) -> list[int]:
        """List the pids that tests see of all that runs in the cluster."""
        return [outer for outer, _ in self._namespace.processes()]

    def command_lines(self) -> dict[int, str]:
        """Return pid (as jobs see it) and command line of everything that runs in the cluster."""
        found = {}
        for outer, inner in self._namespace.processes():
            with suppress(OSError):  # it has ended
                found[inner] = Path(f"/proc/{outer}/cmdline").read_bytes().replace(b"\0", b" ").decode().strip()
        return found

    def cpu_seconds(self, name: str) -> float:
        """Return the processor time that a daemon (slurmctld, slurmd-n1) has used."""
        fields = Path(f"/proc/{self.outside(self._pids[name])}/stat").read_text().rsplit(")", 1)[1].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    # --- SLURM's commands

    def environment(self, home: Path, extra: Mapping[str, str] | None = None) -> dict[str, str]:
        """Return what a job's environment starts from: nothing of this process but what keeps W&B off the network."""
        return {
            **self._environment,
            "HOME": str(home),
            "USER": USER,
            "LOGNAME": USER,
            "SHELL": "/bin/sh",
            "XDG_STATE_HOME": str(home / ".state"),
            "XDG_CACHE_HOME": str(home / ".cache"),
            "PYTHONDONTWRITEBYTECODE": "1",
            "AWS_EC2_METADATA_DISABLED": "true",
            "NO_GCE_CHECK": "true",
            **{name: value for name, value in os.environ.items() if name.startswith("WANDB_") and "DIR" not in name},
            **(extra or {}),
        }

    def _ask(self, *argv: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(argv, env=self._environment, capture_output=True, text=True, timeout=60, check=False)

    def _do(self, *argv: str) -> str:
        done = self._ask(*argv)
        assert done.returncode == 0, f"{shlex.join(argv)}: status {done.returncode}: {done.stderr}"
        return done.stdout

    def scontrol(self, *arguments: str) -> str:
        """Run scontrol as root."""
        said = self._do("scontrol", *arguments)
        self._rows = 0.0, self._rows[1]
        return said

    def scancel(self, *arguments: "str | Job") -> None:
        self._do("scancel", *(argument.id if isinstance(argument, Job) else argument for argument in arguments))
        self._rows = 0.0, self._rows[1]

    def rows(self, *, fresh: bool = False) -> dict[str, Row]:
        """Return the rows of squeue, of finished jobs too; while slurmctld is not there, the last ones known."""
        with self._lock:
            read, rows = self._rows
            if "slurmctld" in self._pids and not self._frozen and (fresh or time.monotonic() - read > ROW_AGE):
                done = self._ask("squeue", "-h", "-r", "-t", "all", "-O", ",".join(f"{field}:|" for field in FIELDS))
                rows = parse(done.stdout) if done.returncode == 0 else rows
                self._rows = time.monotonic(), rows
            return rows

    def job_directory(self, name: str | None = None) -> Path:
        """Make a directory that belongs to the jobs' user, below a path that it can reach."""
        with self._lock:
            self._jobs += 1
            path = self.directory / "jobs" / (name or f"{self._jobs}")
        path.mkdir()
        os.chown(path, UID, UID)
        return path

    def sbatch(
        self,
        script: str | Sequence[str],
        *options: str,
        partition: str = "low",
        minutes: int | None = None,
        env: Mapping[str, str] | None = None,
        directory: Path | None = None,
    ) -> Job:
        """Submit as the ordinary user.

        Args:
            script: the text of a batch script, or a command: that becomes the process of the batch script itself.
            options: more options of sbatch; they win. Output is appended to unless they say otherwise.
            partition: low, low0, lowkill or high.
            minutes: the time limit. None: an hour.
            env: more variables for the job.
            directory: where the job runs and its output goes. None: a new one.
        """
        home = directory or self.job_directory()
        text = script if isinstance(script, str) else f"exec {shlex.join(script)}\n"
        output = home / "out"
        argv = ["sbatch", "--parsable", f"--partition={partition}", "--open-mode=append", f"--chdir={home}"]
        argv += [f"--output={output}{'-%a' if any(option.startswith('--array') for option in options) else ''}"]
        argv += [f"--time={minutes}"] if minutes is not None else []
        done = subprocess.run(
            [*argv, *options],
            input=text if text.startswith("#!") else f"#!/bin/sh\n{text}",
            env=self.environment(home, env),
            cwd=home,
            user=UID,
            group=UID,
            extra_groups=[],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert done.returncode == 0, f"sbatch {options}: {done.stderr}"
        self.rows(fresh=True)
        return Job(self, done.stdout.strip().split(";")[0], home, output)

    def run(
        self,
        argv: Sequence[str],
        *,
        directory: Path | None = None,
        env: Mapping[str, str] | None = None,
        root: bool = False,
        timeout: float = 60.0,
    ) -> subprocess.CompletedProcess[str]:
        """Run a command in the cluster, outside of any job (a login node, an administrator's shell)."""
        home = directory or self.directory / "jobs"
        inside = self._namespace.enter(argv, home, None if root else UID)
        given = self.environment(home, env)
        return subprocess.run(inside, env=given, capture_output=True, text=True, timeout=timeout, check=False)

    def call(self, argv: Sequence[str]) -> int:
        """Run a command as `run` does, at this process's terminal; return its status."""
        home = self.job_directory()
        inside = self._namespace.enter(argv, home, UID)
        terminal = {"TERM": os.environ.get("TERM", "dumb"), "PS1": f"{HOSTNAME}$ "}
        return subprocess.run(inside, env=self.environment(home, terminal), check=False).returncode

    def preempt(self, *jobs: Job) -> Job:
        """Submit a job to `high` that wants the nodes of *jobs* whole. Release them with `scancel`, or `release`."""
        nodes = sorted({node for job in jobs for node in self.scontrol("show", "hostnames", job.row.nodes).split()})
        asked = [f"--nodelist={','.join(nodes)}", f"--nodes={len(nodes)}", "--exclusive"]
        return self.sbatch(["sleep", "infinity"], *asked, partition="high")

    def release(self, preemptor: Job) -> None:
        """End a preemptor; returns when its nodes are free."""
        self.scancel(preemptor)
        preemptor.wait_for(*OVER)

    def expire(self, job: Job, seconds: int = 1) -> None:
        """Move the end of a job's time to so many seconds from now, where `minutes=1` would mean a minute at least.

        SLURM looks each 30 s whether a job's time (or the lead of its --signal) has come. It refuses a time that is
        over when slurmctld comes to read it: then once more.
        """
        command = ["scontrol", "update", f"JobId={job.id}", f"EndTime=now+{seconds}"]
        wait_until(lambda: self._ask(*command).returncode == 0, what=shlex.join(command), pause=0.1)
        self._rows = 0.0, self._rows[1]

    def clean(self) -> None:
        """Make the cluster as new for the next test: no jobs, all daemons at work, all nodes idle."""
        if self._frozen:
            self.thaw_controller()
        if "slurmctld" not in self._pids:
            self.start_controller()
            self.wait_controller()
        for node in self.nodes:
            if f"slurmd-{node}" not in self._pids:
                self.start_slurmd(node)
        live = {row.number for row in self.rows(fresh=True).values() if row.state not in OVER}
        if live:
            self._ask("scancel", "--quiet", *live)  # some may end before it comes to them
        for outer, _ in self._namespace.processes():
            with suppress(OSError):  # it has ended
                if os.stat(f"/proc/{outer}").st_uid == UID:
                    os.kill(outer, signal.SIGKILL)
        self.resume()
        self.wait_nodes("idle")

    def log_of(self, job_id: str, lines: int = 20) -> str:
        """Return what slurmctld's log has on a job."""
        log = (self.directory / "log" / "slurmctld.log").read_text(errors="replace")
        words = {f"JobId={job_id}", f"JobID={job_id}", f"job_id={job_id}"}
        return "\n".join([line for line in log.splitlines() if words & set(line.split())][-lines:])

    def logs(self, lines: int = 30) -> str:
        """Return the last lines of every daemon's log."""
        texts = {path.name: path.read_text(errors="replace") for path in sorted((self.directory / "log").iterdir())}
        return "\n".join(
            f"--- {name}\n" + "\n".join(text.splitlines()[-lines:]) for name, text in texts.items() if text
        )
