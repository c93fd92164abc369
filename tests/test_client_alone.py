"""The client without a daemon: what it catches, what it leaves alone, and what reaches children; real processes."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from preemptd.link.signals_caught import ONE_WORD
from tests.linking import line_of, script, tell_to_go_on

USR1, TERM = signal.SIGUSR1, signal.SIGTERM
HOW = """
import os, signal, sys, threading, time, preemptd as p
def say(*words): os.write(1, (" ".join(map(str, words)) + chr(10)).encode())  # whole lines from any thread
"""
UNTIL_TOLD = "p.should_preempt(); say('ready')\nwhile not p.should_preempt(): time.sleep(0.005)\n"
SHOW = "n = p.notice(); say(n.event_id, n.kind, n.source, n.deadline, p.time_left())\n"
REST = "sys.stdin.readline()\n"


def caught(pid: int) -> set[int]:
    """List the signals that the kernel knows to be caught."""
    status = Path(f"/proc/{pid}/status").read_text()
    mask = int(next(line for line in status.splitlines() if line.startswith("SigCgt")).split()[1], 16)
    return {number for number in (USR1, TERM) if mask >> (number - 1) & 1}


def code_of(process: "subprocess.Popen[str]") -> int:
    process.communicate(timeout=30)
    return process.returncode


# -- what is caught ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("signum", "kind"), [(USR1, "preempt"), (TERM, "terminate")])
def test_each_of_the_two_signals_is_a_notice_without_a_deadline(signum: signal.Signals, kind: str) -> None:
    with script(HOW + UNTIL_TOLD + SHOW, None) as process:
        line_of(process)
        process.send_signal(signum)

        assert line_of(process) == f"signal:{signum.name} {kind} {signum.name} None None"
        assert code_of(process) == 0


def test_a_sigterm_after_a_sigusr1_says_nothing_new() -> None:
    code = HOW + "calls = []; p.on_notice(lambda n: calls.append(n.source))\n" + UNTIL_TOLD
    with script(code + "say('told')\n" + REST + "say(p.notice().source, calls)", None) as process:
        line_of(process)
        process.send_signal(USR1)
        line_of(process)
        process.send_signal(TERM)
        time.sleep(0.3)
        tell_to_go_on(process)

        assert line_of(process) == "SIGUSR1 ['SIGUSR1']"


def test_a_sigusr1_after_a_sigterm_is_a_notice_of_its_own() -> None:
    code = HOW + "calls = []; p.on_notice(lambda n: calls.append(n.source))\n" + UNTIL_TOLD
    code += "say('told')\nwhile len(calls) < 2: time.sleep(0.005)\nsay(calls)"
    with script(code, None) as process:
        line_of(process)
        process.send_signal(TERM)
        line_of(process)
        process.send_signal(USR1)

        assert line_of(process) == "['SIGTERM', 'SIGUSR1']"


@pytest.mark.parametrize("call", ["should_preempt()", "notice()", "time_left()", "on_notice(print)"])
def test_each_call_that_asks_catches_and_so_does_no_other(call: str) -> None:
    code = HOW + "p.saving(); p.saved(1, 'x'); p.advice(); p.done()\nwith p.defer(): pass\nsay('said')\n"
    code += f"{REST}p.{call}; say('asked')\n{REST}"
    with script(code, None) as process:
        line_of(process)
        before = caught(process.pid)
        tell_to_go_on(process)
        line_of(process)

        assert (before, caught(process.pid)) == (set(), {USR1, TERM})


def test_who_only_imports_and_reports_dies_of_a_signal_as_ever() -> None:
    for signum in (USR1, TERM):
        with script(HOW + "p.saved(1); say('ready')\n" + REST, None) as process:
            line_of(process)
            process.send_signal(signum)

            assert code_of(process) == -signum


def test_with_a_daemon_nothing_is_caught_not_even_if_it_is_not_there() -> None:
    with script(HOW + "p.should_preempt(); say('ready')\n" + REST, "/nonexistent/link") as process:
        line_of(process)

        assert caught(process.pid) == set()


def test_asking_again_and_again_costs_no_system_call_and_the_handlers_stay() -> None:
    code = HOW + "p.should_preempt(); one = signal.getsignal(15); [p.should_preempt() for _ in range(1000)]\n"
    code += "say(one is signal.getsignal(15), p._asked is p._client)"
    with script(code, None) as process:
        assert line_of(process) == "True True"


# -- what was there before, and what comes later -----------------------------------------------------------------


def test_a_handler_that_was_there_is_called_after_ours() -> None:
    code = HOW + "signal.signal(15, lambda *a: say('theirs', p.should_preempt(), a[0]))\n" + UNTIL_TOLD
    with script(code + "say('ours')\n" + REST, None) as process:
        line_of(process)
        process.send_signal(TERM)
        said = {line_of(process), line_of(process)}
        time.sleep(ONE_WORD + 0.1)
        process.send_signal(TERM)

        assert said == {"theirs True 15", "ours"}
        assert line_of(process) == "theirs True 15"  # a second one is theirs as well: it kills nobody
        assert process.poll() is None


def test_what_a_handler_that_was_there_raises_is_raised() -> None:
    code = HOW + "def leave(*_): raise SystemExit(7)\nsignal.signal(15, leave)\n" + UNTIL_TOLD + "time.sleep(60)"
    with script(code, None) as process:
        line_of(process)
        process.send_signal(TERM)

        assert code_of(process) == 7


@pytest.mark.parametrize("chains", [True, False])
def test_a_handler_that_comes_later_may_chain_to_ours_or_keep_the_signal_to_itself(chains: bool) -> None:
    code = HOW + "p.should_preempt(); heard = []\n"
    code += f"def theirs(*a):\n    if {chains}: old(*a)\n    heard.append(1)\n"
    code += "old = signal.signal(15, theirs); say('ready')\nwhile not heard: time.sleep(0.005)\ntime.sleep(0.2)\n"
    code += "say(p.should_preempt())\n" + REST
    with script(code, None) as process:
        line_of(process)
        process.send_signal(TERM)
        first = line_of(process)
        time.sleep(ONE_WORD + 0.1)
        process.send_signal(TERM)
        time.sleep(0.2)

        assert first == str(chains)
        assert process.poll() is None


def test_what_is_ignored_stays_ignored_and_what_c_code_catches_stays_its() -> None:
    code = HOW + "signal.signal(15, signal.SIG_IGN)\nimport faulthandler; faulthandler.register(10)\n"
    code += "p.should_preempt(); say('ready')\n" + REST + "say(p.should_preempt())"
    with script(code, None) as process:
        line_of(process)
        process.send_signal(TERM)
        process.send_signal(USR1)
        assert process.stderr is not None
        dumped = process.stderr.readline()
        tell_to_go_on(process)

        assert line_of(process) == "False"
        assert "Current thread" in dumped


# -- a second SIGTERM --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("inside", ["", "p.defer().__enter__()\n"])
def test_a_second_sigterm_ends_the_process_as_it_would_have_also_inside_of_defer(inside: str) -> None:
    code = HOW + f"p.should_preempt()\n{inside}say('ready')\nwhile p.notice() is None: time.sleep(0.005)\n"
    with script(code + "say('told')\ntime.sleep(60)", None) as process:
        line_of(process)
        process.send_signal(TERM)
        line_of(process)
        time.sleep(ONE_WORD + 0.1)
        still = process.poll()
        process.send_signal(TERM)

        assert (still, code_of(process)) == (None, -TERM)


def test_a_launcher_that_passes_on_what_has_reached_all_does_not_kill() -> None:
    code = HOW + "p.should_preempt()\nfor _ in range(3): os.kill(os.getpid(), signal.SIGTERM)\n"
    with script(code + "say(p.should_preempt())", None) as process:
        assert line_of(process) == "True"
        assert code_of(process) == 0


IN_C = HOW + "import ctypes\np.on_notice(lambda n: say('heard', n.source))\n"
# A main thread that never comes back from C: signals are blocked in it, so that not even EINTR gets it out.
IN_C += "say('ready'); signal.pthread_sigmask(signal.SIG_BLOCK, {10, 15})\n"
IN_C += "ctypes.CDLL(None).poll(None, 0, 600_000)\n"


def test_it_is_heard_while_the_main_thread_is_in_c_and_a_second_sigterm_ends_it_there() -> None:
    with script(IN_C, None) as process:
        line_of(process)
        process.send_signal(TERM)
        heard = line_of(process)
        time.sleep(ONE_WORD + 0.1)
        still = process.poll()
        process.send_signal(TERM)

        assert (heard, still, code_of(process)) == ("heard SIGTERM", None, -TERM)


def test_somebody_elses_wake_up_descriptor_is_left_to_him_and_the_handlers_do_without() -> None:
    code = HOW + "read, write = os.pipe(); os.set_blocking(write, False); signal.set_wakeup_fd(write)\n"
    code += "p.on_notice(lambda n: say('called', n.source))\n" + UNTIL_TOLD
    code += "say(signal.set_wakeup_fd(-1) == write, os.read(read, 9))\n" + REST
    with script(code, None) as process:
        line_of(process)
        process.send_signal(USR1)
        said = {line_of(process), line_of(process)}

        assert said == {"called SIGUSR1", f"True {bytes([USR1])!r}"}


def test_other_signals_that_wake_us_up_are_nothing_to_us() -> None:
    code = HOW + "signal.signal(signal.SIGUSR2, lambda *_: None); p.should_preempt(); say('ready')\n"
    code += REST + "say(p.should_preempt())\nwhile not p.should_preempt(): time.sleep(0.005)\nsay(True)"
    with script(code, None) as process:
        line_of(process)
        for _ in range(1000):
            process.send_signal(signal.SIGUSR2)
        tell_to_go_on(process)
        before = line_of(process)
        process.send_signal(USR1)

        assert (before, line_of(process)) == ("False", "True")


# -- threads, asyncio, children ----------------------------------------------------------------------------------


@pytest.mark.parametrize(("main_asks", "answer"), [(True, "told"), (False, "")])
def test_a_function_in_a_thread_is_told_if_the_main_thread_has_asked_once(main_asks: bool, answer: str) -> None:
    """So does wandb.agent(function=...) run it."""
    code = HOW + ("p.should_preempt()\n" if main_asks else "")
    code += "def train():\n    p.should_preempt(); say('ready')\n"
    code += "    while not p.should_preempt(): time.sleep(0.005)\n    say('told')\n"
    code += "thread = threading.Thread(target=train); thread.start(); thread.join()"
    with script(code, None) as process:
        line_of(process)
        process.send_signal(TERM)
        out, _ = process.communicate(timeout=30)

        assert out.strip() == answer
        assert process.returncode == (0 if main_asks else -TERM)


def test_the_main_thread_may_ask_after_a_thread_has() -> None:
    code = HOW + "thread = threading.Thread(target=p.should_preempt); thread.start(); thread.join()\n" + UNTIL_TOLD
    with script(code, None) as process:
        line_of(process)
        process.send_signal(USR1)

        assert code_of(process) == 0


@pytest.mark.parametrize("theirs", ["", "asyncio.get_running_loop().add_signal_handler(signal.SIGUSR2, print)"])
def test_a_notebooks_main_thread_that_runs_an_event_loop_hears_before_during_and_after(theirs: str) -> None:
    code = (
        HOW
        + f"""
