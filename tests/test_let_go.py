"""What may end the machine comes when all is saved and nothing is under way: `--azure-approve` on the real CLI."""

import shlex
import signal
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path

import pytest

from preemptd.model import Outcome
from preemptd.notices import Meaning
from preemptd.rehearsal.serving import Reply, Request
from preemptd.settling import Ending, why_unsaved
from tests.metadata_server import FaultyAzure, FaultyTencent
from tests.test_azure import later, planned
from tests.waiting import wait_until
from tests.watching import Watch, trainer

APPROVING = ("--provider", "azure", "--azure-approve")


class Azure(FaultyAzure):
    """Looks, when an event is let begin, whether what was saved is away."""

    away = Path("/nowhere")
    was_away = False

    def _approve(self, request: Request) -> Reply:
        self.was_away = self.away.exists()
        return super()._approve(request)


@pytest.fixture
def azure() -> Iterator[Azure]:
    with Azure(grace=60.0) as server:
        yield server


def at(azure: Azure) -> dict[str, str]:
    return {"PREEMPTD_AZURE_ENDPOINT": azure.url}


def together(*commands: list[str]) -> list[str]:
    return ["sh", "-c", " & ".join(map(shlex.join, commands)) + " & wait"]


def let_go(watch: Watch) -> list[object]:
    return [line["why"] for line in watch.lines("let-go")]


@pytest.mark.slow
def test_what_runs_to_bring_away_what_was_saved_is_waited_for(tmp_path: Path, azure: Azure) -> None:
    azure.away = tmp_path / "away"
    options = (
        "--on-saved",
        "sleep 1; touch saved",
        "--on-exit",
        "while ! test -e saved; do sleep 0.1; done; touch away",
    )
    with Watch(tmp_path, trainer("link"), *APPROVING, *options, env=at(azure)) as watch:
        watch.await_said("ready")
        azure.announcement.announce()
        ended = watch.wait()
        events = [line["event"] for line in watch.lines()]

    assert (ended, azure.approved, azure.was_away) == (75, ["A1"], True)
    assert let_go(watch) == ["Preempt approved"]
    assert events.index("settled") < events.index("let-go")


LEFT = trainer("USR1", 0.0)
"""Saves when it is signalled, and says nothing."""
BOTH = together(trainer("link"), LEFT)
UNSAVED: Mapping[str, tuple[tuple[str, ...], list[str], str]] = {
    "the upload fails": (("--on-saved", "exit 3"), trainer("link"), "--on-saved ended with status 3"),
    "the last word fails": (("--on-exit", "exit 3"), trainer("link"), "--on-exit ended with status 3"),
    "another rank is silent": ((), BOTH, "did not say that it has saved"),
    "nobody speaks": ((), LEFT, "did not say that it has saved"),
    "the URL is away": (
        ("--sync", "ck=file://{}/there/ck"),
        ["sh", "-c", f"mkdir -p ck; echo 1 > ck/1; rm -rf there; exec {shlex.join(trainer('link'))}"],
        "the last state is not there",
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize(("options", "command", "why"), UNSAVED.values(), ids=UNSAVED)
def test_what_is_not_saved_or_not_away_keeps_the_machine(
    tmp_path: Path, azure: Azure, options: tuple[str, ...], command: list[str], why: str
) -> None:
    (tmp_path / "there").mkdir()
    options = tuple(option.format(tmp_path) for option in options)
    with Watch(tmp_path, command, *APPROVING, *options, env=at(azure)) as watch:
        watch.await_said("ready", 2 if command is BOTH else 1)
        azure.announcement.announce()
        watch.wait(60)
    (said,) = let_go(watch)

    assert azure.approved == []
    assert str(said).startswith("Preempt not approved: ")
    assert why in str(said)


@pytest.mark.slow
def test_an_upload_that_takes_too_long_keeps_the_machine_and_us_no_longer_than_it_would_without(
    tmp_path: Path, azure: Azure
) -> None:
    azure.announcement.deadline = None
    with Watch(tmp_path, trainer("link"), *APPROVING, "--on-saved", "sleep 600", env=at(azure)) as watch:
        watch.await_said("ready")
        azure.fields["NotBefore"] = later(6.0)
        azure.announcement.announce()
        ended = watch.wait()
    (exited,), (hook,) = watch.lines("exited"), watch.lines("hook")

    assert (ended, azure.approved, hook["status"]) == (75, [], None)
    assert let_go(watch)[0] in {
        "Preempt not approved: the command of --on-saved still runs",
        f"Preempt not approved: the command of --on-saved {hook['why']}",
    }
    assert float(str(hook["mono"])) - float(str(exited["mono"])) < 15


def test_ctrl_c_ends_the_wait_and_keeps_the_machine(tmp_path: Path, azure: Azure) -> None:
    with Watch(tmp_path, trainer("link"), *APPROVING, "--on-saved", "touch runs; sleep 600", env=at(azure)) as watch:
        watch.await_said("ready")
        azure.announcement.announce()
        watch.await_line("settled")
        wait_until((tmp_path / "runs").exists)
        watch.signal(signal.SIGINT)
        watch.wait()

    (let_go_line,), (hook,) = watch.lines("let-go"), watch.lines("hook")
    assert azure.approved == []
    assert let_go_line["why"] == "Preempt not approved: the command of --on-saved still runs"
    assert float(str(hook["mono"])) - float(str(let_go_line["mono"])) < 10  # of the 25 s that it would have had


class Page(FaultyTencent):
    signal_path = "/leaving"
    identity_path = "/machine"


def test_what_azure_only_advises_does_not_begin_when_another_provider_ends_the_command(
    tmp_path: Path, azure: Azure
) -> None:
    azure.events = [planned("Reboot", later(90_000)), planned("Freeze", later(900))]
    with Page() as page:
        (tmp_path / "page.toml").write_text(
            f'[providers.http]\nurl = "{page.url}/leaving"\nnotice = "^20"\nclear_status = 404\n'
            f'identity_url = "{page.url}/machine"\ninterval = 1\n'
        )
        options = (*APPROVING, "--provider", "http", "--config", "page.toml")
        with Watch(tmp_path, trainer("link"), *options, env=at(azure)) as watch:
            watch.await_said("ready")
            watch.await_line("advice")
            page.announcement.announce()
            ended = watch.wait()

    assert (ended, azure.approved, let_go(watch)) == (75, [], [])
    assert [line["event_id"] for line in watch.lines("notice")] == ["http:preempt"]


ENDED = Ending(Outcome(0), True, True, Meaning.PREEMPTED, False, frozenset(), 1.0, True, 3.0, 20.0)


@pytest.mark.parametrize(
    ("ending", "elsewhere", "why"),
    [
        (ENDED, False, ""),
        (replace(ENDED, saved=False, done=True), False, ""),
        (replace(ENDED, saved=False), False, "no process said that it has saved"),
        (replace(ENDED, silent=frozenset({7})), False, "pid 7 was told, and did not say that it has saved"),
        (replace(ENDED, silent=frozenset({9, 7, 8})), False, "pid 7 and 2 more"),
        (replace(ENDED, running=True), False, "the command still runs"),
        (ENDED, True, "whether the tasks of srun have saved is not known"),
    ],
)
def test_all_is_saved_when_everybody_says_so(ending: Ending, elsewhere: bool, why: str) -> None:
    said = why_unsaved(ending, elsewhere=elsewhere)

    assert bool(said) == bool(why)
    assert why in said
