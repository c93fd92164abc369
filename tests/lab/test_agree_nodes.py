"""A job on two machines, each under a `preemptd watch` of its own, of which only one is to be taken away."""

import os
from pathlib import Path

import pytest

from tests.conftest import ROOT
from tests.lab.wandb_watching import PATIENCE, Training
from tests.metadata_server import FaultyGce

EXAMPLE = str(ROOT / "docs" / "examples" / "train_ddp.py")


class Node(Training):
    """One rank, and its preemptd."""

    def __init__(self, directory: Path, python: str, rank: int, *options: str, **env: str) -> None:
        rendezvous = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(20_000 + os.getpid() % 10_000)}
        names = {**rendezvous, "RANK": str(rank), "WORLD_SIZE": "2", "OMP_NUM_THREADS": "1", "WANDB_MODE": "offline"}
        super().__init__(directory, [python, EXAMPLE], *options, env={**names, **env}, name=f"node{rank}")

    def await_line_of_output(self, start: str) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if line.startswith(start.encode()):
                return
        raise AssertionError((self.wait(), self.err))


@pytest.mark.timeout(3 * PATIENCE)
def test_one_nodes_notice_stops_both_at_the_same_step_and_both_end_as_preempted(
    torch_python: str, tmp_path: Path
) -> None:
    with FaultyGce(grace=30.0) as server:
        gce = {"GCE_METADATA_HOST": server.url.removeprefix("http://"), "NO_GCE_CHECK": "false"}
        with (
            Node(tmp_path, torch_python, 0) as first,
            Node(tmp_path, torch_python, 1, "--provider", "gce", **gce) as second,
        ):
            first.await_line_of_output("step 500 ")
            server.announcement.announce()
            statuses = [node.wait() for node in (first, second)]

    (heard,), (announced,) = first.lines("notice"), second.lines("notice")
    saved = [[(line["step"], line["path"]) for line in node.lines("saved")] for node in (first, second)]
    (checkpoint,) = (tmp_path / "checkpoints").glob("*.pt")
    assert statuses == [75, 75]
    assert (announced["provider"], heard["provider"], heard["source"]) == ("gce", "notify", "rank 1 has been told")
    assert saved[0] == saved[1] == [(int(checkpoint.stem.removeprefix("step-")), str(checkpoint))]
    assert len(first.marked()) == 1  # its run, on the machine that the platform leaves alone
    assert 0 < float(str(heard["remaining"])) <= 30