import asyncio
async def cell(asks):
    {theirs or "pass"}
    if asks: p.on_notice(lambda n: say("called", n.source))
    while p.should_preempt() != (not asks): await asyncio.sleep(0.005)
    say("ready")
    while p.should_preempt() and not asks: await asyncio.sleep(0.005)
    while not p.should_preempt(): await asyncio.sleep(0.005)
    say("told")
asyncio.run(cell(True)); say(p.notice().source); sys.stdin.readline()
"""
    )
    with script(code, None) as process:
        line_of(process)
        process.send_signal(USR1)
        said = [line_of(process) for _ in range(3)]

        assert sorted(said) == ["SIGUSR1", "called SIGUSR1", "told"]
        assert code_of(process) == 0


FORKED = """
p.should_preempt()
pid = os.fork()
if pid == 0:
    {child}
    say("child", os.getpid()); time.sleep(60); os._exit(3)
status = os.waitpid(pid, 0)[1]
say(p.should_preempt(), os.waitstatus_to_exitcode(status))
"""


@pytest.mark.parametrize(("first", "second"), [(TERM, None), (USR1, TERM)])
def test_a_forked_child_dies_of_sigterm_survives_sigusr1_and_its_parent_hears_nothing(
    first: signal.Signals, second: signal.Signals | None
) -> None:
    """Schedulers send SIGUSR1 to all processes of a job: it must not cost the parent its DataLoader workers."""
    with script(HOW + FORKED.format(child="pass"), None) as process:
        child = int(line_of(process).split()[1])
        os.kill(child, first)
        if second is not None:
            time.sleep(0.2)
            os.kill(child, second)

        assert line_of(process) == f"False {-TERM}"


def test_a_forked_child_that_asks_is_told_for_itself() -> None:
    child = "p.should_preempt()\n    say('asks', os.getpid())\n"
    child += "    while not p.should_preempt(): time.sleep(0.005)\n    os._exit(5)"
    with script(HOW + FORKED.format(child=child), None) as process:
        os.kill(int(line_of(process).split()[1]), USR1)

        assert line_of(process) == "False 5"


def test_a_handler_that_was_there_is_there_again_in_a_forked_child() -> None:
    code = HOW + "signal.signal(15, lambda *_: os._exit(9))\n" + FORKED.format(child="pass")
    with script(code, None) as process:
        os.kill(int(line_of(process).split()[1]), TERM)

        assert line_of(process) == "False 9"


def test_children_that_are_killed_as_soon_as_they_are_forked_die_and_tell_the_parent_nothing() -> None:
    code = (
        HOW
        + """
