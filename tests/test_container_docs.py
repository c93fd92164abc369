"""What can be read off the manifests of docs/examples/containers, without running them."""

import re
from pathlib import Path
from typing import Any

import pytest
import yaml  # type: ignore[import-untyped]  # it has no stubs

from preemptd.config import daemon_settings
from tests.conftest import ROOT

MANIFESTS = sorted((ROOT / "docs" / "examples" / "containers").glob("*.yaml"))
Document = dict[str, Any]
each = pytest.mark.parametrize("manifest", MANIFESTS, ids=lambda manifest: manifest.stem)


def documents(manifest: Path) -> list[Document]:
    return list(yaml.safe_load_all(manifest.read_text()))


def pod_of(manifest: Path) -> Document:
    (found,) = (one["spec"]["template"]["spec"] for one in documents(manifest) if one["kind"] != "ConfigMap")
    return dict(found)


def containers(pod: Document) -> list[Document]:
    return [*pod.get("initContainers", []), *pod["containers"]]


@each
def test_no_container_has_a_capability_and_all_are_of_one_user_who_is_not_root(manifest: Path) -> None:
    pod = pod_of(manifest)

    assert (pod["securityContext"]["runAsNonRoot"], pod["securityContext"]["runAsUser"]) == (True, 1000)
    for container in containers(pod):
        assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}
        assert container["securityContext"]["allowPrivilegeEscalation"] is False
        assert "runAsUser" not in container["securityContext"]


@each
def test_what_waits_for_a_save_gives_up_before_kubernetes_kills(manifest: Path) -> None:
    pod = pod_of(manifest)
    words = [
        word
        for container in containers(pod)
        for word in (
            *container.get("command", []),
            *container.get("lifecycle", {}).get("preStop", {}).get("exec", {}).get("command", []),
        )
    ]
    waits = [float(found[1]) for word in words if (found := re.fullmatch(r"(?:--grace=)?(\d+)", word))]

    assert all(wait < pod["terminationGracePeriodSeconds"] for wait in waits)
    assert bool(waits) == (manifest.stem != "daemonset")


@each
def test_the_configuration_of_a_daemon_is_one_that_it_takes(manifest: Path, tmp_path: Path) -> None:
    for document in documents(manifest):
        if document["kind"] == "ConfigMap":
            (tmp_path / "preemptd.toml").write_text(document["data"]["preemptd.toml"])
            settings = daemon_settings({}, {}, str(tmp_path / "preemptd.toml"))

            assert settings.provider == ("ec2",)


@each
def test_each_volume_that_is_mounted_is_one_of_the_pods_and_each_config_map_is_there(manifest: Path) -> None:
    pod = pod_of(manifest)
    volumes = {one["name"] for one in pod["volumes"]}
    maps = {one["metadata"]["name"] for one in documents(manifest) if one["kind"] == "ConfigMap"}

    assert {mount["name"] for container in containers(pod) for mount in container["volumeMounts"]} == volumes
    assert {volume["configMap"]["name"] for volume in pod["volumes"] if "configMap" in volume} == maps
