"""W&B runs seen to by the client alone: a script that imports preemptd, a link, and nobody who reaches wandb-core."""

import os
import signal
import subprocess
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, suppress
from pathlib import Path

import pytest

from preemptd.events import LinkJoined, LinkSaid
from preemptd.link.server import Server
from preemptd.procfs import Tree
from preemptd.runs import discovery
from tests.lab.wandb_backend import WandbBackend
from tests.lab.wandb_watching import every_version, quickly, stopped
from tests.linking import ROOT, Events, RawPeer, line_of, notice, serving, short_directory, tell_to_go_on
from tests.waiting import wait_until
from tests.watching import PREEMPTD, Watch, environment, read_lines

SCRIPT = str(Path(__file__).parent.parent / "standins" / "wandb_inside.py")
CODE = 75


class Inside:
    """The script, the link's server, and what the backend heard."""

    def __init__(self, backend: WandbBackend, server: Server, events: Events, popen: "subprocess.Popen[str]") -> None:
        self.backend = backend
        self.server = server
        self.events = events
        self.popen = popen

    def ready(self) -> str:
        """Wait until it trains; return the id of its run."""
        return self.line("ready")[-1]

    def line(self, start: str) -> list[str]:
        words = line_of(self.popen).split()
        assert words[0] == start
        return words[1:]

    def tell(self, code: int | None = CODE, listeners: int = 1, **more: object) -> None:
        """Send the notice with what the daemon says of W&B."""
        self.events.wait_for(LinkJoined, listeners)
        self.server.announce({**notice(), "wandb": {"code": code}, **more})

    def end(self) -> int:
        out, err = self.popen.communicate(timeout=50)
        print(out, err)
        return self.popen.returncode

    def marks(self, run_id: str) -> int:
        return len(self.backend.preempting(run_id))


Start = Callable[..., Inside]


def end_group(pid: int) -> None:
    """End the script and its children; wandb-core ends with its parent."""
    with suppress(ProcessLookupError):
        os.killpg(pid, signal.SIGKILL)


@pytest.fixture
def backend() -> Iterator[WandbBackend]:
    with WandbBackend() as backend:
        yield backend


@pytest.fixture
def start(wandb_pythons: Mapping[str, str], backend: WandbBackend, tmp_path: Path) -> Iterator[Start]:
    with ExitStack() as stack:

        def start(version: str, work: str, end: str) -> Inside:
            server, events = stack.enter_context(serving())
            popen = subprocess.Popen(
                [wandb_pythons[version], SCRIPT, work, end],
                env={**os.environ, **backend.env(), "PREEMPTD_LINK": server.path, "PYTHONPATH": str(ROOT)},
                cwd=tmp_path,
                text=True,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                start_new_session=True,
            )
            stack.enter_context(popen)
            stack.callback(end_group, popen.pid)
            return Inside(backend, server, events, popen)

        yield start


# -- the mark ----------------------------------------------------------------------------------------------------


@every_version
@pytest.mark.parametrize("work", ["sleeps", "logs"])
def test_a_run_is_marked_while_the_script_sleeps_or_logs_at_full_speed(start: Start, version: str, work: str) -> None:
    inside = start(version, work, "waits")
    run_id = inside.ready()
    before = inside.marks(run_id)
    inside.tell()
    wait_until(lambda: inside.marks(run_id))

    assert (before, inside.popen.poll()) == (0, None)


@quickly("0.31.0")
def test_a_script_that_leaves_at_once_does_not_outrun_the_mark(start: Start, version: str) -> None:
    inside = start(version, "leaves_at_once", "finishes")
    run_id = inside.ready()
    inside.tell()

    assert inside.end() == 0
    assert (inside.marks(run_id), inside.backend.exit_codes(run_id)) == (1, [CODE])


@quickly("0.31.0")
def test_a_run_that_begins_while_a_notice_is_open_is_marked(start: Start, version: str) -> None:
    inside = start(version, "begins_late", "falls_off")
    inside.line("waiting")
    inside.tell()
    run_id = inside.ready()
    wait_until(lambda: inside.marks(run_id))
    tell_to_go_on(inside.popen)

    assert inside.end() == 0
    assert inside.backend.exit_codes(run_id) == [CODE]


