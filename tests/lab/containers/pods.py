"""The manifests of docs/examples/containers, played by podman.

podman 4.3 knows pods alone: of a Job or a DaemonSet it gets the template, as it is written. It would wait for the end
of a native sidecar before it starts the rest, so sidecars are listed with the other containers, first as in Kubernetes.
It gives preStop hooks, fsGroup, podFailurePolicy and the grace period no meaning; `pre_stop` runs a hook as written.
Nor does it know hostPID: such a pod's container is made by `podman run`, of what the manifest says.
"""

import json
import os
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import yaml  # type: ignore[import-untyped]  # it has no stubs

from tests.lab.containers.cloud import Cloud
from tests.lab.containers.podman import EXAMPLES
from tests.waiting import wait_until

Document = dict[str, Any]


class Engine(Protocol):
    """podman or docker."""

    def run(
        self, *arguments: str, within: str | None = None, check: bool = True, text: str | None = None
    ) -> subprocess.CompletedProcess[str]: ...

    def said(self, *arguments: str) -> str: ...


class Pod:
    """One manifest that runs, in the network namespace of *cloud*."""

    def __init__(self, engine: Engine, cloud: Cloud, manifest: str) -> None:
        self.engine = engine
        self.documents = [_for_podman(one) for one in yaml.safe_load_all((EXAMPLES / manifest).read_text())]
        (pod,) = (one for one in self.documents if one["kind"] == "Pod")
        self.name: str = pod["metadata"]["name"]
        self.spec: Document = pod["spec"]
        self.containers: dict[str, Document] = {one["name"]: one for one in self.spec["containers"]}
        self.play(cloud)

    def play(self, cloud: Cloud) -> None:
        if self.spec.get("hostPID"):
            (container,) = self.containers.values()
            options = [*self.options_of(container), "--pid=host", "--read-only-tmpfs=false"]
            self.engine.run("run", *options, container["image"], *container["args"], within=cloud.name)
        else:
            text = "---\n".join(json.dumps(one) + "\n" for one in self.documents)
            self.engine.run("kube", "play", "--network=host", "-", within=cloud.name, text=text)

    def options_of(self, container: Document) -> list[str]:
        """Say what the manifest says of *container* in options of ``podman run``, or docker's."""
        user, rights = self.spec["securityContext"], container["securityContext"]
        options = [f"--name={self.name}-{container['name']}", "--detach", "--network=host"]
        options += [f"--user={user['runAsUser']}:{user['runAsGroup']}"]
        options += ["--read-only=true"] * rights.get("readOnlyRootFilesystem", False)
        options += ["--security-opt=no-new-privileges"] * (not rights["allowPrivilegeEscalation"])
        options += [f"--cap-drop={name}" for name in rights["capabilities"]["drop"]]
        options += [f"--env={one['name']}={one['value']}" for one in container.get("env", [])]
        volumes = {one["name"]: one for one in self.spec["volumes"]}
        for mount in container["volumeMounts"]:
            options.append(f"--volume={self._made(volumes[mount['name']], user)}:{mount['mountPath']}")
        return options

    def _made(self, volume: Document, user: Document) -> str:
        """Make a volume of the pod, for its user; return its name."""
        name: str = volume.get("persistentVolumeClaim", {}).get("claimName", f"{self.name}-{volume['name']}")
        self.engine.run("volume", "create", name)
        maps = {one["metadata"]["name"]: one["data"] for one in self.documents if one["kind"] == "ConfigMap"}
        for file, text in maps[volume["configMap"]["name"]].items() if "configMap" in volume else ():
            (self._volume(name) / file).write_text(text)
        os.chown(self._volume(name), user["runAsUser"], user["runAsGroup"])
        return name

    def _volume(self, name: str) -> Path:
        return Path(self.engine.said("volume", "inspect", "--format={{.Mountpoint}}", name))

    def logs(self, container: str) -> str:
        run = self.engine.run("logs", f"{self.name}-{container}")
        return run.stdout + run.stderr

    def await_log(self, container: str, text: str) -> None:
        wait_until(lambda: text in self.logs(container) or not self.runs(container), 30, f"{container} {text}", 0.1)
        assert text in self.logs(container), self.logs(container)

    def runs(self, container: str) -> bool:
        return self.engine.said("inspect", "--format={{.State.Running}}", f"{self.name}-{container}") == "true"

    def execute(self, container: str, *command: str, user: str = "") -> subprocess.CompletedProcess[str]:
        """Run *command* in *container*, as its own user or as *user*."""
        who = [f"--user={user}"] if user else []
        return self.engine.run("exec", *who, f"{self.name}-{container}", *command, check=False)

    def pre_stop(self, container: str) -> subprocess.CompletedProcess[str]:
        return self.execute(container, *self.containers[container]["lifecycle"]["preStop"]["exec"]["command"])

    def signal(self, container: str, name: str) -> None:
        """Signal the first process of *container*."""
        self.engine.run("kill", f"--signal={name}", f"{self.name}-{container}")

    def exit_status(self, container: str) -> int:
        """Wait for the end of *container*."""
        return int(self.engine.said("wait", f"{self.name}-{container}"))

    def statuses(self, container: str) -> list[Mapping[str, str]]:
        """Read /proc/PID/status of all processes in *container*, as the host sees them."""
        pid = self.engine.said("inspect", "--format={{.State.Pid}}", f"{self.name}-{container}")
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
