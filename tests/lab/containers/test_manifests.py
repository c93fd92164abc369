"""The Containerfile and the manifests of docs/examples/containers, run by podman on a cloud of our own."""

import json
import os
import re
import shlex
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.conftest import ROOT
from tests.lab.containers.cloud import Cloud
from tests.lab.containers.podman import BASE, PREEMPTD, TRAIN, Podman
from tests.lab.containers.pods import Pod
from tests.waiting import wait_until
from tests.watching import PREEMPTD as HERE
from tests.watching import environment, read_lines

pytestmark = [pytest.mark.xdist_group("containers"), pytest.mark.timeout(240)]  # the first one makes the images

Play = Callable[[str], Pod]
PAGE = ROOT / "docs" / "containers.md"
TRAINING = ("python3", "/train/train.py", "--checkpoints", "/tmp/checkpoints", "--steps", "1000000")
NO_RIGHTS = {"CapInh": 0, "CapPrm": 0, "CapEff": 0, "CapBnd": 0, "CapAmb": 0}
CONNECT = """
import json, socket, sys
link = socket.socket(socket.AF_UNIX)
try:
    link.connect("/run/preemptd/link")
    link.sendall(json.dumps({"v": 1, "verb": "notify"}).encode() + b"\\n")
    print(json.loads(link.makefile().readline())["type"])
except PermissionError:
    print("kept out")
"""


def rights(pod: Pod, container: str) -> list[dict[str, int]]:
    return [{name: int(status[name], 16) for name in NO_RIGHTS} for status in pod.statuses(container)]


def uids(pod: Pod, container: str) -> set[str]:
    return {status["Uid"] for status in pod.statuses(container)}


def linked(pod: Pod) -> bool:
    """Say whether somebody listens on the link of the sidecar."""
    status = pod.execute("preemptd", "preemptd", "status", "--json")
    return status.returncode == 0 and bool(json.loads(status.stdout)["linked"])


# -- the image ---------------------------------------------------------------------------------------------------------


def test_the_image_holds_preemptd_and_neither_wandb_nor_pip_nor_root(podman: Podman) -> None:
    code = (
        "import importlib.util as u, json, os; print(json.dumps([os.getuid(), os.getgid(),"
        " *(u.find_spec(name) is not None for name in ('preemptd', 'wandb', 'pip'))]))"
    )
    inside = podman.said("run", "--rm", "--entrypoint=python3", PREEMPTD, "-c", code)
    version = podman.said("run", "--rm", "--read-only", "--cap-drop=all", PREEMPTD, "--version")
    sizes = [int(podman.said("image", "inspect", "--format={{.Size}}", image)) for image in (PREEMPTD, BASE)]

    assert json.loads(inside) == [1000, 1000, True, False, False]
    assert re.fullmatch(r"preemptd \d+\.\d+\.\d+\S*", version)
    assert sizes[0] - sizes[1] < 50e6


# -- the same container ------------------------------------------------------------------------------------------------


def test_in_the_same_container_a_notice_is_told_and_the_container_ends_with_75(play: Play, cloud: Cloud) -> None:
    pod = play("same-container.yaml")
    pod.await_log("train", "watching ec2")
    pod.await_log("train", "step 500")
    cloud.announce()
    status = pod.exit_status("train")

    assert status == 75
    assert pod.logs("train").count("preemptd: told ") == 1
    assert "NOTICE from ec2" in pod.logs("train")
    assert len(pod.checkpoints()) == 1


def test_in_the_same_container_the_deletion_of_the_pod_is_a_notice_and_the_next_attempt_goes_on_from_there(
    play: Play, podman: Podman
) -> None:
    pod = play("same-container.yaml")
    pod.await_log("train", "step 500")
    pod.signal("train", "TERM")
    status = pod.exit_status("train")
    said, (checkpoint,) = pod.logs("train"), pod.checkpoints()
    podman.run("pod", "rm", "--force", "--time=0", pod.name)
    play("same-container.yaml").await_log("train", f"resumed from /checkpoints/{checkpoint}")

    assert status == 75
    assert "NOTICE from sigterm" in said
    assert re.search(r"told pid \d+ by SIGUSR1", said)


