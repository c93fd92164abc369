"""advice(), defer(), on_notice() and notify() with a daemon: real scripts on a real link."""

import signal
import subprocess
import time
from collections.abc import Mapping

import pytest

from preemptd.events import LinkAsked, LinkJoined, LinkSaid
from tests.linking import Events, line_of, notice, script, serving, short_directory, tell_to_go_on
from tests.waiting import wait_until

# Does what each line of its input says, and prints the result.
SHELL = """
import os, signal, sys, threading, time, preemptd as p
calls = []
def call(n): calls.append(n.event_id)
def poll(done):
    end = time.monotonic() + 20
    while not done() and time.monotonic() < end: time.sleep(0.005)
    return done()
p.should_preempt(); print("ready", flush=True)
for line in sys.stdin:
    try: print(eval(line), flush=True)
    except SyntaxError: exec(line.replace("; ", "\\n")); print("ok", flush=True)
"""


def do(process: "subprocess.Popen[str]", line: str) -> str:
    assert process.stdin is not None
    process.stdin.write(line + "\n")
    process.stdin.flush()
    return line_of(process)


def revoked(event_id: str) -> Mapping[str, object]:
    return {"type": "revoked", "event_id": event_id}


def ready(process: "subprocess.Popen[str]", events: Events) -> None:
    assert line_of(process) == "ready"
    events.wait_for(LinkJoined)


# -- advice ------------------------------------------------------------------------------------------------------


def test_advice_is_shown_until_it_is_taken_back_and_the_earliest_comes_first() -> None:
    with serving() as (server, events), script(SHELL, server.path) as process:
        ready(process, events)
        server.announce(notice("undated", "advise", remaining=None))
        server.announce(notice("late", "advise", remaining=7200.0))
        server.announce(notice("early", "advise", remaining=3600.0))
        first = do(process, "poll(lambda: p.advice() and p.advice().event_id == 'early')")
        left = float(do(process, "p.advice().time_left"))
        for event_id in ("early", "late"):
            server.announce(revoked(event_id))
        second = do(process, "poll(lambda: p.advice().event_id == 'undated')")
        server.announce(revoked("undated"))

        assert (first, second) == ("True", "True")
        assert 3000 < left < 3600
        assert do(process, "poll(lambda: p.advice() is None)") == "True"
        assert do(process, "p.should_preempt(), p.notice(), p.time_left()") == "(False, None, None)"
        assert events.of(LinkSaid) == []


def test_advice_that_becomes_a_notice_is_no_advice_any_more_and_stays_none_if_it_is_said_again() -> None:
    with serving() as (server, events):
        server.announce(notice("a1", "advise", remaining=100.0))
        with script(SHELL, server.path) as process:
            ready(process, events)
            before = do(process, "p.advice().event_id, p.should_preempt()")
            server.announce(notice("a1", "act", remaining=100.0))
            events.wait_for(LinkSaid)
            told = do(process, "poll(p.should_preempt), p.advice(), p.notice().event_id")
            server.announce(notice("a1", "advise", remaining=500.0))
            server.announce(notice("a2", "advise", remaining=900.0))
            last = do(process, "poll(lambda: p.advice() is not None), p.advice().event_id, p.notice().event_id")

        assert (before, told, last) == ("('a1', False)", "(True, None, 'a1')", "(True, 'a2', 'a1')")


def test_a_restarted_daemon_that_knows_of_no_advice_has_taken_it_back() -> None:
    with short_directory() as directory, serving(str(directory / "link")) as (server, _):
        server.announce(notice("a1", "advise"))
        process = script(SHELL, server.path)
        with process as running:
            assert line_of(running) == "ready"
            assert do(running, "p.advice().event_id") == "a1"
            server.close()
            with serving(str(directory / "link")) as (_, events):
                events.wait_for(LinkJoined)
                assert do(running, "poll(lambda: p.advice() is None)") == "True"


# -- defer -------------------------------------------------------------------------------------------------------


def test_inside_of_defer_the_answer_stands_still_the_rest_tells_the_truth_and_seen_is_said() -> None:
    with serving() as (server, events), script(SHELL, server.path) as process:
        ready(process, events)
        do(process, "p.on_notice(call); one, two = p.defer(), p.defer(); one.__enter__(); two.__enter__()")
        server.announce(notice("e1", remaining=100.0))
        seen = events.wait_for(LinkSaid)[0].verb
        inside = do(process, "p.should_preempt(), p.notice().event_id, p.time_left() > 50, calls")
        do(process, "two.__exit__(None, None, None)")
        still = do(process, "p.should_preempt(), calls")
        do(process, "one.__exit__(None, None, None)")

        assert seen == "seen"
        assert inside == "(False, 'e1', True, [])"
        assert still == "(False, [])"
        assert do(process, "p.should_preempt(), poll(lambda: calls)") == "(True, ['e1'])"


