"""What a training script sees of preemptd: each test runs a real script against a real link, or against none."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import time
from typing import Any

import pytest

from preemptd.events import LinkJoined, LinkLeft, LinkSaid
from tests.linking import line_of, notice, script, serving, short_directory, tell_to_go_on
from tests.waiting import wait_until

ANSWERS = """
import sys, preemptd
print(preemptd.should_preempt(), flush=True)
for line in sys.stdin:
    n = preemptd.notice()
    print(preemptd.should_preempt(), n and n.event_id, preemptd.time_left(), flush=True)
"""


def ask(process: "subprocess.Popen[str]") -> list[str]:
    tell_to_go_on(process)
    return line_of(process).split()


def run(code: str, link: str | None = None, **options: Any) -> "subprocess.CompletedProcess[str]":
    with script(code, link, **options) as process:
        out, err = process.communicate(timeout=30)
        return subprocess.CompletedProcess(process.args, process.returncode, out, err)


def test_importing_loads_nothing_heavy() -> None:
    done = run("""
import sys; before = set(sys.modules)
import preemptd; print(sorted(set(sys.modules) - before))""")

    assert done.stdout.strip() == "['preemptd']"


def test_importing_takes_no_time_to_speak_of() -> None:
    """0.2 ms on an idle machine; the promise is 5, and the bound ten times as loose, for machines are shared."""
    code = "import time; t = time.perf_counter(); import preemptd; print(time.perf_counter() - t)"

    assert min(float(run(code).stdout) for _ in range(5)) < 0.05


def test_the_client_needs_the_standard_library_only() -> None:
    code = """
import sys, preemptd; preemptd.saved(1)
print([name for name in ("pydantic", "requests", "psutil", "typer") if name in sys.modules])"""
    with serving() as (server, _):
        done = run(code, server.path)

    assert done.stdout.strip() == "[]"


def test_without_a_daemon_and_a_signal_every_call_answers_that_nothing_is_announced() -> None:
    done = run("""
import sys, threading, preemptd as p
print(p.should_preempt(), p.notice(), p.time_left(), p.advice(), p.saving(), p.saved(1, "x"), p.saved(), p.done())
p.undone()
with p.defer(): p.on_notice(print)()
print(threading.active_count(), "socket" in sys.modules, "json" in sys.modules)""")

    assert done.stdout.splitlines() == ["False None None None None None None None", "1 False False"]
    assert done.stderr == ""


def test_asking_costs_less_than_2_microseconds() -> None:
    code = """
import timeit, preemptd
preemptd.should_preempt()
print(min(timeit.repeat(preemptd.should_preempt, number=10_000, repeat=5)) / 10_000)"""
    with serving() as (server, _):
        with_daemon = float(run(code, server.path).stdout)
    without = float(run(code).stdout)

    assert with_daemon < 2e-6  # the target is 200 ns; make bench has the figure
    assert without < 2e-6


def test_a_notice_is_seen_and_answered_and_a_revoked_one_is_forgotten() -> None:
    with serving() as (server, events), script(ANSWERS, server.path) as process:
        first = line_of(process)
        joined = events.wait_for(LinkJoined)[0]
        server.tell(joined.process, notice("e1", remaining=100.0))
        seen = events.wait_for(LinkSaid)[0]
        told, event_id, left = ask(process)
        server.announce({"type": "revoked", "event_id": "e1"})

        assert first == "False"
        assert (joined.process.pid, joined.role) == (process.pid, "trainer")
        assert (seen.verb, dict(seen.fields)) == ("seen", {"event_id": "e1"})
        assert (told, event_id) == ("True", "e1")
        assert 60 < float(left) < 100
        assert wait_until(lambda: ask(process) == ["False", "None", "None"])


def test_a_notice_that_is_open_already_is_known_after_the_first_call() -> None:
    with serving() as (server, events):
        server.announce(notice("e1"))
        with script(ANSWERS, server.path) as process:
            assert line_of(process) == "True"
            assert events.wait_for(LinkSaid)[0].verb == "seen"


def test_advice_never_stops_training() -> None:
    with serving() as (server, events):
        server.announce(notice("a1", level="advise"))
        with script(ANSWERS, server.path) as process:
            assert line_of(process) == "False"
            assert ask(process) == ["False", "None", "None"]
            server.announce(notice("a1", level="act"))
            events.wait_for(LinkSaid)
            assert ask(process)[:2] == ["True", "a1"]


def test_of_two_notices_the_earlier_deadline_counts_and_a_tighter_one_is_taken_over() -> None:
    with serving() as (server, events), script(ANSWERS, server.path) as process:
        line_of(process)
        events.wait_for(LinkJoined)
        server.announce(notice("late", remaining=5000.0))
        server.announce(notice("unknown", remaining=None))
        server.announce(notice("early", remaining=3000.0))
        events.wait_for(LinkSaid, 3)
        first = ask(process)
        server.announce(notice("late", remaining=1000.0))
        events.wait_for(LinkSaid, 4)
        second = ask(process)

        assert first[1] == "early"
        assert second[1] == "late"
        assert 900 < float(second[2]) <= 1000


def test_what_training_says_is_heard_just_before_it_ends() -> None:
    code = """
