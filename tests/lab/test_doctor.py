"""`preemptd doctor PID` on real W&B, real torchrun, other users, and namespaces."""

import fcntl
import json
import os
import secrets
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from preemptd.runs.transaction_log import has_preempting
from tests.doctors import doctor, run_doctor, running, script
from tests.lab.launchers import LAUNCHERS, Place
from tests.lab.wandb_backend import API_KEY, WandbBackend
from tests.lab.wandb_watching import SCRIPT, every_version
from tests.linking import short_directory
from tests.metadata_server import FaultyEc2
from tests.test_watch import on_ec2
from tests.waiting import wait_until
from tests.watching import PREEMPTD, Watch, environment, trainer

NOBODY = 65534
OFFLINE = {"WANDB_MODE": "offline", "WANDB_CONSOLE": "off", "WANDB_SILENT": "true"}
GVISOR = "Name:\tpython\nState:\tS (sleeping)\nTgid:\t{0}\nPid:\t{0}\nPPid:\t1\nTracerPid:\t0\nCapEff:\t0\n"


@pytest.fixture
def short() -> Iterator[Path]:
    with short_directory() as directory:
        yield directory


@pytest.fixture
def ec2() -> Iterator[FaultyEc2]:
    with FaultyEc2(grace=60.0) as server:
        yield server


@every_version
def test_an_offline_run_is_found_could_be_marked_and_is_not(
    wandb_pythons: Mapping[str, str], short: Path, ec2: FaultyEc2, version: str
) -> None:
    env = {**OFFLINE, **on_ec2(ec2), "NETRC": str(short / "netrc")}
    with Watch(short, [wandb_pythons[version], SCRIPT], "--link", str(short / "link"), env=env) as job:
        (ready,) = job.await_said("ready")
        job.await_line("provider")
        found = doctor(ready["pid"])
        text = run_doctor(ready["pid"]).stdout
        os.kill(int(str(ready["pid"])), signal.SIGUSR1)
        job.wait()
        run = found.run()
        (log,) = short.glob(f"wandb/offline-run-*/run-{run['run_id']}.wandb")

        assert [run["run_id"]] == ready["runs"]
        assert (run["wandb_version"], run["offline"], run["owner_pid"]) == (version, True, ready["pid"])
        assert (run["deliverable"], run["api_key_present"]) == (True, False)
        assert run["survives_kill"] is (version == "0.31.0")
        assert found.kinds() == (set() if version == "0.31.0" else {"offline-log"})
        assert found.status == 0
        assert f"offline, wandb {version}, API key not found" in text
        assert not has_preempting(str(log))


@pytest.mark.parametrize("version", ["0.31.0"])
def test_an_online_run_is_found_and_the_backend_hears_of_nothing(
    wandb_pythons: Mapping[str, str], short: Path, version: str
) -> None:
    with WandbBackend() as backend:
        env = {**backend.env(), "LOG": str(short / "log")}
        with running([wandb_pythons[version], SCRIPT], env=env, cwd=short) as job:
            found = doctor(job.pid)
            text = run_doctor(job.pid).stdout
            job.send_signal(signal.SIGUSR1)
            job.wait()
        streams = [call.body for call in backend.calls if call.operation == "file_stream"]

    assert (found.run()["offline"], found.run()["api_key_present"], found.run()["deliverable"]) == (False, True, True)
    assert streams
    assert not any("preempting" in body for body in streams)
    assert API_KEY not in found.out + text


def test_the_ranks_of_torchrun_are_told_and_torchrun_is_not(torch_python: str, short: Path, ec2: FaultyEc2) -> None:
    (launcher,) = [launcher for launcher in LAUNCHERS if launcher.name == "torchrun"]
    place = Place(short, torch_python, lambda name: name)
    command = launcher.build(place, trainer("both")[1:])
    with Watch(short, command, "--link", str(short / "link"), env=on_ec2(ec2)) as job:
        ranks = {int(str(line["pid"])) for line in job.await_said("ready", 2, timeout=50)}
        job.await_line("provider")
        found = doctor(job.process.pid)
        agent = next(one for one in found.said["job"]["processes"] if one["why"] == "torchrun, the launcher")

    assert {one["pid"]: one["told_by"] for one in found.said["job"]["processes"] if one["told_by"]} == dict.fromkeys(
        ranks, "USR1"
    )
    assert (agent["role"], agent["signals"]["TERM"]) == ("launcher", "caught")
    assert (found.status, found.kinds()) == (0, set())