@quickly("0.31.0")
def test_advice_and_a_notice_that_says_nothing_of_wandb_change_nothing(start: Start, version: str) -> None:
    inside = start(version, "polls", "falls_off")
    run_id = inside.ready()
    inside.tell(level="advise", event_id="a1")
    inside.tell(wandb=None)

    assert inside.end() == 0
    assert (inside.marks(run_id), inside.backend.exit_codes(run_id)) == (0, [0])


@quickly("0.31.0")
def test_a_later_word_on_the_notice_may_ask_for_the_mark(start: Start, version: str) -> None:
    inside = start(version, "polls", "waits")
    run_id = inside.ready()
    inside.tell(wandb=None)
    inside.line("told")
    before = inside.marks(run_id)
    inside.tell()
    wait_until(lambda: inside.marks(run_id))
    tell_to_go_on(inside.popen)

    assert inside.end() == 0
    assert (before, inside.backend.exit_codes(run_id)) == (0, [CODE])


@quickly("0.31.0")
def test_a_wandb_that_hangs_delays_neither_should_preempt_nor_the_answer(start: Start, version: str) -> None:
    inside = start(version, "floods", "falls_off")
    inside.ready()
    (core,) = discovery.cores(Tree(inside.popen.pid, include_root=True).snapshot())
    with stopped(core.pid):
        tell_to_go_on(inside.popen)
        inside.line("stuck")
        inside.tell()
        inside.line("told")

        assert inside.events.wait_for(LinkSaid)[0].verb == "seen"


# -- processes ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("work", ["forks", "fork", "spawn"])
@quickly("0.31.0")
def test_forked_and_spawned_children_see_to_their_own_runs_only(start: Start, version: str, work: str) -> None:
    inside = start(version, work, "falls_off")
    runs = [inside.ready(), inside.ready()]
    inside.tell(listeners=2)

    assert inside.end() == 0
    assert [inside.marks(run_id) for run_id in runs] == [1, 1]
    assert [inside.backend.exit_codes(run_id) for run_id in runs] == [[CODE], [CODE]]


@quickly("0.31.0")
def test_a_child_that_logs_to_the_run_of_its_parent_does_not_end_it(start: Start, version: str) -> None:
    inside = start(version, "attaches", "falls_off")
    run_id = inside.ready()
    inside.line("attached")
    inside.tell(listeners=2)

    assert inside.end() == 0
    assert inside.marks(run_id) >= 1
    assert inside.backend.exit_codes(run_id) == [CODE]
    assert any("after" in line for line in inside.backend.lines(run_id, "wandb-history.jsonl"))


# -- the end -----------------------------------------------------------------------------------------------------

ENDS = {
    # how the script ends: what it reports after a notice, and its own exit status
    "falls_off": (CODE, 0),
    "sys_exit_0": (CODE, 0),
    "early_sys_exit": (CODE, 143),
    "finishes": (CODE, 0),
    "with_block": (CODE, 0),
    "sys_exit_143": (143, 143),
    "finish_143": (143, 0),
    "exception": (1, 1),
    "done": (0, 0),
    "done_and_finish": (0, 0),
}


@pytest.mark.parametrize("end", ENDS)
@quickly("0.31.0")
def test_a_told_script_reports_a_code_that_is_not_0_unless_it_is_done(start: Start, version: str, end: str) -> None:
    inside = start(version, "polls", end)
    run_id = inside.ready()
    inside.tell()
    status = inside.end()

    assert (inside.backend.exit_codes(run_id), status) == ([ENDS[end][0]], ENDS[end][1])
    assert inside.marks(run_id) == 1


@pytest.mark.parametrize("end", ["falls_off", "finishes"])
@pytest.mark.parametrize("version", ["0.22.3", "0.19.11"])
def test_older_versions_report_a_code_that_is_not_0(start: Start, version: str, end: str) -> None:
    inside = start(version, "polls", end)
    run_id = inside.ready()
    inside.tell()
    inside.end()

    assert inside.backend.exit_codes(run_id) == [CODE]