import os, pathlib, preemptd
class Tensor:
    def __int__(self): return 7
class Broken:
    def __int__(self): raise RuntimeError("CUDA error")
    __fspath__ = __int__
preemptd.saving()
preemptd.saved(5, "a.pt"); preemptd.saved("6", pathlib.Path("/b.pt")); preemptd.saved(Tensor(), b"/c.pt")
preemptd.saved(Broken(), Broken()); preemptd.saved(10**30, 3.5); preemptd.saved(float("nan"), "/" + "x" * 9000)
preemptd.saved(path="/caf\\u00e9\\udcff")
preemptd.done()
os._exit(0)"""
    with serving() as (server, events), short_directory() as directory:
        done = run(code, server.path, cwd=directory)
        events.wait_for(LinkLeft)

        assert (done.returncode, done.stderr) == (0, "")
        assert [(event.verb, dict(event.fields)) for event in events.of(LinkSaid)] == [
            ("saving", {}),
            ("saved", {"step": 5, "path": f"{directory}/a.pt"}),
            ("saved", {"step": 6, "path": "/b.pt"}),
            ("saved", {"step": 7, "path": "/c.pt"}),
            ("saved", {}),
            ("saved", {}),
            ("saved", {}),
            ("saved", {"path": "/caf\u00e9\\udcff"}),
            ("done", {}),
        ]


def test_done_is_taken_back_once_and_only_if_it_was_said() -> None:
    code = "import preemptd as p, os; p.undone(); p.done(); p.undone(); p.undone(); p.saved(1); os._exit(0)"
    with serving() as (server, events):
        run(code, server.path)
        events.wait_for(LinkLeft)

        assert [event.verb for event in events.of(LinkSaid)] == ["done", "undone", "saved"]


def test_a_path_as_long_as_linux_allows_does_not_cost_the_message() -> None:
    with serving() as (server, events):
        run('import preemptd; preemptd.saved(5, "/" + "\\u20ac" * 4000)', server.path)

        assert events.wait_for(LinkSaid)[0].verb == "saved"


def test_the_notice_is_answered_while_training_holds_a_lock_or_sleeps_and_right_after_it_held_the_gil() -> None:
    code = """
import preemptd, sys, time
preemptd.should_preempt(); sys.set_int_max_str_digits(0) if hasattr(sys, "set_int_max_str_digits") else None
big = 10 ** 60_000
print("ready", flush=True); sys.stdin.readline()
began = time.monotonic()
text = str(big)                       # one call in C that keeps the GIL
ended = time.monotonic()
while not preemptd.should_preempt() and time.monotonic() < ended + 20: pass
print(ended - began, time.monotonic() - ended, preemptd.should_preempt(), flush=True)"""
    with serving() as (server, events), script(code, server.path) as process:
        line_of(process)
        joined = events.wait_for(LinkJoined)[0]
        tell_to_go_on(process)
        server.tell(joined.process, notice())
        _held, after, told = line_of(process).split()

        assert told == "True"
        assert float(after) < 2.0  # milliseconds on a quiet machine
        assert events.wait_for(LinkSaid)[0].verb == "seen"


@pytest.mark.parametrize("what", ["missing", "refused", "regular file", "rubbish", "hangs up", "endless line"])
def test_a_link_that_is_no_link_costs_one_warning_and_nothing_else(what: str) -> None:
    code = """
import preemptd, time
began = time.monotonic()
for n in range(1000):
    preemptd.saved(n, "x"); assert preemptd.should_preempt() is False and preemptd.time_left() is None