def test_torchrun_without_a_longer_time_limit_is_mentioned(torch_python: str, short: Path) -> None:
    (launcher,) = [launcher for launcher in LAUNCHERS if launcher.name == "torchrun"]
    command = launcher.build(Place(short, torch_python, lambda name: name), trainer("USR1")[1:])
    with running(command, cwd=short, start_new_session=True) as job:
        try:
            found = doctor(job.pid)
        finally:
            for one in reversed(doctor(job.pid).said["job"]["processes"]):
                subprocess.run(["kill", "-9", str(one["pid"])], check=False, capture_output=True)

    assert found.kinds() == {"not-watched", "torchrun-timeout"}


@pytest.mark.usefixtures("needs_root")
def test_what_another_user_may_not_signal_would_be_lost(short: Path) -> None:
    """The interpreter may lie where that user cannot read: everything is loaded by a first call as root."""
    code = """
import contextlib, io, os, sys
from preemptd.cli.doctor import doctor
with contextlib.redirect_stdout(io.StringIO()):
    doctor(os.getppid(), True, False)
    doctor(os.getppid(), False, False)
os.setgroups([]); os.setgid(65534); os.setuid(65534)
sys.exit(doctor(int(sys.argv[1]), True, False))
"""
    with running(trainer("USR1"), cwd=short) as job:
        ended = subprocess.run(
            [sys.executable, "-c", code, str(job.pid)],
            env=environment(),
            capture_output=True,
            text=True,
            check=False,
        )
        said = json.loads(ended.stdout)

    assert (ended.returncode, ended.stderr) == (1, "")
    assert {"other-user", "not-watched"} <= {one["kind"] for one in said["findings"] if one["loses"]}
    assert said["job"]["processes"][0]["uid"] == 0


@pytest.mark.usefixtures("needs_root")
def test_root_may_signal_the_training_of_another_user(short: Path) -> None:
    code = "import os\nos.setuid(65534)\nsignal.signal(signal.SIGUSR1, print)"
    with running(script(code), cwd=short) as job:
        found = doctor(job.pid)

    assert found.process(job.pid)["uid"] == NOBODY
    assert found.kinds() == {"not-watched"}


@pytest.mark.usefixtures("needs_netns")
def test_a_kernel_that_shows_no_signals_as_gvisor_does_is_named(short: Path) -> None:
    with running(trainer("both"), cwd=short) as job:
        (short / "status").write_text(GVISOR.format(job.pid))
        mount = f'mount --bind {short}/status /proc/{job.pid}/status && exec "$@"'
        found = doctor(job.pid, before=["unshare", "--mount", "sh", "-c", mount, "sh"])

    assert found.process(job.pid)["signals"] == {"USR1": "unknown", "TERM": "unknown"}
    assert found.kinds(losing=True) == {"not-watched", "signals-unknown"}
    assert "import preemptd" in found.finding("signals-unknown")["advice"]


@pytest.mark.usefixtures("needs_netns")
def test_a_training_in_a_pid_namespace_of_its_own_is_told_and_its_pid_there_is_said(
    short: Path, ec2: FaultyEc2
) -> None:
    command = ["unshare", "--pid", "--fork", "--mount-proc", *trainer("USR1")]
    with Watch(short, command, "--link", str(short / "link"), env=on_ec2(ec2)) as job:
        job.await_said("ready")
        job.await_line("provider")
        found = doctor(job.process.pid)
        (told,) = [one for one in found.said["job"]["processes"] if one["told_by"]]

        assert (told["told_by"], told["pid_inside"]) == ("USR1", 1)
        assert (found.status, found.kinds()) == (0, set())
        os.kill(told["pid"], signal.SIGKILL)


