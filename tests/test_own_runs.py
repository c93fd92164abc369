"""What the daemon asks of a trainer about its own W&B runs, and what that costs one that has none."""

import json
import sys
from pathlib import Path

import pytest

from preemptd.events import LinkJoined, LinkSaid
from preemptd.link.own_runs import Wish, wish_of
from tests.linking import line_of, notice, script, serving, tell_to_go_on
from tests.watching import Watch

# Announces its own preemption, and prints what it is asked to do about W&B; of two the first says that it is done.
ASKS = """
import json, os, socket, sys
def join():
    link = socket.socket(socket.AF_UNIX); link.connect(os.environ["PREEMPTD_LINK"])
    return link.makefile("rw")
def say(lines, **fields):
    print(json.dumps({"v": 1, **fields}), file=lines, flush=True)
def hear(lines):
    for message in map(json.loads, lines):
        if message["type"] == "notice":
            say(lines, verb="seen", event_id=message["event_id"])
            return message["wandb"]
read, write = os.pipe()
two = "two" in sys.argv
child = os.fork() if two else 1
lines = join()
say(lines, verb="register", pid=os.getpid()); lines.readline()
if not child:
    os.write(write, b".")
    hear(lines); say(lines, verb="done"); lines.readline(); os._exit(0)
if two:
    os.read(read, 1)
say(lines, verb="notify", deadline_s=30)
heard = [hear(lines) for _ in range(1 + two)]
open("heard", "w").write(json.dumps(heard))
"""


def asked(directory: Path, *options: str, argument: str = "one") -> list[object]:
    with Watch(directory, [sys.executable, "-c", ASKS, argument], *options) as watch:
        watch.wait()
    heard = json.loads((directory / "heard").read_text())
    assert isinstance(heard, list)
    return heard


@pytest.mark.parametrize(
    ("options", "wish"),
    [
        ((), {"code": 75}),
        (("--preempted-exit-code", "143"), {"code": 143}),
        (("--preempted-exit-code", "0"), {"code": 75}),
        (("--exit-zero", "done"), {"code": None}),
        (("--no-wandb",), None),
    ],
)
def test_a_notice_says_what_to_do_about_wandb(tmp_path: Path, options: tuple[str, ...], wish: object) -> None:
    assert asked(tmp_path, *options) == [wish]


def test_when_one_says_that_the_job_is_done_the_others_may_report_0(tmp_path: Path) -> None:
    assert asked(tmp_path, argument="two") == [{"code": 75}, {"code": None}]


@pytest.mark.parametrize(
    ("field", "wish"),
    [
        ({"code": 75}, Wish(75)),
        ({"code": None}, Wish(None)),
        ({}, Wish(None)),
        ({"code": 0}, Wish(None)),
        ({"code": 256}, Wish(None)),
        ({"code": "75"}, Wish(None)),
        (None, None),
        ("75", None),
        ([75], None),
    ],
)
def test_only_an_exit_code_that_means_failure_is_taken_over(field: object, wish: Wish | None) -> None:
    assert wish_of({"type": "notice", "wandb": field}) == wish


def test_a_script_without_wandb_does_not_load_it_and_is_told_at_once() -> None:
    code = """
import sys, threading, time, preemptd
preemptd.should_preempt(); print("ready", flush=True); sys.stdin.readline()
while not preemptd.should_preempt(): time.sleep(0.001)
time.sleep(0.5); print("wandb" in sys.modules, *sorted(t.name for t in threading.enumerate()), flush=True)"""
    with serving() as (server, events), script(code, server.path) as process:
        line_of(process)
        events.wait_for(LinkJoined)
        server.announce({**notice(), "wandb": {"code": 75}})
        events.wait_for(LinkSaid)
        tell_to_go_on(process)

        assert line_of(process) == "False MainThread preemptd-link preemptd-wandb"
        assert process.wait(30) == 0


def test_without_a_wish_there_is_no_thread_for_it() -> None:
    code = """
import sys, threading, preemptd
preemptd.should_preempt(); print("ready", flush=True); sys.stdin.readline()
print(preemptd.should_preempt(), *sorted(t.name for t in threading.enumerate()), flush=True)"""
    with serving() as (server, events), script(code, server.path) as process:
        line_of(process)
        events.wait_for(LinkJoined)
        server.announce({**notice(), "wandb": None})
        events.wait_for(LinkSaid)
        tell_to_go_on(process)

        assert line_of(process) == "True MainThread preemptd-link"


def test_a_look_for_runs_costs_microseconds() -> None:
    code = """
import timeit
from preemptd.link import own_runs
runs = own_runs.OwnRuns()
print(min(timeit.repeat(runs._look, number=1000, repeat=5)) / 1000)"""
    with script(code, None) as process:
        assert float(line_of(process)) < 50e-6  # 2 on a quiet machine, five times a second while a notice is open


@pytest.mark.parametrize("module", ["raises", "half"])
def test_what_is_called_wandb_and_is_not_does_no_harm(module: str) -> None:
    code = """
import sys, types, time, preemptd
class Raises:
    def __getattr__(self, name): raise RuntimeError(name)
wandb = types.ModuleType("wandb")
if sys.argv[1] == "raises": wandb.run = Raises()
sys.modules["wandb"] = wandb; sys.modules["wandb.sdk.wandb_setup"] = types.ModuleType("wandb_setup")
preemptd.should_preempt(); print("ready", flush=True)
while not preemptd.should_preempt(): time.sleep(0.001)
print("told", flush=True)"""
    with serving() as (server, events), script(code, server.path, module) as process:
        line_of(process)
        events.wait_for(LinkJoined)
        server.announce({**notice(), "wandb": {"code": 75}})

        assert line_of(process) == "told"
        assert process.wait(30) == 0
        assert process.stderr is not None
        assert process.stderr.read() == ""
