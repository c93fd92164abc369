"""Images, a cloud, and pods that end with their test."""

import shutil
from collections.abc import Callable, Iterator

import pytest

from tests.conftest import HOW
from tests.lab.containers.cloud import Cloud
from tests.lab.containers.podman import WHEELS, Podman
from tests.lab.containers.pods import Pod


@pytest.fixture(scope="session")
def images(needs_netns: None) -> Iterator[Podman]:  # noqa: ARG001 - it is needed
    """Lend a podman with all the images that the manifests name."""
    for program in ("catatonit", "conmon", "podman", "runc"):
        if shutil.which(program) is None:
            pytest.skip(f"needs {program}: {HOW}")
    if not WHEELS.exists():
        pytest.skip(f"needs wheels for the images: {HOW}")
    with Podman() as podman:
        podman.make_images()
        yield podman


@pytest.fixture(scope="session")
def instance(images: Podman) -> Iterator[Cloud]:  # noqa: ARG001 - nothing to be announced to without them
    with Cloud() as cloud:
        yield cloud


@pytest.fixture
def podman(images: Podman) -> Iterator[Podman]:
    """Lend an empty one."""
    yield images
    images.clean()


@pytest.fixture
def cloud(instance: Cloud) -> Iterator[Cloud]:
    """Lend one with nothing announced."""
    yield instance
    instance.renew()


@pytest.fixture
def play(podman: Podman, cloud: Cloud) -> Callable[[str], Pod]:
    """Run a manifest on an instance of the cloud."""
    return lambda manifest: Pod(podman, cloud, manifest)
