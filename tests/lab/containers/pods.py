"""The manifests of docs/examples/containers, played by podman.

podman 4.3 knows pods alone: of a Job or a DaemonSet it gets the template, as it is written. It would wait for the end
of a native sidecar before it starts the rest, so sidecars are listed with the other containers, first as in Kubernetes.
It gives preStop hooks, fsGroup, podFailurePolicy and the grace period no meaning; `pre_stop` runs a hook as written.
Nor does it know hostPID: such a pod's container is made by `podman run`, of what the manifest says.
"""

import json
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml  # type: ignore[import-untyped]  # it has no stubs

from tests.lab.containers.cloud import Cloud
from tests.lab.containers.podman import EXAMPLES, Podman
from tests.waiting import wait_until

Document = dict[str, Any]


class Pod:
    """One manifest that runs, in the network namespace of *cloud*."""

    def __init__(self, podman: Podman, cloud: Cloud, manifest: str) -> None:
        self._podman = podman
        documents = [_for_podman(one) for one in yaml.safe_load_all((EXAMPLES / manifest).read_text())]
        (pod,) = (one for one in documents if one["kind"] == "Pod")
        self.name: str = pod["metadata"]["name"]
        self.containers: dict[str, Document] = {one["name"]: one for one in pod["spec"]["containers"]}
        if pod["spec"].get("hostPID"):
            self._run(pod["spec"], documents, cloud)
            return
        text = "---\n".join(json.dumps(one) + "\n" for one in documents)
        podman.run("kube", "play", "--network=host", "-", within=cloud.name, text=text)

    def _run(self, spec: Document, documents: Sequence[Document], cloud: Cloud) -> None:
        """Run the only container of a pod in the host's pid namespace."""
        (container,) = spec["containers"]
        options = [f"--name={self.name}-{container['name']}", "--detach", "--pid=host"]
        options += ["--network=host"] * spec["hostNetwork"]
        options += [f"--user={spec['securityContext']['runAsUser']}:{spec['securityContext']['runAsGroup']}"]
        rights = container["securityContext"]
        options += ["--read-only=true", "--read-only-tmpfs=false"] * rights["readOnlyRootFilesystem"]
        options += ["--security-opt=no-new-privileges"] * (not rights["allowPrivilegeEscalation"])
        options += [f"--cap-drop={name}" for name in rights["capabilities"]["drop"]]
        options += [f"--env={one['name']}={one['value']}" for one in container["env"]]
        volumes = {one["name"]: one for one in spec["volumes"]}
        maps = {one["metadata"]["name"]: one["data"] for one in documents if one["kind"] == "ConfigMap"}
        for mount in container["volumeMounts"]:
            volume = f"{self.name}-{mount['name']}"
            self._podman.run("volume", "create", volume)
            if config := volumes[mount["name"]].get("configMap"):
                for name, text in maps[config["name"]].items():
                    (self._volume(volume) / name).write_text(text)
            options.append(f"--volume={volume}:{mount['mountPath']}:U")
        self._podman.run("run", *options, container["image"], *container["args"], within=cloud.name)

    def _volume(self, name: str) -> Path:
        return Path(self._podman.said("volume", "inspect", "--format={{.Mountpoint}}", name))

    def logs(self, container: str) -> str:
        run = self._podman.run("logs", f"{self.name}-{container}")
        return run.stdout + run.stderr

    def await_log(self, container: str, text: str) -> None:
        wait_until(lambda: text in self.logs(container) or not self.runs(container), 30, f"{container} {text}", 0.1)
        assert text in self.logs(container), self.logs(container)

    def runs(self, container: str) -> bool:
        return self._podman.said("inspect", "--format={{.State.Running}}", f"{self.name}-{container}") == "true"

    def execute(self, container: str, *command: str, user: str = "") -> subprocess.CompletedProcess[str]:
        """Run *command* in *container*, as its own user or as *user*."""
        who = [f"--user={user}"] if user else []
        return self._podman.run("exec", *who, f"{self.name}-{container}", *command, check=False)

    def pre_stop(self, container: str) -> subprocess.CompletedProcess[str]:
        return self.execute(container, *self.containers[container]["lifecycle"]["preStop"]["exec"]["command"])

    def signal(self, container: str, name: str) -> None:
        """Signal the first process of *container*."""
        self._podman.run("kill", f"--signal={name}", f"{self.name}-{container}")

    def exit_status(self, container: str) -> int:
        """Wait for the end of *container*."""
        return int(self._podman.said("wait", f"{self.name}-{container}"))

    def statuses(self, container: str) -> list[Mapping[str, str]]:
        """Read /proc/PID/status of all processes in *container*, as the host sees them."""
        pid = self._podman.said("inspect", "--format={{.State.Pid}}", f"{self.name}-{container}")
        group = Path(f"/proc/{pid}/cgroup").read_text()
        return [read_status(path.parent) for path in Path("/proc").glob("[0-9]*/cgroup") if _read(path) == group]

    def checkpoints(self) -> Sequence[str]:
        """List what lies in the volume."""
        return sorted(path.name for path in self._volume("checkpoints").glob("step-*"))


def read_status(directory: Path) -> Mapping[str, str]:
    lines = (line.partition(":") for line in _read(directory / "status").splitlines())
    return {name: value.strip() for name, _, value in lines}


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""


def _for_podman(document: Document) -> Document:
    if document["kind"] not in ("DaemonSet", "Job"):
        return document
    template = document["spec"]["template"]
    spec: Document = {"restartPolicy": "Never", **template["spec"]}  # what fails is to fail its test
    sidecars = [dict(one) for one in spec.pop("initContainers", [])]
    for sidecar in sidecars:
        assert sidecar.pop("restartPolicy") == "Always"
    spec["containers"] = [*sidecars, *spec["containers"]]
    labels = template.get("metadata", {}).get("labels", {})
    metadata = {"name": document["metadata"]["name"], "labels": labels}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec}