def test_in_the_same_container_preemptd_is_pid_1_reaps_orphans_and_ends_as_the_training_does(play: Play) -> None:
    pod = play("same-container.yaml")
    pod.await_log("train", "step 500")
    first = pod.execute("train", "cat", "/proc/1/comm").stdout.strip()
    leave = "sh -c 'sleep 1 >/dev/null 2>&1 & echo $!' >/tmp/orphan; cat /tmp/orphan; ps -o ppid= -p $(cat /tmp/orphan)"
    orphan, adopted_by = pod.execute("train", "sh", "-c", leave).stdout.split()
    wait_until(lambda: pod.execute("train", "test", "-e", f"/proc/{orphan}").returncode != 0)
    pod.execute("train", "pkill", "-KILL", "-x", "python3")
    status = pod.exit_status("train")

    assert (first, adopted_by) == ("preemptd", "1")
    assert status == 128 + 9


# -- a sidecar that shares the pid namespace ---------------------------------------------------------------------------


def test_a_sidecar_without_any_capability_signals_the_training_of_its_own_user(play: Play, cloud: Cloud) -> None:
    pod = play("sidecar-shared.yaml")
    pod.await_log("preemptd", "watching ec2")
    pod.await_log("train", "step 500")
    sidecar = rights(pod, "preemptd")
    users = uids(pod, "preemptd") | uids(pod, "train")
    cloud.announce()
    status = pod.exit_status("train")

    assert sidecar == [NO_RIGHTS]
    assert users == {"1000\t1000\t1000\t1000"}
    assert status == 75
    assert re.search(r"told pid \d+ by SIGUSR1", pod.logs("preemptd"))
    assert len(pod.checkpoints()) == 1


def test_a_sidecars_pre_stop_hook_makes_the_deletion_of_the_pod_a_notice(play: Play) -> None:
    pod = play("sidecar-shared.yaml")
    pod.await_log("preemptd", "watching ec2")
    pod.await_log("train", "step 500")
    hook = pod.pre_stop("preemptd")
    status = pod.exit_status("train")

    assert (hook.returncode, status) == (0, 75)
    assert "pod deleted" in pod.logs("preemptd") + hook.stdout
    assert len(pod.checkpoints()) == 1


# -- a sidecar that does not -------------------------------------------------------------------------------------------


def test_a_sidecar_that_sees_no_process_of_the_training_tells_it_over_the_link(play: Play, cloud: Cloud) -> None:
    pod = play("sidecar-link.yaml")
    pod.await_log("preemptd", "watching ec2")
    pod.await_log("train", "starting at step 0")
    visible = pod.execute("preemptd", "python3", "-c", "import os; print(*filter(str.isdecimal, os.listdir('/proc')))")
    wait_until(lambda: linked(pod), pause=0.3)
    cloud.announce()
    status = pod.exit_status("train")

    assert len(visible.stdout.split()) == 2, "preemptd, and the one who looks"
    assert status == 75
    assert "told" in pod.logs("preemptd")
    assert len(pod.checkpoints()) == 1


def test_the_link_of_a_sidecar_keeps_other_users_out_and_its_pre_stop_hook_reaches_the_training(play: Play) -> None:
    pod = play("sidecar-link.yaml")
    pod.await_log("preemptd", "watching ec2")
    pod.await_log("train", "starting at step 0")
    at_first = pod.execute("train", "python3", "-c", CONNECT, user="1001:1001").stdout.strip()
    pod.execute("preemptd", "chmod", "666", "/run/preemptd/link")
    let_in = pod.execute("train", "python3", "-c", CONNECT, user="1001:1001").stdout.strip()
    still_runs = pod.runs("train")
    hook = pod.pre_stop("preemptd")
    status = pod.exit_status("train")

    assert (at_first, let_in, still_runs) == ("kept out", "error", True)
    assert (hook.returncode, status) == (0, 75)
    assert len(pod.checkpoints()) == 1


# -- one a node --------------------------------------------------------------------------------------------------------