def test_a_notice_that_is_revoked_inside_of_defer_is_nothing_but_one_before_it_stays() -> None:
    with serving() as (server, events), script(SHELL, server.path) as process:
        ready(process, events)
        do(process, "p.on_notice(call); one = p.defer(); one.__enter__()")
        server.announce(notice("e1"))
        events.wait_for(LinkSaid)
        server.announce(revoked("e1"))
        gone = do(process, "poll(lambda: p.notice() is None)")
        do(process, "one.__exit__(None, None, None)")
        nothing = do(process, "p.should_preempt(), calls")
        server.announce(notice("e2"))
        do(process, "poll(lambda: calls); one = p.defer(); one.__enter__()")
        server.announce(revoked("e2"))
        inside = do(process, "poll(lambda: p.notice() is None), p.should_preempt()")
        do(process, "one.__exit__(None, None, None)")

        assert (gone, nothing, inside) == ("True", "(False, [])", "(True, True)")
        assert do(process, "p.should_preempt(), calls") == "(False, ['e2'])"


def test_defer_is_left_by_an_exception_and_holds_for_all_threads() -> None:
    code = """
import sys, threading, preemptd as p
p.should_preempt(); print("ready", flush=True)
entered, go = threading.Event(), threading.Event()
def section():
    try:
        with p.defer():
            entered.set(); go.wait(); raise OSError
    except OSError: pass
thread = threading.Thread(target=section); thread.start(); entered.wait()
print("entered", flush=True); sys.stdin.readline()
before = p.notice() is not None, p.should_preempt()
go.set(); thread.join(); print(before, p.should_preempt(), flush=True)"""
    with serving() as (server, events), script(code, server.path) as process:
        ready(process, events)
        line_of(process)
        server.announce(notice())
        events.wait_for(LinkSaid)
        tell_to_go_on(process)

        assert line_of(process) == "(True, False) True"


# -- on_notice ---------------------------------------------------------------------------------------------------


def test_a_callback_is_called_once_a_notice_at_once_for_an_open_one_and_again_for_the_next() -> None:
    with serving() as (server, events):
        server.announce(notice("e1", remaining=500.0))
        with script(SHELL, server.path) as process:
            ready(process, events)
            do(process, "p.on_notice(call)")
            first = do(process, "poll(lambda: calls)")
            server.announce(notice("e1", remaining=100.0))
            tighter = do(process, "poll(lambda: p.time_left() < 200), calls")
            server.announce(notice("e2"))
            second = do(process, "poll(lambda: len(calls) > 1), calls")
            server.announce(revoked("e1"))
            server.announce(revoked("e2"))
            do(process, "poll(lambda: not p.should_preempt())")
            server.announce(notice("e1"))

            assert (first, tighter) == ("['e1']", "(True, ['e1'])")
            assert second == "(True, ['e1', 'e2'])"
            assert do(process, "poll(lambda: len(calls) > 2), calls") == "(True, ['e1', 'e2', 'e1'])"


def test_a_callback_that_raises_is_a_warning_and_the_others_are_called() -> None:
    with serving() as (server, events), script(SHELL, server.path) as process:
        ready(process, events)
        do(process, "p.on_notice(lambda n: 1 / 0); p.on_notice(sys.exit); p.on_notice(call)")
        server.announce(notice("e1"))
        called = do(process, "poll(lambda: calls)")
        server.announce(notice("e2"))
        again = do(process, "poll(lambda: len(calls) > 1)")
        _, err = process.communicate(timeout=30)

        assert (called, again, process.returncode) == ("['e1']", "True", 0)
        assert err.count("what on_notice() was given failed at e1") == 2
        assert err.count("ZeroDivisionError") == 2


def test_a_callback_that_blocks_delays_neither_the_answer_nor_the_acknowledgement() -> None:
    with serving() as (server, events), script(SHELL, server.path) as process:
        ready(process, events)
        do(process, "p.on_notice(lambda n: (call(n), time.sleep(600)))")
        server.announce(notice("e1"))
        events.wait_for(LinkSaid)
        first = do(process, "poll(p.should_preempt), poll(lambda: calls)")
        server.announce(notice("e2", remaining=1.0))
        events.wait_for(LinkSaid, 2)
        server.announce(revoked("e1"))
        server.announce(revoked("e2"))

        assert first == "(True, ['e1'])"
        assert do(process, "poll(lambda: not p.should_preempt())") == "True"
        process.communicate(timeout=30)
        assert process.returncode == 0