preemptd.done(); print(time.monotonic() - began)"""
    says = {"rubbish": b"HTTP/1.1 400 Bad Request\r\n\r\n", "hangs up": b"", "endless line": b"x" * 200_000}
    with short_directory() as directory, socket.socket(socket.AF_UNIX) as listener:
        path = directory / "link"
        if what == "regular file":
            path.write_text("")
        elif what != "missing":
            listener.bind(str(path))
        if what in says:
            listener.listen()
        with script(code, str(path)) as process:
            if what in says:
                peer, _ = listener.accept()
                with peer, contextlib.suppress(OSError):
                    peer.sendall(says[what])
            out, err = process.communicate(timeout=30)

        assert process.returncode == 0, err
        assert float(out) < 10
        assert len(err.splitlines()) == 1
        assert "training goes on without it" in err


def test_a_process_without_a_free_descriptor_trains_on() -> None:
    code = """
import os, resource, preemptd, preemptd.link.client
resource.setrlimit(resource.RLIMIT_NOFILE, (32, 32))
try:
    while True: os.dup(0)
except OSError: pass
preemptd.saved(1); print(preemptd.should_preempt())"""
    with serving() as (server, _):
        done = run(code, server.path)

        assert (done.returncode, done.stdout.strip()) == (0, "False")
        assert len(done.stderr.splitlines()) == 1


def test_a_stopped_daemon_costs_a_second_at_first_and_milliseconds_later() -> None:
    code = """
import preemptd, time
t = time.monotonic(); preemptd.should_preempt(); first = time.monotonic() - t
worst = 0.0
for n in range(6000):
    t = time.monotonic(); preemptd.saved(n, "x" * 100); worst = max(worst, time.monotonic() - t)
    if worst > 0.004: break
print(first, worst)"""
    with short_directory() as directory, socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(directory / "link"))
        listener.listen()
        done = run(code, str(directory / "link"))
        first, worst = map(float, done.stdout.split())

        assert 0.9 < first < 5
        assert worst < 1
        assert len(done.stderr.splitlines()) == 1


def test_a_restarted_daemon_finds_its_processes_again_and_gets_what_was_said_meanwhile() -> None:
    code = """
import sys, preemptd
sys.stdin.readline(); print(preemptd.should_preempt(), flush=True)
sys.stdin.readline(); preemptd.saved(9); print("said", flush=True)
for line in sys.stdin: print(preemptd.should_preempt(), flush=True)"""
    with short_directory() as directory, script(code, str(directory / "link")) as process:
        with serving(str(directory / "link")) as (server, events):
            tell_to_go_on(process)
            line_of(process)
            server.tell(events.wait_for(LinkJoined)[0].process, notice("e1"))
            events.wait_for(LinkSaid)
        tell_to_go_on(process)
        line_of(process)
        with serving(str(directory / "link")) as (second, later):
            second.announce(notice("e1"))
            later.wait_for(LinkSaid, 2)

            assert [event.process.pid for event in later.of(LinkJoined)] == [process.pid]
            assert sorted(event.verb for event in later.of(LinkSaid)) == ["saved", "seen"]
            assert ask(process) == ["True"]


def test_a_forked_child_is_nobody_until_it_makes_a_call_of_its_own() -> None:
    code = """
import os, sys, preemptd
preemptd.should_preempt()
def forked(act):
    pid = os.fork()
    if not pid:
        try: act()
        finally: os._exit(0)
    os.waitpid(pid, 0)
forked(lambda: None)
forked(lambda: preemptd.saved(1))
preemptd.saved(2); print("done", flush=True); sys.stdin.readline()"""
    with serving() as (server, events), script(code, server.path) as process:
        line_of(process)
        events.wait_for(LinkSaid, 2)
        joined = [event.process.pid for event in events.wait_for(LinkJoined, 2)]
        said = {event.process.pid: event.fields["step"] for event in events.of(LinkSaid)}

        assert joined[0] == process.pid
        assert joined[1] != process.pid
        assert said == {joined[0]: 2, joined[1]: 1}
        assert [event.process.pid for event in events.wait_for(LinkLeft)] == [joined[1]]


def test_a_forked_child_that_lives_on_does_not_keep_its_dead_parent_on_the_link() -> None:
    code = """
import os, sys, time, preemptd
preemptd.should_preempt()
if not os.fork(): time.sleep(60)
print("forked", flush=True); sys.stdin.readline()"""
    with serving() as (server, events), script(code, server.path, start_new_session=True) as process:
        line_of(process)
        process.kill()
        try:
            assert events.wait_for(LinkLeft)[0].process.pid == process.pid
        finally:
            os.killpg(process.pid, signal.SIGKILL)


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_worker_processes_register_when_they_call(method: str) -> None:
    with serving() as (server, events), short_directory() as directory:
        (directory / "work.py").write_text("""