def test_a_daemon_set_tells_the_trainings_of_its_own_user_in_all_pods(play: Play, podman: Podman, cloud: Cloud) -> None:
    for name, user in (("one", "1000:1000"), ("two", "1000:1000"), ("foreign", "1001:1001")):
        podman.run("run", "--detach", f"--name={name}", f"--user={user}", "--cap-drop=all", TRAIN, *TRAINING)
    for name in ("one", "two", "foreign"):
        wait_until(lambda name=name: "step 500" in podman.said("logs", name), 60, pause=0.1)  # type: ignore[misc]  # bound
    pod = play("daemonset.yaml")
    pod.await_log("preemptd", "watching ec2")
    cloud.announce()
    ends = [podman.said("wait", name) for name in ("one", "two")]

    assert rights(pod, "preemptd") == [NO_RIGHTS]
    assert ends == ["75", "75"]
    assert "saved /tmp/checkpoints" in podman.said("logs", "one")
    assert podman.said("inspect", "--format={{.State.Running}}", "foreign") == "true"
    assert pod.logs("preemptd").count("by SIGUSR1") == 2


# -- without Kubernetes ------------------------------------------------------------------------------------------------


@contextmanager
def watched(podman: Podman, directory: Path, *command: str) -> Iterator["subprocess.Popen[bytes]"]:
    arguments = ["--link", "link", "--journal", "journal", "--state-dir", "state", "--provider", "file"]
    with (directory / "out").open("wb") as out:
        watch = subprocess.Popen(
            [*HERE, "watch", *arguments, "--", *podman.command(*command)],
            cwd=directory,
            env={**environment(), "CONTAINERS_CONF": podman.environ["CONTAINERS_CONF"]},
            stdin=subprocess.DEVNULL,
            stdout=out,
        )
    try:
        yield watch
    finally:
        if watch.poll() is None:
            watch.terminate()
        watch.wait(30)


def test_podman_run_under_watch_is_followed_and_the_doctor_says_so(podman: Podman, tmp_path: Path) -> None:
    with watched(podman, tmp_path, "run", "--rm", "--name=job", TRAIN, *TRAINING) as watch:
        wait_until(lambda: "step 500" in (tmp_path / "out").read_text(), 60, pause=0.1)
        doctor = subprocess.run(
            [*HERE, "doctor", str(watch.pid), "--json", "--no-probe"],
            env=environment(),
            cwd=tmp_path,
            capture_output=True,
            check=False,
        )
        subprocess.run([*HERE, "notify", "--link", "link", "--deadline", "30"], cwd=tmp_path, check=True)
        status = watch.wait(30)
    said = json.loads(doctor.stdout)

    assert [one["told_by"] for one in said["job"]["processes"] if one["told_by"]] == ["USR1"]
    assert "container" not in {finding["kind"] for finding in said["findings"]}
    assert status == 75
    assert len([line for line in read_lines(tmp_path / "journal") if line["event"] == "told"]) == 1
    assert "saved /tmp/checkpoints" in (tmp_path / "out").read_text()


def test_the_docker_run_of_the_page_ends_with_75_and_a_checkpoint_when_docker_stops_it(
    podman: Podman, tmp_path: Path
) -> None:
    (command,) = re.findall(r"^```sh\n(docker run .*?)^```", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    (tmp_path / "docker").write_text(f'#!/bin/sh\nexec {shlex.join(podman.command())} "$@"\n')
    (tmp_path / "docker").chmod(0o755)
    (tmp_path / "checkpoints").mkdir()
    os.chown(tmp_path / "checkpoints", 1000, 1000)
    environ = {**podman.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    with subprocess.Popen(["bash", "-c", command], cwd=tmp_path, env=environ, stdout=subprocess.PIPE) as run:
        assert run.stdout is not None
        next(line for line in run.stdout if line.startswith(b"step 500"))
        podman.run("stop", "--time=10", podman.said("ps", "--quiet"))
        run.stdout.read()

    assert run.returncode == 75
    assert len(list((tmp_path / "checkpoints").glob("step-*"))) == 1