def test_registered_twice_it_is_called_twice_and_each_is_taken_off_by_itself() -> None:
    with serving() as (server, events), script(SHELL, server.path) as process:
        ready(process, events)
        do(process, "one, two = p.on_notice(call), p.on_notice(call)")
        server.announce(notice("e1"))
        twice = do(process, "poll(lambda: len(calls) == 2), calls")
        do(process, "one(); one()")
        server.announce(notice("e2"))
        once = do(process, "poll(lambda: len(calls) == 3), calls")
        do(process, "two(); p.on_notice(lambda n: calls.append('last'))")

        assert twice == "(True, ['e1', 'e1'])"
        assert once == "(True, ['e1', 'e1', 'e2'])"
        assert do(process, "poll(lambda: len(calls) == 5), calls[3:]") == "(True, ['last', 'last'])"


def test_a_callback_may_take_itself_and_others_off_while_it_runs() -> None:
    with serving() as (server, events), script(SHELL, server.path) as process:
        ready(process, events)
        do(process, "offs = []; offs.append(p.on_notice(lambda n: (call(n), [off() for off in offs])))")
        do(process, "offs.append(p.on_notice(call)); p.on_notice(lambda n: calls.append('third'))")
        server.announce(notice("e1"))
        first = do(process, "poll(lambda: len(calls) == 2), calls")
        server.announce(notice("e2"))

        assert first == "(True, ['e1', 'third'])"
        assert do(process, "poll(lambda: len(calls) == 3), calls") == "(True, ['e1', 'third', 'third'])"


def test_on_notice_may_be_called_in_a_signal_handler_whatever_it_interrupts() -> None:
    code = """
import os, signal, sys, threading, time, preemptd as p
calls = set()
count = [0]
def handler(*_):
    count[0] += 1; n = count[0]
    p.on_notice(lambda _: calls.add(n))
signal.signal(signal.SIGUSR1, handler)
def pester():
    for _ in range(100): os.kill(os.getpid(), signal.SIGUSR1); time.sleep(0.001)
thread = threading.Thread(target=pester); thread.start()
while thread.is_alive():
    p.on_notice(lambda _: None)(); p.should_preempt()
    with p.defer(): pass
print("ready", flush=True); sys.stdin.readline()
end = time.monotonic() + 20
while len(calls) < count[0] and time.monotonic() < end: time.sleep(0.01)
print(count[0] > 0, len(calls) == count[0], flush=True)"""
    with serving() as (server, events), script(code, server.path) as process:
        ready(process, events)
        server.announce(notice())
        tell_to_go_on(process)

        assert line_of(process) == "True True"


def test_a_child_that_is_forked_while_a_callback_runs_calls_nobody_and_can_leave_the_parents_section() -> None:
    code = """
import os, sys, threading, time, preemptd as p
p.should_preempt(); inside, calls = threading.Event(), []
def callback(n):
    calls.append(os.getpid()); inside.set(); time.sleep(600)
p.on_notice(callback); p.on_notice(lambda n: calls.append("never"))
print("ready", flush=True); inside.wait()
read, write = os.pipe()
with p.defer():
    pid = os.fork()
if pid == 0:
    with p.defer(): told = p.should_preempt()
    os.write(write, repr((told, calls == [os.getppid()])).encode()); os._exit(0)
os.waitpid(pid, 0); print(os.read(read, 100).decode(), flush=True)"""
    with serving() as (server, events), script(code, server.path) as process:
        ready(process, events)
        server.announce(notice())

        assert line_of(process) == "(True, True)"


def test_a_callback_may_fork() -> None:
    code = """
import os, sys, threading, preemptd as p
p.should_preempt(); done = threading.Event()
def callback(n):
    pid = os.fork()
    if pid: print(os.waitpid(pid, 0)[1], flush=True); done.set()
p.on_notice(callback); p.on_notice(lambda n: print(os.getpid(), flush=True))
print("ready", os.getpid(), flush=True); done.wait(); sys.stdin.readline()"""
    with serving() as (server, events), script(code, server.path) as process:
        assert line_of(process) == f"ready {process.pid}"
        events.wait_for(LinkJoined)
        server.announce(notice())

        assert line_of(process) == "0"
        assert line_of(process) == str(process.pid)