import multiprocessing, sys, preemptd
def work(n): preemptd.saved(n)
if __name__ == "__main__":
    preemptd.should_preempt()
    context = multiprocessing.get_context(sys.argv[1])
    workers = [context.Process(target=work, args=(n,)) for n in (1, 2)]
    [w.start() for w in workers]; [w.join() for w in workers]
    print([w.exitcode for w in workers])
""")
        code = (
            "import runpy, sys; sys.argv = ['work.py', *sys.argv[2:]]; runpy.run_path('work.py', run_name='__main__')"
        )
        with script(code, server.path, "work.py", method, cwd=directory) as process:
            out, err = process.communicate(timeout=30)

        assert (out.strip(), err) == ("[0, 0]", "")
        assert sorted(str(event.fields["step"]) for event in events.wait_for(LinkSaid, 2)) == ["1", "2"]
        assert len({event.process for event in events.wait_for(LinkJoined, 3)}) == 3


def test_the_first_call_may_come_from_any_thread_and_from_many_at_once() -> None:
    code = """
import threading, preemptd
threads = [threading.Thread(target=preemptd.saved, args=(n,)) for n in range(50)]
[t.start() for t in threads]; [t.join() for t in threads]"""
    with serving() as (server, events):
        done = run(code, server.path)
        steps = {event.fields["step"] for event in events.wait_for(LinkSaid, 50)}

        assert (done.returncode, done.stderr) == (0, "")
        assert steps == set(range(50))
        assert len(events.of(LinkJoined)) == 1


def test_a_signal_handler_may_make_calls_whatever_it_interrupts() -> None:
    code = """
import os, signal, threading, time, preemptd
count = 0
def handler(*_):
    global count
    count += 1; preemptd.saving()
signal.signal(signal.SIGUSR1, handler)
def pester():
    for _ in range(100):
        os.kill(os.getpid(), signal.SIGUSR1); time.sleep(0.001)
thread = threading.Thread(target=pester); thread.start()
preemptd.done()
while thread.is_alive(): preemptd.done(); time.sleep(0.0005)
print(count > 0)"""
    with serving() as (server, events):
        done = run(code, server.path)
        events.wait_for(LinkLeft)

        assert (done.stdout.strip(), done.stderr) == ("True", "")
        assert {event.verb for event in events.of(LinkSaid)} == {"saving", "done"}


@pytest.mark.parametrize("end", ["pass", "import sys; sys.exit(3)", "raise SystemExit", "1/0"])
def test_the_interpreter_ends_silently_and_at_once(end: str) -> None:
    code = "import warnings; warnings.simplefilter('error'); import preemptd; preemptd.saved(1)\n" + end
    with serving() as (server, events):
        began = time.monotonic()
        done = run(code, server.path)

        assert "preemptd" not in done.stderr.replace("import preemptd", "")
        assert "Warning" not in done.stderr
        assert len(events.wait_for(LinkSaid)) == 1
        assert events.wait_for(LinkLeft)
        assert time.monotonic() - began < 20


def test_a_daemon_in_another_time_namespace_is_believed_in_seconds_left() -> None:
    """What it calls CLOCK_MONOTONIC is not ours: its `registered` gives that away."""
    code = """
import sys, preemptd
preemptd.should_preempt(); print(preemptd.time_left(), flush=True)"""
    with short_directory() as directory, socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(directory / "link"))
        listener.listen()
        with script(code, str(directory / "link")) as process:
            peer, _ = listener.accept()
            with peer:
                theirs = time.monotonic() + 1e6
                open_notice = {**notice("e1", remaining=100.0), "mono": theirs + 100}
                peer.sendall(
                    json.dumps({"v": 1, "type": "registered", "mono": theirs, "notices": [open_notice]}).encode()
                    + b"\n"
                )
                assert 50 < float(line_of(process)) <= 100


def test_it_names_what_it_offers() -> None:
    done = run("import preemptd; print(preemptd.__version__, *preemptd.__all__)")

    assert done.stdout.split() == [
        *("0.1.0", "advice", "defer", "done", "notice", "notify", "on_notice", "saved", "saving"),
        *("should_preempt", "time_left", "undone"),
    ]
