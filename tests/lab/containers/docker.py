"""dockerd with all that it keeps in a directory of its own, in the network namespace of a cloud; pods played by it."""

import resource
import shutil
import subprocess
import tempfile
from pathlib import Path
from types import TracebackType

from tests.lab.containers.cloud import Cloud
from tests.lab.containers.podman import PREEMPTD, TRAIN, TRAIN_WITH_PREEMPTD, Podman, hard_limit
from tests.lab.containers.pods import Pod
from tests.waiting import wait_until

KEY = Path("/etc/docker/key.json")
"""The one file that docker 20.10 makes elsewhere."""


class Docker:
    """A daemon with podman's images; nothing of it is left at the end."""

    def __init__(self, podman: Podman, cloud: Cloud) -> None:
        # On a busy disk it would take half a minute to remove all these small files.
        self._directory = Path(tempfile.mkdtemp(prefix="docker-", dir="/dev/shm"))
        self._had_key = KEY.exists()
        self._daemon = self._start(cloud)
        self._podman = podman

    def __enter__(self) -> "Docker":  # noqa: PYI034  # typing.Self is newer than Python 3.10
        try:
            wait_until(lambda: self.run("version", check=False).returncode == 0, 30, "dockerd listens", 0.05)
            self._load()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.clean()
        self.close()

    def _start(self, cloud: Cloud) -> "subprocess.Popen[bytes]":
        """Start it as the one user of that network: no bridge is made, no packet filter touched."""
        (self._directory / "daemon.json").write_text("{}")
        files = hard_limit(resource.RLIMIT_NOFILE)
        paths = {"config-file": "daemon.json", "data-root": "data", "exec-root": "exec", "pidfile": "pid"}
        command = ["nsenter", f"--net=/run/netns/{cloud.name}", "dockerd", f"--host={self._address}"]
        command += [f"--{option}={self._directory / name}" for option, name in paths.items()]
        command += ["--bridge=none", "--iptables=false", "--ip-forward=false"]
        command += [f"--default-ulimit=nofile={files}:{files}", f"--cgroup-parent={self._directory.name}"]
        with (self._directory / "log").open("wb") as log:
            return subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)

    @property
    def _address(self) -> str:
        return f"unix://{self._directory}/socket"

    def _load(self) -> None:
        images = ("--multi-image-archive", "--format=docker-archive", TRAIN, TRAIN_WITH_PREEMPTD, PREEMPTD)
        archive = str(self._directory / "images.tar")
        self._podman.run("save", "--quiet", f"--output={archive}", *images)
        self.run("load", "--quiet", f"--input={archive}")

    def run(
        self,
        *arguments: str,
        within: str | None = None,  # noqa: ARG002  # it is in its network namespace already
        check: bool = True,
        text: str | None = None,
    ) -> subprocess.CompletedProcess[str]:
        command = ["docker", f"--host={self._address}", *arguments]
        run = subprocess.run(command, input=text, capture_output=True, text=True, check=False, timeout=120)
        assert run.returncode == 0 or not check, (arguments, run.stdout, run.stderr, self._log())
        return run

    def said(self, *arguments: str) -> str:
        return self.run(*arguments).stdout.strip()

    def clean(self) -> None:
        """Take all containers and volumes away."""
        if containers := self.said("ps", "--all", "--quiet").split():
            self.run("rm", "--force", "--volumes", *containers)
        if volumes := self.said("volume", "ls", "--quiet").split():
            self.run("volume", "rm", "--force", *volumes)

    def _log(self) -> str:
        return (self._directory / "log").read_text()[-2000:]

    def close(self) -> None:
        self._daemon.terminate()  # containerd ends with it
        self._daemon.wait(30)
        for line in reversed(Path("/proc/mounts").read_text().splitlines()):
            if line.split()[1].startswith(f"{self._directory}/"):
                subprocess.run(["umount", line.split()[1]], check=False)
        for group in Path("/sys/fs/cgroup").glob(f"*/{self._directory.name}"):
            group.rmdir()
        shutil.rmtree(self._directory)
        if not self._had_key:
            KEY.unlink(missing_ok=True)


class DockerPod(Pod):
    """A manifest's containers, each made by ``docker run``; where pids are shared, a third one holds them."""

    def play(self, cloud: Cloud) -> None:  # noqa: ARG002  # dockerd is in its network namespace already
        shared = []
        if self.spec.get("shareProcessNamespace"):
            pause = f"{self.name}-pause"
            self.engine.run("run", "--detach", f"--name={pause}", "--network=none", TRAIN, "sleep", "600")
            shared = [f"--pid=container:{pause}"]
        for container in self.containers.values():
            words = [*container.get("command", []), *container.get("args", [])]
            self.engine.run("run", *self.options_of(container), *shared, container["image"], *words)
