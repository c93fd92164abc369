"""The image and what the manifests say, run by docker: where its rights differ from podman's, clusters are like it."""

import re
import shutil
from collections.abc import Callable, Iterator

import pytest

from tests.conftest import HOW
from tests.lab.containers.cloud import Cloud
from tests.lab.containers.docker import Docker, DockerPod
from tests.lab.containers.podman import TRAIN, Podman
from tests.lab.containers.pods import Engine
from tests.lab.containers.test_manifests import CONNECT, NO_RIGHTS, TRAINING, rights, uids
from tests.waiting import wait_until

pytestmark = [pytest.mark.xdist_group("containers"), pytest.mark.timeout(240)]  # the first one makes the images

Play = Callable[[str], DockerPod]
KILL = 1 << 5
SIGNALS = "import os\ntry:\n    os.kill(1, 0); print('may')\nexcept PermissionError:\n    print('may not')"


@pytest.fixture(scope="module")
def dockerd(images: Podman, instance: Cloud) -> Iterator[Docker]:
    for program in ("dockerd", "docker"):
        if shutil.which(program) is None:
            pytest.skip(f"needs {program}: {HOW}")
    with Docker(images, instance) as docker:
        yield docker


@pytest.fixture
def docker(dockerd: Docker) -> Iterator[Docker]:
    """Lend an empty one."""
    yield dockerd
    dockerd.clean()


@pytest.fixture
def play(docker: Docker, cloud: Cloud) -> Play:
    return lambda manifest: DockerPod(docker, cloud, manifest)


def test_in_the_same_container_preemptd_needs_no_capability(play: Play, cloud: Cloud) -> None:
    pod = play("same-container.yaml")
    pod.await_log("train", "watching ec2")
    pod.await_log("train", "step 500")
    both, users = rights(pod, "train"), uids(pod, "train")
    cloud.announce()
    status = pod.exit_status("train")

    assert both == [NO_RIGHTS, NO_RIGHTS]
    assert users == {"1000\t1000\t1000\t1000"}
    assert status == 75
    assert pod.logs("train").count("preemptd: told ") == 1
    assert len(pod.checkpoints()) == 1


def test_a_sidecar_without_any_capability_tells_the_training_and_keeps_other_users_out(
    play: Play, cloud: Cloud
) -> None:
    pod = play("sidecar-shared.yaml")
    pod.await_log("preemptd", "watching ec2")
    pod.await_log("train", "step 500")
    sidecar, training = rights(pod, "preemptd"), rights(pod, "train")
    foreign = pod.execute("preemptd", "python3", "-c", CONNECT, user="1001:1001").stdout.strip()
    pod.execute("preemptd", "chmod", "666", "/run/preemptd/link")
    let_in = pod.execute("preemptd", "python3", "-c", CONNECT, user="1001:1001").stdout.strip()
    still_runs = pod.runs("train")
    cloud.announce()
    status = pod.exit_status("train")

    assert (sidecar, training) == ([NO_RIGHTS], [NO_RIGHTS])
    assert (foreign, let_in, still_runs) == ("kept out", "error", True)
    assert status == 75
    assert re.search(r"told pid \d+ by SIGUSR1", pod.logs("preemptd"))
    assert len(pod.checkpoints()) == 1


def test_a_capability_that_is_added_for_another_user_is_none_in_docker_and_one_in_podman(
    docker: Docker, podman: Podman
) -> None:
    has, may = {}, {}
    engines: dict[str, Engine] = {"docker": docker, "podman": podman}
    for name, engine in engines.items():
        plain = ("--network=none", "--cap-drop=all")
        engine.run("run", "--detach", "--name=train", "--user=1000:1000", *plain, TRAIN, *TRAINING)
        wait_until(lambda engine=engine: "step 500" in engine.said("logs", "train"), 60, pause=0.1)  # type: ignore[misc]  # bound
        beside = ("run", "--rm", "--user=1001:1001", *plain, "--cap-add=kill", "--pid=container:train", TRAIN)
        status = engine.said(*beside, "cat", "/proc/self/status")
        has[name] = [int(value, 16) for value in re.findall(r"^Cap(?:Eff|Bnd):\s*(\S+)", status, re.MULTILINE)]
        may[name] = engine.said(*beside, "python3", "-c", SIGNALS)

    assert has == {"docker": [0, KILL], "podman": [KILL, KILL]}
    assert may == {"docker": "may not", "podman": "may"}