def test_a_daemon_that_is_restarted_amid_a_notice_does_not_call_a_second_time() -> None:
    with short_directory() as directory, script(SHELL, str(directory / "link")) as process:
        with serving(str(directory / "link")) as (server, events):
            ready(process, events)
            do(process, "p.on_notice(call)")
            server.announce(notice("e1"))
            first = do(process, "poll(lambda: calls)")
        with serving(str(directory / "link")) as (second, later):
            second.announce(notice("e1", remaining=5.0))
            later.wait_for(LinkSaid)
            second.announce(notice("e2"))

            assert first == "['e1']"
            assert do(process, "poll(lambda: len(calls) > 1), calls") == "(True, ['e1', 'e2'])"


def test_without_a_thread_to_be_had_callbacks_wait_until_there_is_one() -> None:
    code = """
import _thread, sys, threading, time
def refuse(*_): raise RuntimeError("can't start new thread")
start = _thread.start_new_thread
import preemptd as p, preemptd.link.callbacks as callbacks
p.should_preempt(); calls = []
callbacks.start_new_thread = refuse
p.on_notice(lambda n: calls.append(n.event_id)); print("ready", flush=True)
while not p.should_preempt(): time.sleep(0.01)
callbacks.start_new_thread = start; print(calls, flush=True)
while len(calls) < 2: time.sleep(0.01)
print(calls, flush=True)"""
    with serving() as (server, events), script(code, server.path) as process:
        ready(process, events)
        server.announce(notice("e1"))
        none = line_of(process)
        server.announce(notice("e2"))

        assert (none, line_of(process)) == ("[]", "['e1', 'e2']")


# -- notify ------------------------------------------------------------------------------------------------------


def test_notify_says_it_to_the_daemon_and_waits_for_its_word() -> None:
    with serving() as (server, events), script(SHELL, server.path) as process:
        ready(process, events)
        assert process.stdin is not None
        process.stdin.write("p.notify(30, 'rank 3 has been told'), p.should_preempt()\n")
        process.stdin.flush()
        asked = events.wait_for(LinkAsked)[0]
        server.answer(asked.peer, {"type": "status"})

        assert (asked.verb, asked.fields["deadline_s"], asked.fields["reason"]) == (
            "notify",
            30.0,
            "rank 3 has been told",
        )
        assert line_of(process) == "(True, False)"  # who is told, and when, is the daemon's business


@pytest.mark.parametrize("what", ["refuses", "is silent", "is gone"])
def test_if_the_daemon_does_not_take_it_this_process_is_told_all_the_same(what: str) -> None:
    with serving() as (server, events), script(SHELL, server.path) as process:
        ready(process, events)
        if what == "is gone":
            server.close()
            assert wait_until(lambda: do(process, "p._client._subscription.registered") == "False")
        assert process.stdin is not None
        process.stdin.write("p.notify(30, 'rank 3'), p.should_preempt(), p.notice().source, p.time_left() > 5\n")
        process.stdin.flush()
        if what == "refuses":
            server.answer(events.wait_for(LinkAsked)[0].peer, {"type": "error", "text": "notify: only for root"})

        assert line_of(process) == "(False, True, 'rank 3', True)"
        assert do(process, "p.notify(10), p.notify(20), p.time_left() <= 10") == "(False, False, True)"


@pytest.mark.parametrize("deadline", ["float('nan')", "-5", "10**400", "'soon'", "float('inf')", "None", "1e9"])
def test_no_deadline_is_too_strange_for_notify(deadline: str) -> None:
    with serving() as (server, events), script(SHELL, server.path) as process:
        ready(process, events)
        assert process.stdin is not None
        process.stdin.write(f"p.notify({deadline}, 'x' * 100000)\n")
        process.stdin.flush()
        asked = events.wait_for(LinkAsked)[0]
        server.answer(asked.peer, {"type": "status"})

        assert asked.verb == "notify"
        assert line_of(process) == "True"


def test_what_is_registered_is_taken_off_at_the_end_of_the_interpreter_without_a_word() -> None:
    with serving() as (server, events), script(SHELL, server.path) as process:
        ready(process, events)
        do(process, "p.on_notice(lambda n: time.sleep(600)); p.on_notice(call)")
        server.announce(notice())
        do(process, "poll(p.should_preempt)")
        began = time.monotonic()
        process.send_signal(signal.SIGCONT)
        _, err = process.communicate(timeout=30)

        assert (process.returncode, err) == (0, "")
        assert time.monotonic() - began < 20
