"""Clusters for tests; how to use them is in README.md."""

import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack

import pytest

from tests.conftest import HOW
from tests.lab.slurm.cluster import PROGRAMS, Cluster
from tests.lab.slurm.configuration import Options


@pytest.fixture(scope="session")
def needs_slurm(request: pytest.FixtureRequest) -> None:
    """SLURM's programs, and the right to make namespaces."""
    request.getfixturevalue("needs_root")
    for program in PROGRAMS:
        if shutil.which(program) is None:
            pytest.skip(f"needs {program}: {HOW}")
    if (
        subprocess.run(["unshare", "--pid", "--mount", "--fork", "true"], check=False, capture_output=True).returncode
        != 0
    ):
        pytest.skip("needs pid and mount namespaces, which this machine forbids (in a container: run it privileged)")


@pytest.fixture(scope="session")
def default_cluster(needs_slurm: None) -> Iterator[Cluster]:  # noqa: ARG001
    with Cluster() as cluster:
        yield cluster


@pytest.fixture
def slurm(default_cluster: Cluster) -> Iterator[Cluster]:
    """Lend the worker's own cluster of two nodes, without jobs; what the test leaves is cleared away."""
    yield default_cluster
    default_cluster.clean()


@pytest.fixture(scope="module")
def make_cluster(needs_slurm: None) -> Iterator[Callable[[Options], Cluster]]:  # noqa: ARG001
    """Make clusters with other options; they end with the module."""
    with ExitStack() as stack:
        yield lambda options: stack.enter_context(Cluster(options))


@pytest.fixture(scope="session")
def job_python() -> str:
    """Return the interpreter for batch scripts: the one that runs these tests; jobs see it under the same path."""
    return sys.executable


@pytest.fixture(scope="session")
def preemptd_command(job_python: str) -> list[str]:
    return [job_python, "-m", "preemptd"]
