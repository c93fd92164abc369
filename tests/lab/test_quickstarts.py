"""docs/quickstart.md is true: its commands rehearse a preemption, and go on from the checkpoint when they run again."""

import re
import shlex
import subprocess
from collections.abc import Mapping
from pathlib import Path

import pytest

from tests.conftest import ROOT
from tests.lab import transformers_table
from tests.watching import environment

PAGE = (ROOT / "docs" / "quickstart.md").read_text()
COMMANDS = re.compile(r"^```sh\n(.*?)\n(.*?)\n```", re.MULTILINE | re.DOTALL)
ALSO_PLAYED = {"torchrun"}
"""By tests/test_examples.py: two ranks that start twice are dear."""
PATIENCE = 400.0
"""Seconds for what takes ten."""
THREE_TIMES = """
import os, runpy, signal, sys, accelerate, torch
backward = accelerate.Accelerator.backward
def tell(accelerator, loss):
    global steps
    steps += 1
    if steps == stop:
        os.kill(os.getpid(), signal.SIGUSR1)
    backward(accelerator, loss)
accelerate.Accelerator.backward = tell
for directory, stop in (("through", 0), ("told", 70), ("told", 0)):
    if os.fork() == 0:
        torch.manual_seed(1)
        steps, sys.argv[1:] = 0, ["--checkpoints", directory, "--steps", "150"]
        with open(f"{directory}.out", "a") as out:
            os.dup2(out.fileno(), 1)
            runpy.run_path(EXAMPLE, run_name="__main__")
        sys.exit()
    print(os.waitstatus_to_exitcode(os.wait()[1]))
"""


def sections() -> Mapping[str, tuple[str, str]]:
    """Map each section that has commands to them: the rehearsal, and how it goes on."""
    found = {}
    for section in PAGE.split("\n## ")[1:]:
        commands = COMMANDS.search(section)
        if commands is not None:
            found[section.partition("\n")[0]] = commands[1], commands[2]
    return found


def run(command: str, python: str, directory: Path) -> subprocess.CompletedProcess[str]:
    """Run a command of the page in *directory*, with the programs that lie beside *python*."""
    words = [str(ROOT / word) if word.startswith("docs/") else word for word in shlex.split(command)]
    path = f"{Path(python).parent}:/usr/bin:/bin"
    env = environment(
        {
            "PATH": path,
            "HOME": str(directory),
            "WANDB_MODE": "offline",
            "HF_HUB_OFFLINE": "1",
            "OMP_NUM_THREADS": "1",
            "GLOO_SOCKET_IFNAME": "lo",
        }
    )
    return subprocess.run(words, cwd=directory, env=env, capture_output=True, text=True, timeout=PATIENCE, check=False)


@pytest.mark.timeout(2 * PATIENCE)
@pytest.mark.parametrize(
    "section", [pytest.param(name, marks=pytest.mark.soak) if name in ALSO_PLAYED else name for name in sections()]
)
def test_the_example_saves_when_a_rehearsal_tells_it_and_the_next_start_goes_on_from_there(
    torch_python: str, tmp_path: Path, section: str
) -> None:
    rehearsal, start = sections()[section]
    first = run(rehearsal, torch_python, tmp_path)
    second = run(f"{start} --steps 1", torch_python, tmp_path)

    assert first.returncode == 0, (first.stdout, first.stderr)
    assert re.search(r"^verdict +SAVED", first.stdout, re.MULTILINE), first.stdout
    assert "preemptd ends with status 75" in first.stdout
    assert re.search(r"^resumed from \S*checkpoints", second.stdout, re.MULTILINE), (second.stdout, second.stderr)
    assert second.returncode == 0, second.stderr


@pytest.mark.timeout(PATIENCE)
def test_the_example_of_accelerate_goes_on_with_the_samples_that_would_have_come_next(
    torch_python: str, tmp_path: Path
) -> None:
    code = THREE_TIMES.replace("EXAMPLE", repr(str(ROOT / "docs" / "examples" / "train_accelerate.py")))
    done = run(shlex.join([torch_python, "-c", code]), torch_python, tmp_path)
    through, told = ((tmp_path / f"{name}.out").read_text() for name in ("through", "told"))

    assert done.stdout.split() == ["0", "75", "0"], done.stderr
    assert "resumed from told/step-00000070" in told
    losses = [line for line in told.splitlines() if line.startswith("step ")]
    assert losses == through.splitlines()
    assert [line.split()[1] for line in losses] == ["50", "100", "150"]


def test_each_framework_of_the_page_has_a_section_and_each_section_an_example() -> None:
    rows = re.findall(r"^\| .*\[[\w ,]+\]\(#([\w-]+)\)", PAGE, re.MULTILINE)
    examples = re.findall(r"^\[(examples/\w+\.py)\]\(\1\)$", PAGE, re.MULTILINE)

    assert [name.lower().replace(" ", "-") for name in sections()] == rows
    assert len(examples) == len(rows)
    for example, (rehearsal, start) in zip(examples, sections().values(), strict=True):
        assert rehearsal.endswith(start)
        assert start.endswith(f"docs/{example}")


def test_the_page_shows_the_whole_table_as_it_was_played() -> None:
    rows = transformers_table.shown()

    assert [row[0] for row in rows] == [row.name for row in transformers_table.ROWS]
    for row in rows:
        assert row[-1] == f"{transformers_table.TIMES} of {transformers_table.TIMES}; exit 75"


@pytest.mark.soak
@pytest.mark.timeout(2 * PATIENCE)
@pytest.mark.parametrize("row", transformers_table.ROWS, ids=lambda row: str(row.name))
def test_the_table_of_the_page_holds(torch_python: str, row: transformers_table.Row) -> None:
    assert torch_python == transformers_table.PYTHON
    outcomes = {way: transformers_table.played(row, way) for way in transformers_table.WAYS}

    assert not outcomes[transformers_table.ALONE][0]
    assert not (row.arguments and outcomes[transformers_table.JIT][0])
    assert outcomes[transformers_table.CALLBACK][0]
    assert outcomes[transformers_table.WATCHED] == (True, "exit 75")