p.should_preempt(); ends = set()
for n in range(300):
    pid = os.fork()
    if pid == 0: time.sleep(60); os._exit(3)
    os.kill(pid, signal.SIGTERM)
    ends.add(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
time.sleep(0.2); say(ends, p.should_preempt(), signal.pthread_sigmask(signal.SIG_BLOCK, ()))"""
    )
    with script(code, None) as process:
        assert line_of(process) == "{-15} False set()"


def test_a_fork_in_a_thread_with_the_signals_blocked_keeps_both_masks() -> None:
    code = (
        HOW
        + """
p.should_preempt()
def work():
    signal.pthread_sigmask(signal.SIG_BLOCK, {15})
    pid = os.fork()
    if pid == 0: os._exit(0 if signal.pthread_sigmask(signal.SIG_BLOCK, ()) == {15} else 1)
    say(os.waitpid(pid, 0)[1], signal.pthread_sigmask(signal.SIG_BLOCK, ()) == {15})
thread = threading.Thread(target=work); thread.start(); thread.join()"""
    )
    with script(code, None) as process:
        assert line_of(process) == "0 True"


def test_what_is_executed_starts_with_the_default_actions() -> None:
    code = HOW + "import subprocess\np.should_preempt()\n"
    code += "say(subprocess.run(['cat', '/proc/self/status'], capture_output=True).stdout)"
    with script(code, None) as process:
        masks = re.findall(r"Sig(?:Blk|Ign|Cgt):\\t(\w+)", line_of(process))
        ours = sum(1 << (signum - 1) for signum in (USR1, TERM))

        assert [int(mask, 16) & ours for mask in masks] == [0, 0, 0]


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_workers_that_ask_are_told_and_terminate_ends_those_that_do_not(tmp_path: Path, method: str) -> None:
    work = tmp_path / "work.py"
    work.write_text(
        HOW
        + """
import multiprocessing
def asks(ready):
    p.should_preempt(); ready.set()
    while not p.should_preempt(): time.sleep(0.005)
    sys.exit(5)
def does_not(ready): ready.set(); time.sleep(60)
if __name__ == "__main__":
    p.should_preempt(); context = multiprocessing.get_context(sys.argv[1])
    ends = []
    for target, signum in ((asks, signal.SIGUSR1), (does_not, signal.SIGTERM)):
        ready = context.Event(); worker = context.Process(target=target, args=(ready,)); worker.start()
        ready.wait(); os.kill(worker.pid, signum); worker.join(); ends.append(worker.exitcode)
    say(ends, p.should_preempt())
"""
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(
        [sys.executable, str(work), method], check=False, capture_output=True, text=True, env=environment, timeout=60
    )

    assert (done.stdout.strip(), done.stderr) == ("[5, -15] False", "")


# -- notify, and the end -----------------------------------------------------------------------------------------


def test_notify_tells_this_process_from_any_thread_and_can_only_tighten() -> None:
    code = (
        HOW + "thread = threading.Thread(target=lambda: say(p.notify(60, 'rank 1'))); thread.start(); thread.join()\n"
    )
    code += "say(p.should_preempt(), p.notice().source, p.notify(5), p.notify(90), p.notify(), p.time_left() <= 5)"
    with script(code, None) as process:
        assert line_of(process) == "True"
        assert line_of(process) == "True rank 1 True True True True"


def test_inside_of_defer_a_signal_changes_nothing_until_it_is_left() -> None:
    code = HOW + "calls = []; p.on_notice(lambda n: calls.append(n.source))\nwith p.defer():\n"
    code += "    say('ready')\n    while p.notice() is None: time.sleep(0.005)\n"
    code += "    time.sleep(0.2); say(p.should_preempt(), calls)\n"
    code += "say(p.should_preempt())\nwhile not calls: time.sleep(0.005)\nsay(calls)"
    with script(code, None) as process:
        line_of(process)
        process.send_signal(USR1)

        assert [line_of(process) for _ in range(3)] == ["False []", "True", "['SIGUSR1']"]


def test_a_signal_at_any_moment_of_the_first_call_is_a_notice_or_the_end_and_never_an_error() -> None:
    """The interpreter starts for some 20 ms; the import and the catching lie somewhere in there."""
    code = HOW + "say('ready')\nwhile not p.should_preempt(): time.sleep(0.001)\nsay('told')"
    ends = set()
    for number in range(12):
        with script(code, None) as process:
            line_of(process)
            time.sleep(number * 0.001)
            process.send_signal(USR1)
            out, err = process.communicate(timeout=30)
            ends.add((process.returncode, out.strip(), err))

    assert ends <= {(0, "told", ""), (-USR1, "", "")}


@pytest.mark.parametrize("refused", ["descriptors", "threads"])
def test_without_descriptors_or_threads_the_flag_is_set_all_the_same(refused: str) -> None:
    code = HOW + "import resource, preemptd.link.alone, preemptd.link.signals_caught as caught\n"
    if refused == "threads":
        code += "def refuse(*_): raise RuntimeError\ncaught.start_new_thread = refuse\n"
    else:
        code += "resource.setrlimit(resource.RLIMIT_NOFILE, (16, 16))\n"
        code += "try:\n    while True: os.dup(0)\nexcept OSError: pass\n"
    with script(code + UNTIL_TOLD + "say('told', p.notice().source)", None) as process:
        line_of(process)
        process.send_signal(USR1)

        assert line_of(process) == "told SIGUSR1"
        assert code_of(process) == 0


def test_at_the_end_of_the_interpreter_a_sigterm_does_what_it_did() -> None:
    code = HOW + "import atexit\ndef hangs(): say('ending'); time.sleep(60)\natexit.register(hangs); p.should_preempt()"
    with script(code, None) as process:
        line_of(process)
        process.send_signal(TERM)

        assert code_of(process) == -TERM


def test_the_interpreter_ends_at_once_and_silently_whatever_was_heard() -> None:
    code = "import warnings; warnings.simplefilter('error')\n" + HOW + "p.on_notice(lambda n: time.sleep(60))\n"
    for told in (False, True):
        with script(code + ("os.kill(os.getpid(), 10); p.should_preempt()\n" if told else ""), None) as process:
            began = time.monotonic()
            _, err = process.communicate(timeout=30)

            assert (process.returncode, err) == (0, "")
            assert time.monotonic() - began < 20
