"""What every test gets: a clean environment, and fixtures for parts that a plain machine lacks.

A test that asks for such a part is marked `lab` by that, and skipped with the way to get the part where it is missing.
With PREEMPTD_REQUIRE_LAB=1 (as CI sets it) a skipped test is a failed test, whatever the reason.
"""

import importlib.metadata
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Generator, Iterator, Mapping
from pathlib import Path

import hypothesis
import pytest

ROOT = Path(__file__).resolve().parent.parent
LAB = ROOT / ".lab"
HOW = "run tests/lab/install.sh as root (make lab)"
LAB_FIXTURES = {"needs_root", "needs_netns", "torch_python", "sync_python", "wandb_pythons", "lab_tool", "needs_slurm"}
WANDB_VERSIONS = ("0.31.0", "0.22.3", "0.19.11")

# What the machine that runs the tests says of itself must not reach the programs under test.
FOREIGN = ("AWS_", "CUDA_", "GCE_", "KUBERNETES_", "MASTER_", "PREEMPTD_", "SLURM_", "TORCHELASTIC_", "WANDB_")
FOREIGN_NAMES = {"RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "NOTIFY_SOCKET", "WATCHDOG_USEC"}
OURS = {"PREEMPTD_REQUIRE_LAB", "PREEMPTD_SOAK"}
# A test that forgets to name its W&B backend must reach nobody: port 9 on loopback refuses.
SAFE = {"WANDB_BASE_URL": "http://127.0.0.1:9", "WANDB_ERROR_REPORTING": "false", "WANDB_SILENT": "true"}


def lab_is_required() -> bool:
    return os.environ.get("PREEMPTD_REQUIRE_LAB") == "1"


def soak_is_on() -> bool:
    return os.environ.get("PREEMPTD_SOAK") == "1"


def pytest_configure() -> None:
    for name in list(os.environ):
        if name not in OURS and (name.startswith(FOREIGN) or name in FOREIGN_NAMES):
            del os.environ[name]
    os.environ.update(SAFE)
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)  # each of thousands of starts would compile all of us anew
    hypothesis.settings.register_profile("shared machines", deadline=None)  # an example may wait for its turn
    hypothesis.settings.load_profile("shared machines")
    for signum in (signal.SIGINT, signal.SIGQUIT):  # a shell ignores them for what it starts with `&`, and we hand on
        if signal.getsignal(signum) is signal.SIG_IGN:
            signal.signal(signum, signal.SIG_DFL)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: object) -> object:
    """Let one worker run all tests of an xdist_group, which share what is dear to set up."""
    from tests.grouping import ModuleGroups

    return ModuleGroups(config, log) if config.getoption("dist") == "load" else None


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Mark lab tests (before pytest's own -m chooses), and leave soak tests out unless they were asked for."""
    for item in items:
        if LAB_FIXTURES & set(getattr(item, "fixturenames", ())):
            item.add_marker("lab")
    if not soak_is_on():
        soak = [item for item in items if item.get_closest_marker("soak")]
        config.hook.pytest_deselected(items=soak)
        items[:] = [item for item in items if item not in soak]
    items.sort(key=lambda item: item.get_closest_marker("long") is None)  # nobody is to wait for the last one


def _refuse(report: pytest.TestReport | pytest.CollectReport) -> None:
    reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
    report.outcome = "failed"
    report.longrepr = f"PREEMPTD_REQUIRE_LAB=1, so nothing may be skipped. {reason}"


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    if report.skipped and not hasattr(report, "wasxfail") and lab_is_required():
        _refuse(report)
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report() -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    """Catch modules that skip themselves as a whole."""
    report = yield
    if report.skipped and lab_is_required():
        _refuse(report)
    return report


@pytest.fixture(autouse=True)
def own_state(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep state and caches of the programs under test out of the user's home, and the tests out of each other's."""
    home = tmp_path_factory.mktemp("xdg")
    monkeypatch.setenv("CHECKPOINTS", str(home))  # of the training stand-in, where a test names no place
    for name in ("XDG_STATE_HOME", "XDG_RUNTIME_DIR", "WANDB_CACHE_DIR", "WANDB_CONFIG_DIR", "WANDB_DATA_DIR"):
        monkeypatch.setenv(name, str(home))


@pytest.fixture(scope="session")
def needs_root() -> None:
    if os.geteuid() != 0:
        pytest.skip("needs root: run the tests as root")


@pytest.fixture(scope="session")
def needs_netns(request: pytest.FixtureRequest) -> None:
    """The right and the tools to make network namespaces, addresses and packet filters in them."""
    request.getfixturevalue("needs_root")
    for tool in ("unshare", "ip", "nft"):
        if shutil.which(tool) is None:
            pytest.skip(f"needs {tool}: {HOW}")
    if subprocess.run(["unshare", "--net", "true"], check=False, capture_output=True).returncode != 0:
        pytest.skip("needs network namespaces, which this machine forbids (in a container: run it privileged)")


@pytest.fixture(scope="session")
def lab_tool() -> Callable[[str], str]:
    """Return the path of a program such as tini or dumb-init."""

    def find(name: str) -> str:
        path = shutil.which(name)
        if path is None:
            pytest.skip(f"needs {name}: {HOW}")
        return path

    return find


@pytest.fixture(scope="session")
def torch_python() -> str:
    """Return an interpreter with torch, its frameworks, wandb and preemptd; torchrun, accelerate, uv lie beside it."""
    python = LAB / "torch" / "bin" / "python"
    if not python.exists():
        pytest.skip(f"needs torch and accelerate: {HOW}")
    return str(python)


@pytest.fixture(scope="session")
def sync_python() -> str:
    """Return an interpreter with preemptd, clients of object stores, and servers that speak like them."""
    python = LAB / "sync" / "bin" / "python"
    if not python.exists():
        pytest.skip(f"needs s3fs and moto: {HOW}")
    return str(python)


class WandbPythons(Mapping[str, str]):
    """W&B version to an interpreter that has it; asking for one that is not installed skips the test."""

    def __getitem__(self, version: str) -> str:
        if version not in WANDB_VERSIONS:
            raise KeyError(version)
        if _own_wandb() == version:
            return sys.executable
        name = "torch" if version == WANDB_VERSIONS[0] else f"wandb-{version}"
        python = LAB / name / "bin" / "python"
        if not python.exists():
            pytest.skip(f"needs wandb {version}: {HOW}")
        return str(python)

    def __iter__(self) -> Iterator[str]:
        return iter(WANDB_VERSIONS)

    def __len__(self) -> int:
        return len(WANDB_VERSIONS)


def _own_wandb() -> str | None:
    try:
        return importlib.metadata.version("wandb")
    except importlib.metadata.PackageNotFoundError:
        return None


@pytest.fixture(scope="session")
def wandb_pythons() -> WandbPythons:
    return WandbPythons()
