"""Boots this machine's own systemd, as PID 1 of a throw-away machine made of namespaces: a third of a second."""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

from tests.conftest import ROOT
from tests.waiting import wait_until

HERE = Path(__file__).resolve().parent
PREEMPTD = "/srv/venv/bin/preemptd"
PYTHON = "/srv/venv/bin/python"
OUT = "/srv/out"
"""The one directory that outlives the machine: `Machine.out` outside."""
ENTER = ("nsenter", "--mount", "--pid", "--uts", "--ipc", "--net", "--cgroup", "--wd")
CLEAN = {
    "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    "LANG": "C.UTF-8",
    "HOME": "/srv",
    "AWS_EC2_METADATA_DISABLED": "true",
    "NO_GCE_CHECK": "true",
}


class Machine:
    """One booted systemd."""

    def __init__(self) -> None:
        self.state = Path(tempfile.mkdtemp(prefix="preemptd-lab-", dir="/run"))
        self.out = self.state / "out"
        for name in ("overlay", "root", "out"):
            (self.state / name).mkdir()
        self.out.chmod(0o1777)
        (self.state / "console").touch()
        self._cgroup = _cgroup_root() / self.state.name
        self._pid = 0
        self._launcher: subprocess.Popen[bytes] | None = None

    def boot(self) -> None:
        self._cgroup.mkdir()
        python = os.path.realpath(sys.executable)
        words = [str(self.state), sysconfig.get_path("purelib"), str(ROOT), python]
        enter = 'echo $$ >"$0/cgroup.procs"; exec unshare --mount --pid --uts --ipc --net --cgroup --fork -- "$@"'
        with (self.state / "boot.log").open("wb") as log:
            self._launcher = subprocess.Popen(
                ["bash", "-c", enter, str(self._cgroup), str(HERE / "boot.sh"), *words],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        self._pid = wait_until(self._find_pid, 30, "systemd starts")
        wait_until(lambda: self.run("systemctl", "is-system-running", check=False).strip() in _UP, 30, "it is up")

    def _find_pid(self) -> int:
        launcher = self._launcher
        assert launcher is not None
        assert launcher.poll() is None, self.said()
        children = Path(f"/proc/{launcher.pid}/task/{launcher.pid}/children").read_text().split()
        return next((int(pid) for pid in children if _comm(int(pid)) == "systemd"), 0)

    def said(self) -> str:
        return (self.state / "boot.log").read_text() + (self.state / "console").read_text()

    @property
    def is_up(self) -> bool:
        return self._launcher is not None and self._launcher.poll() is None

    def command(self, *words: str) -> list[str]:
        environ = (f"{name}={value}" for name, value in CLEAN.items())
        return [*ENTER, f"--target={self._pid}", "env", "-i", *environ, *words]

    def run(self, *words: str, check: bool = True, text: str | None = None, timeout: float = 30) -> str:
        """Run a command in the machine as root; return what it prints, on both."""
        done = subprocess.run(
            self.command(*words),
            input=text,
            stdin=subprocess.DEVNULL if text is None else None,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            encoding="utf-8",
            check=False,
            timeout=timeout,
        )
        assert not check or done.returncode == 0, f"{words}: {done.returncode}: {done.stdout}"
        return done.stdout

    def install(self) -> None:
        """Put preemptd's units into it, and the user that the system-wide one runs as."""
        self.run(PREEMPTD, "install-unit")
        self.run("useradd", "--system", "--home-dir", "/", "--shell", "/usr/sbin/nologin", "preemptd")
        self.systemctl("daemon-reload")

    def systemctl(self, *words: str) -> str:
        return self.run("systemctl", *words)

    def write(self, path: str, text: str, mode: str = "644") -> None:
        self.run("install", "-D", f"--mode={mode}", "/dev/stdin", path, text=text)

    def read(self, path: str) -> str:
        """Read a file of the machine; empty: there is none."""
        return self.run("cat", path, check=False) if self.exists(path) else ""

    def exists(self, path: str) -> bool:
        return Path(f"/proc/{self._pid}/root{path}").exists()

    def lines(self, path: str) -> list[dict[str, object]]:
        """Read the JSON lines of a file of the machine, also of one below `OUT` when it is off."""
        inside = Path(f"/proc/{self._pid}/root{path}")
        file = self.out / Path(path).relative_to(OUT) if path.startswith(OUT) else inside
        try:
            return [json.loads(line) for line in file.read_bytes().splitlines(keepends=True) if line.endswith(b"\n")]
        except OSError:
            return []

    def show(self, unit: str, *properties: str) -> Mapping[str, str]:
        answer = self.systemctl("show", *(f"--property={name}" for name in properties), "--", unit)
        return dict(line.partition("=")[::2] for line in answer.splitlines())

    def log(self, unit: str) -> str:
        return self.run("journalctl", "--no-pager", "--output=cat", f"--unit={unit}", check=False)

    def power_off(self) -> None:
        """Power it off as the button does, through logind, and wait for the end."""
        self.run("systemctl", "poweroff", check=False)
        self.wait_for_end()

    def wait_for_end(self, timeout: float = 40) -> None:
        wait_until(lambda: not self.is_up, timeout, "the machine is off")

    def close(self) -> None:
        try:
            if self._launcher is not None:
                if self.is_up:
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(self._pid or self._launcher.pid, signal.SIGKILL)  # all of its processes go with it
                self._launcher.wait(30)
        finally:
            self._remove_cgroup()
            shutil.rmtree(self.state, ignore_errors=True)

    def _remove_cgroup(self) -> None:
        end = time.monotonic() + 10
        while self._cgroup.exists() and time.monotonic() < end:
            inner = (path for path in self._cgroup.rglob("*") if path.is_dir())
            for path in (*sorted(inner, reverse=True), self._cgroup):
                with contextlib.suppress(OSError):  # a process in it is not quite gone
                    path.rmdir()


_UP = ("running", "degraded")


@contextlib.contextmanager
def booted() -> Iterator[Machine]:
    machine = Machine()
    try:
        machine.boot()
        yield machine
    finally:
        machine.close()


def _comm(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/comm").read_text().strip()
    except OSError:
        return ""


def _cgroup_root() -> Path:
    """Find where the second version of control groups is mounted, on a machine that has both or this one alone."""
    for line in Path("/proc/mounts").read_text().splitlines():
        _, path, kind, *_ = line.split()
        if kind == "cgroup2":
            return Path(path)
    raise AssertionError("no cgroup2 is mounted: mount -t cgroup2 cgroup2 /sys/fs/cgroup/unified")
