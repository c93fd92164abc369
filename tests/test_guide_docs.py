"""docs/signal-files.md and docs/client.md are true: their examples run, their tables are those of the code."""

import inspect
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import preemptd
from preemptd.events import LinkLeft, LinkSaid
from preemptd.link.client import OpenNotice
from preemptd.provider import State
from preemptd_providers._signal_file import SIZE_LIMIT, SLACK
from preemptd_providers.file import MACHINE_DIRECTORY, VARIABLE, FileOptions
from tests.conftest import ROOT
from tests.linking import notice, script, serving
from tests.signal_files import notice_of, watch_of

FILES = (ROOT / "docs" / "signal-files.md").read_text()
CLIENT = (ROOT / "docs" / "client.md").read_text()


def examples(page: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", page, re.MULTILINE | re.DOTALL)


# The page's other examples are for administrators of real machines: they make directories and ask real servers.
HARMLESS = FILES.partition("\n## How to write one without preemptd\n")[2].partition("\n## ")[0]


@pytest.mark.parametrize("example", examples(HARMLESS, "sh"))
def test_each_way_to_write_a_signal_file_is_a_notice_and_removing_it_takes_it_back(
    tmp_path: Path, example: str
) -> None:
    subprocess.run(["sh", "-ec", example], env={**os.environ, VARIABLE: str(tmp_path)}, check=True)
    watch = watch_of(tmp_path, job_id="run42")
    heard = notice_of(watch)
    (written,) = tmp_path.iterdir()
    written.unlink()

    assert watch.observe().state is State.CLEAR
    assert heard.remaining == (pytest.approx(60, abs=10) if "deadline" in example else None)


def test_the_page_on_signal_files_names_the_places_limits_and_options_of_the_code() -> None:
    (table,) = examples(FILES, "toml")

    assert set(re.findall(r"^(\w+) =", table, re.MULTILINE)) == FileOptions.model_fields.keys()
    assert f"`{VARIABLE}`" in FILES
    assert f"`{MACHINE_DIRECTORY}`" in FILES
    assert f"{SIZE_LIMIT // 1024} KiB" in FILES
    assert f"by more than {SLACK:.0f} seconds" in FILES


def loop_of_the_page(steps: int) -> str:
    return "\n".join(
        [
            f"import time\nstart, steps, path = 0, {steps}, '/checkpoints/7.pt'",
            "def train(step): time.sleep(0.01)",
            "def save(step, path): pass",
            examples(CLIENT, "python")[0],
        ]
    )


@pytest.mark.parametrize(
    ("is_told", "steps", "said"), [(True, 10_000, {"step": 0, "path": "/checkpoints/7.pt"}), (False, 3, {})]
)
def test_the_loop_of_the_client_page_says_that_it_has_saved_or_is_done(
    is_told: bool, steps: int, said: dict[str, object]
) -> None:
    with serving() as (server, events):
        if is_told:
            server.announce(notice())
        with script(loop_of_the_page(steps), server.path) as process:
            _, err = process.communicate(timeout=30)
            events.wait_for(LinkLeft)

        assert (process.returncode, err) == (0, "")
        last = events.of(LinkSaid)[-1]
        assert (last.verb, dict(last.fields)) == ("saved" if is_told else "done", said)


def test_the_client_page_has_every_call_and_every_field() -> None:
    calls = set(re.findall(r"^\| `(\w+)\(", CLIENT, re.MULTILINE))
    fields = re.findall(r"^\| `(\w+)` \|", CLIENT, re.MULTILINE)

    assert calls == set(preemptd.__all__)
    assert fields == [*OpenNotice._fields, "time_left"]
    assert f"saved{inspect.signature(preemptd.saved)}".replace(": object", "").replace(" = ", "=") == (
        "saved(step=None, path=None) -> None"
    )


def test_the_client_needs_nothing_that_pip_would_bring_along() -> None:
    program = "import preemptd.link.client, sys; preemptd.should_preempt(); print(*sys.modules)"
    bare = [sys.executable, "-I", "-S", "-c", f"import sys; sys.path.insert(0, {json.dumps(str(ROOT))}); {program}"]
    done = subprocess.run(bare, check=True, capture_output=True, text=True)

    assert not {"pydantic", "requests", "typer", "urllib3"} & set(done.stdout.split())


def test_the_fallback_of_the_client_page_works_without_preemptd() -> None:
    program = f"import sys; sys.modules['preemptd'] = None\n{examples(CLIENT, 'python')[1]}\n"
    asked = f"{program}print(should_preempt(), saved(1, 'x'))"
    done = subprocess.run([sys.executable, "-c", asked], check=True, capture_output=True, text=True)

    assert done.stdout == "False None\n"