@pytest.mark.parametrize("end", ["falls_off", "finishes"])
@quickly("0.31.0")
def test_where_0_means_done_a_run_is_marked_and_ends_as_it_ends(start: Start, version: str, end: str) -> None:
    inside = start(version, "polls", end)
    run_id = inside.ready()
    inside.tell(code=None)
    inside.end()

    assert (inside.marks(run_id), inside.backend.exit_codes(run_id)) == (1, [0])


@pytest.mark.parametrize("end", ["falls_off", "finishes"])
@quickly("0.31.0")
def test_after_a_revoked_notice_a_run_ends_as_it_ends(start: Start, version: str, end: str) -> None:
    inside = start(version, "begins_late", end)
    inside.line("waiting")
    inside.tell()
    run_id = inside.ready()
    wait_until(lambda: inside.marks(run_id))
    inside.server.announce({"type": "revoked", "event_id": "e1"})
    inside.server.announce({**notice("e2"), "wandb": None})  # the answer to this one says that the other was heard
    inside.events.wait_for(LinkSaid, 2)
    tell_to_go_on(inside.popen)
    inside.end()

    assert inside.backend.exit_codes(run_id) == [0]


# -- with the daemon ---------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("needs_root")
@quickly("0.31.0")
def test_a_daemon_in_another_pid_namespace_has_the_run_marked_and_ended_by_the_script(
    wandb_pythons: Mapping[str, str], backend: WandbBackend, tmp_path: Path, version: str
) -> None:
    with short_directory() as directory:
        link, journal = str(directory / "link"), tmp_path / "journal"
        alone = ["unshare", "--pid", "--fork", "--kill-child", "--mount-proc"]
        options = ["--link", link, "--journal", str(journal)]
        watch = subprocess.Popen([*alone, *PREEMPTD, "watch", *options, "--", "sleep", "60"], env=environment())
        try:
            wait_until(lambda: os.path.exists(link))
            env = {**os.environ, **backend.env(), "PREEMPTD_LINK": link, "PYTHONPATH": str(ROOT)}
            command = [wandb_pythons[version], SCRIPT, "polls", "finishes"]
            with subprocess.Popen(command, env=env, cwd=tmp_path, text=True, stdout=subprocess.PIPE) as script:
                run_id = line_of(script).split()[-1]
                with RawPeer(link) as peer:
                    peer.say("notify", deadline_s=30)
                status = script.wait(50)
        finally:
            watch.kill()
            watch.wait()

        assert status == 0
        assert [line["event"] for line in read_lines(journal) if line["event"] in {"marked", "told"}] == ["told"]
        assert (len(backend.preempting(run_id)), backend.exit_codes(run_id)) == (1, [CODE])


@pytest.mark.parametrize("work", ["polls", "fork"])
@quickly("0.31.0")
def test_what_daemon_and_script_both_do_is_one_end_that_needs_no_repair(
    wandb_pythons: Mapping[str, str], backend: WandbBackend, tmp_path: Path, version: str, work: str
) -> None:
    command = [wandb_pythons[version], SCRIPT, work, "finishes"]
    runs = 1 if work == "polls" else 2
    env = {**backend.env(), "PYTHONPATH": str(ROOT)}
    with short_directory() as directory, Watch(tmp_path, command, "--link", str(directory / "link"), env=env) as watch:
        assert watch.process.stdout is not None
        ids = [watch.process.stdout.readline().split()[-1].decode() for _ in range(runs)]
        with RawPeer(str(directory / "link")) as peer:
            peer.say("notify", deadline_s=60)
            told = watch.await_line("told", runs)
        status = watch.wait(50)

        assert status == 75
        assert [line["how"] for line in told] == ["link"] * runs
        assert [backend.exit_codes(run_id) for run_id in ids] == [[CODE]] * runs
        assert all(backend.preempting(run_id) for run_id in ids)
        assert {line["how"] for line in watch.lines("repaired")} == {"nothing"}
