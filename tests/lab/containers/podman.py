"""podman with a store of its own, and images made without a registry."""

import os
import resource
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from types import TracebackType

from tests.conftest import LAB, ROOT
from tests.lab.containers.root_files import make_base

EXAMPLES = ROOT / "docs" / "examples" / "containers"
BASE = "localhost/base:1"
PREEMPTD = "registry.example/preemptd:0.1.0"
TRAIN = "registry.example/train:1"
TRAIN_WITH_PREEMPTD = "registry.example/train-with-preemptd:1"
DEBIAN_PYTHON = "/usr/bin/python3"
WHEELS = LAB / "wheels"
TRAINERS = {TRAIN: BASE, TRAIN_WITH_PREEMPTD: PREEMPTD}
"""A training's image to the one that it is made from."""

# The default limits are above what a machine without CAP_SYS_RESOURCE may set; crun 1.8 refuses hybrid cgroups;
# PID 1 need not be systemd; no bridge is made, no packet filter touched.
CONFIGURATION = """
[containers]
default_ulimits = ["nofile={files}:{files}", "nproc={processes}:{processes}"]
netns = "none"
log_driver = "k8s-file"
[engine]
runtime = "runc"
cgroup_manager = "cgroupfs"
events_logger = "file"
"""


class Podman:
    """A store, its images, and all containers in it; nothing of it is left at the end."""

    def __init__(self) -> None:
        self._directory = Path(tempfile.mkdtemp(prefix="pods-"))
        self._configuration = self._directory / "containers.conf"
        files, processes = hard_limit(resource.RLIMIT_NOFILE), hard_limit(resource.RLIMIT_NPROC)
        self._configuration.write_text(CONFIGURATION.format(files=files, processes=processes))

    def __enter__(self) -> "Podman":  # noqa: PYI034  # typing.Self is newer than Python 3.10
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.clean()
        self.run("rmi", "--force", "--all", check=False)
        for line in reversed(Path("/proc/mounts").read_text().splitlines()):
            if line.split()[1].startswith(f"{self._directory}/"):
                subprocess.run(["umount", line.split()[1]], check=False)
        shutil.rmtree(self._directory)

    @property
    def environ(self) -> dict[str, str]:
        return {**os.environ, "CONTAINERS_CONF": str(self._configuration)}

    def command(self, *arguments: str) -> list[str]:
        """Make a command line; it needs `environ`."""
        directories = {"root": "root", "runroot": "run", "tmpdir": "tmp"}
        return ["podman", *(f"--{option}={self._directory / name}" for option, name in directories.items()), *arguments]

    def run(
        self, *arguments: str, within: str | None = None, check: bool = True, text: str | None = None
    ) -> subprocess.CompletedProcess[str]:
        """Run one podman; *within* a network namespace by nsenter, since `ip netns exec` would hide the cgroups."""
        before = ["nsenter", f"--net=/run/netns/{within}"] if within else []
        run = subprocess.run(
            [*before, *self.command(*arguments)],
            env=self.environ,
            input=text,
            capture_output=True,
            text=True,
            check=False,
            timeout=120,
        )
        assert run.returncode == 0 or not check, (arguments, run.stdout, run.stderr)
        return run

    def said(self, *arguments: str) -> str:
        return self.run(*arguments).stdout.strip()

    def clean(self) -> None:
        """Take all pods, containers and volumes away."""
        self.run("pod", "rm", "--force", "--all", "--time=0", check=False)
        self.run("rm", "--force", "--all", "--time=0", check=False)
        self.run("volume", "rm", "--force", "--all", check=False)

    def make_images(self) -> None:
        """Make all that the manifests name: the Containerfile as it is, on a base that needs no network."""
        tar = self._directory / "base.tar"
        make_base(tar, WHEELS)
        changes = (
            "ENV PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
            "ENV PIP_NO_INDEX=1",
            "ENV PIP_FIND_LINKS=/wheels",
        )
        self.run("import", "--quiet", *(f"--change={change}" for change in changes), str(tar), BASE)
        tar.unlink()
        context = self._directory / "context"
        make_wheel(context / "dist")
        shutil.copy(ROOT / "docs" / "examples" / "train.py", context)
        shutil.copy(EXAMPLES / "train_linked.py", context)
        self._build(context, PREEMPTD, (EXAMPLES / "Containerfile").read_text(), f"--build-arg=BASE={BASE}")
        for image, base in TRAINERS.items():
            self._build(context, image, f"FROM {base}\nCOPY train.py train_linked.py /train/\nENTRYPOINT []\n")

    def _build(self, context: Path, image: str, containerfile: str, *options: str) -> None:
        (context / "Containerfile").write_text(containerfile)
        self.run("build", "--quiet", "--network=none", "--layers=false", *options, f"--tag={image}", str(context))


def make_wheel(directory: Path) -> None:
    """Build preemptd's wheel, from files that the lab has."""
    pip = [DEBIAN_PYTHON, "-m", "pip", "wheel", "--quiet", "--disable-pip-version-check", "--no-deps", "--no-index"]
    wanted = [f"--find-links={WHEELS}", f"--wheel-dir={directory}", str(ROOT)]
    subprocess.run([*pip, *wanted], check=True, stdout=sys.stderr)


def hard_limit(which: int) -> int:
    _, hard = resource.getrlimit(which)
    return 4096 if hard == resource.RLIM_INFINITY else min(hard, 4096)