@pytest.mark.usefixtures("needs_netns")
def test_a_preemptd_in_another_pid_namespace_is_not_asked_about_our_pids(short: Path, ec2: FaultyEc2) -> None:
    watch = [*PREEMPTD, "watch", "--link", str(short / "link"), "--", *trainer("USR1")]
    command = ["unshare", "--pid", "--fork", "--mount-proc", "--kill-child", *watch]
    with running(command, env=on_ec2(ec2), cwd=short, stderr=subprocess.DEVNULL) as job:
        found = doctor(job.pid)

        assert (found.status, found.kinds()) == (0, {"silent-preemptd"})
        assert [one["told_by"] for one in found.said["job"]["processes"] if one["told_by"]] == ["USR1"]


@pytest.fixture
def container_group(needs_root: None) -> Iterator[Path]:  # noqa: ARG001 - it is needed
    """A control group with the name that docker would give it."""
    tops = [Path("/sys/fs/cgroup") / name for name in ("", "unified", "systemd")]
    top = next((top for top in tops if os.access(top / "cgroup.procs", os.W_OK)), None)
    if top is None:
        pytest.skip(
            "needs a control group in which groups can be made: run the tests as root on the host, or privileged"
        )
    group = top / f"docker-{secrets.token_hex(32)}.scope"
    with (Path(tempfile.gettempdir()) / "preemptd-tests-container-groups").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # one at a time: two new containers could not be told apart
        try:
            group.mkdir()
        except OSError as error:
            pytest.skip(f"needs the right to make control groups: {error}")
        yield group
        wait_until(lambda: not (group / "cgroup.procs").read_text())
        group.rmdir()


@pytest.mark.parametrize("how", ["by its --cidfile", "by its command", "by its id", "as the only new one"])
def test_the_processes_of_a_container_are_found_by_their_control_group(
    short: Path, container_group: Path, how: str
) -> None:
    name = container_group.name.removeprefix("docker-").removesuffix(".scope")
    (short / "docker").symlink_to("/bin/bash")
    for verb in ("run", "exec"):
        (short / verb).write_text("echo ready\nread\n")
    (short / "cid").write_text(name)
    training = script("signal.signal(signal.SIGUSR1, print)")
    arguments = {
        "by its --cidfile": ["run", "--cidfile", "cid", "image"],
        "by its command": ["run", "image", *training],
        "by its id": ["exec", name[:12], "bash"],
        "as the only new one": ["run", "--cidfile=/nowhere", "image"],
    }[how]
    join = f'echo $$ > {container_group}/cgroup.procs && exec "$@"'
    group = ["sh", "-c", join, "sh", *training]
    with running([str(short / "docker"), *arguments], cwd=short) as client, running(group) as inside:
        found = doctor(client.pid)
        pids = {one["pid"] for one in found.said["job"]["processes"]}

        assert found.kinds(losing=True) == {"container", "not-watched"}
        assert inside.pid in pids
        assert found.process(inside.pid)["signals"]["USR1"] == "caught"
        assert found.process(inside.pid)["told_by"] is None
        assert f"only waits for a container (pid {inside.pid})" in found.finding("container")["text"]


def test_what_listens_on_the_link_from_inside_a_container_is_not_lost(
    short: Path, container_group: Path, ec2: FaultyEc2
) -> None:
    (short / "docker").symlink_to("/bin/bash")
    (short / "run").write_text("sleep 60\ntrue\n")
    (short / "cid").write_text(container_group.name.removeprefix("docker-").removesuffix(".scope"))
    client = [str(short / "docker"), "run", "--cidfile", "cid", "image"]
    join = f'echo $$ > {container_group}/cgroup.procs && exec "$@"'
    inside = ["sh", "-c", join, "sh", *trainer("link")]
    with (
        Watch(short, client, "--link", str(short / "link"), "--sweep", env=on_ec2(ec2)) as job,
        running(inside, env={"PREEMPTD_LINK": str(short / "link")}) as training,
    ):
        pid = int(str(job.await_line("started")[0]["pid"]))
        job.await_line("provider")
        wait_until(lambda: doctor(pid).said["preemptds"][0]["linked"] == [training.pid])
        found = doctor(pid)
        job.signal(signal.SIGTERM)
        job.wait()

    assert (found.status, found.kinds()) == (0, {"container", "subscriber"})
    assert found.process(training.pid)["told_by"] == "link"
