"""Peers that mean harm, or are broken: none of them may disturb another, let alone the daemon."""

import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from preemptd.events import LinkAsked, LinkJoined, LinkLeft, LinkSaid
from preemptd.link import connection, exchange
from preemptd.link.server import Server
from preemptd.model import ProcessId
from preemptd.procfs import process_id
from tests.linking import ROOT, Events, RawPeer, line_of, notice, script, serving, short_directory, tell_to_go_on
from tests.metadata_server import FaultyEc2
from tests.test_watch import on_ec2
from tests.waiting import wait_until
from tests.watching import Watch, trainer

OPENS = """
import os, socket, sys
path, count = os.environ["PREEMPTD_LINK"], int(sys.argv[1])
sockets = []
for _ in range(count):
    s = socket.socket(socket.AF_UNIX); s.connect(path); sockets.append(s)
def is_open(s):
    s.setblocking(False)
    try: return s.recv(1) != b""
    except BlockingIOError: return True
    except ConnectionResetError: return False
print("open", flush=True)
for line in sys.stdin: print(sum(map(is_open, sockets)), flush=True)
"""


@contextlib.contextmanager
def served() -> Iterator[tuple[Server, Events, RawPeer, ProcessId]]:
    """A server with one decent peer, which is still served at the end."""
    me = process_id(os.getpid())
    assert me is not None
    with serving() as (server, events), RawPeer(server.path) as decent:
        decent.register()
        events.wait_for(LinkJoined)
        yield server, events, decent, me
        assert server.tell(me, {"type": "told", "count": 77})
        while decent.hear().get("count") != 77:
            pass
        decent.say("done")
        wait_until(lambda: "done" in [event.verb for event in events.of(LinkSaid)])


def still_open(crowd: "list[subprocess.Popen[str]]") -> int:
    for process in crowd:
        tell_to_go_on(process)
    return sum(int(line_of(process)) for process in crowd)


def registers(path: str) -> bool:
    with RawPeer(path) as peer:
        try:
            return bool(peer.register()["type"] == "registered")
        except (AssertionError, ConnectionError):
            return False


def test_an_endless_line_ends_the_connection() -> None:
    with served() as (server, *_), RawPeer(server.path) as hostile:
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            for _ in range(1000):
                hostile.sock.sendall(b"x" * 1024)

        assert hostile.is_hung_up()


def test_a_line_of_the_limit_is_read_and_one_byte_more_is_not() -> None:
    line = json.dumps({"v": 1, "verb": "status", "pad": ""}).encode()
    fits = line.replace(b'""', b'"' + b"x" * (8192 - len(line)) + b'"')
    with served() as (server, events, *_), RawPeer(server.path) as peer, RawPeer(server.path) as hostile:
        peer.sock.sendall(fits + b"\n")
        events.wait_for(LinkAsked)
        hostile.sock.sendall(fits.replace(b'"x', b'"xx') + b"\n")

        assert hostile.is_hung_up()
        assert len(events.of(LinkAsked)) == 1


def test_silence_without_registration_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "PATIENCE", 0.3)
    with served() as (server, *_), RawPeer(server.path) as silent:
        assert silent.is_hung_up()


def test_half_a_line_is_ended_also_when_it_drips(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "PATIENCE", 0.3)
    with served() as (server, *_), RawPeer(server.path) as dripping:
        dripping.register()

        wait_until(lambda: not takes(dripping, b" "))


def takes(peer: RawPeer, data: bytes) -> bool:
    try:
        peer.sock.sendall(data)
    except (BrokenPipeError, ConnectionResetError):
        return False
    return True


def test_half_a_line_before_the_end_is_nothing() -> None:
    with served() as (server, events, *_):
        with RawPeer(server.path) as hostile:
            hostile.sock.sendall(b'{"v":1,"verb":"status"}')
        with RawPeer(server.path) as other:
            other.say("status")
            events.wait_for(LinkAsked)

        assert len(events.of(LinkAsked)) == 1


@pytest.mark.parametrize(
    "line",
    [
        b"nonsense",
        b"\xff\xfe\x00",
        b"[" * 8000,
        b'{"a":' * 1600,
        b"null",
        b'{"verb":"register"}',
        b'{"v":2,"verb":"register","pid":1}',
        b'{"v":1,"verb":"reboot"}',
        b'{"v":1,"verb":["register"]}',
        b'{"v":1,"verb":"register","pid":-1}',
        b'{"v":1,"verb":"register","pid":' + b"9" * 5000 + b"}",
        b'{"v":1,"verb":"notify","deadline_s":NaN}',
        b'{"v":1,"verb":"notify","deadline_s":1e999}',
        b'{"v":1,"verb":"notify","kind":"explode"}',
        b'{"v":1,"verb":"seen","event_id":"\\ud800"}',
        b'{"v":1,"verb":"saved","step":' + b"9" * 30 + b"}",
        b'{"v":1,"verb":"saved","path":"' + b"x" * 4097 + b'"}',
    ],
)
def test_a_bad_line_is_answered_and_the_next_is_read(line: bytes) -> None:
    with served() as (server, events, *_), RawPeer(server.path) as peer:
        peer.sock.sendall(line + b"\n")

        assert peer.hear()["type"] == "error"
        assert peer.register()["type"] == "registered"
        assert len(events) == 1


def test_who_sends_nothing_but_nonsense_is_disconnected() -> None:
    with served() as (server, *_), RawPeer(server.path) as hostile:
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            hostile.sock.sendall(b"x\n" * 10_000)

        assert hostile.is_hung_up()


def test_a_flood_of_good_lines_is_slowed_down_and_hurts_nobody() -> None:
    with served() as (server, events, decent, me), RawPeer(server.path) as hostile:
        hostile.register()
        hostile.sock.setblocking(False)
        hostile.say("saving")
        sent = 0
        with contextlib.suppress(BlockingIOError):
            while True:
                sent += hostile.sock.send(b'{"v":1,"verb":"saving"}\n' * 100)
        began = time.monotonic()
        for count in range(100):
            server.tell(me, {"type": "told", "count": count})
            while decent.hear().get("count") != count:
                pass
        took = time.monotonic() - began

        heard = len(events.of(LinkSaid))
        assert heard < 1000 < sent / 24
        assert took < 5


def test_of_a_flood_before_the_end_the_last_words_are_heard() -> None:
    with served() as (server, events, *_):
        with RawPeer(server.path) as hostile:
            hostile.register()
            hostile.sock.sendall(b'{"v":1,"verb":"saving"}\n' * 5000 + b'{"v":1,"verb":"saved","step":9}\n')
        wait_until(lambda: [event for event in events.of(LinkSaid) if event.verb == "saved"])

        assert len(events.of(LinkSaid)) < 1000


def test_who_does_not_read_is_disconnected_and_the_others_hear_all() -> None:
    code = """
import json, os, socket
s = socket.socket(socket.AF_UNIX); s.connect(os.environ["PREEMPTD_LINK"])
s.sendall(json.dumps({"v": 1, "verb": "register", "pid": os.getpid()}).encode() + b"\\n")
print("ready"); input()
"""
    with served() as (server, events, decent, _), script(code, server.path) as slow:
        line_of(slow)
        process = events.wait_for(LinkJoined, 2)[1].process
        for number in range(100):
            server.announce({"type": "status", "number": number, "text": "x" * 5000})
            while decent.hear().get("number") != number:
                pass

        assert events.wait_for(LinkLeft) == [LinkLeft(process)]


def test_one_process_gets_64_connections() -> None:
    with served() as (server, *_), script(OPENS, server.path, "100") as greedy, RawPeer(server.path) as other:
        line_of(greedy)

        assert wait_until(lambda: still_open([greedy]) <= exchange.MOST_OF_ONE_PID)
        assert other.register()["type"] == "registered"
        assert still_open([greedy]) == exchange.MOST_OF_ONE_PID


def test_1100_connections_are_too_many_and_harm_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "PATIENCE", 3.0)
    with served() as (server, _, decent, me), contextlib.ExitStack() as stack:
        crowd = [stack.enter_context(script(OPENS, server.path, "62")) for _ in range(18)]
        for process in crowd:
            line_of(process)
        server.tell(me, notice())
        heard = decent.hear()

        assert heard["event_id"] == "e1"
        assert wait_until(lambda: still_open(crowd) < exchange.MOST_CONNECTIONS)
        assert wait_until(lambda: registers(server.path))


def test_without_descriptors_it_waits_until_there_are_some() -> None:
    code = """
import os, resource, socket, sys, threading
from preemptd.link.server import Server
server = Server(sys.argv[1], print, "9.9"); server.open(); server.start()
resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
hoard = []
try:
    while True: hoard.append(os.dup(0))
except OSError: pass
print("full", flush=True); sys.stdin.readline()
for fd in hoard: os.close(fd)
print("free", flush=True); sys.stdin.readline(); server.close()
"""
    with served() as (server, *_), script(code, None, server.path + "2") as process:
        assert line_of(process) == "full"
        with RawPeer(server.path + "2") as peer:
            peer.say("register", pid=os.getpid())
            tell_to_go_on(process)
            assert line_of(process) == "free"

            assert peer.hear()["type"] == "registered"
        tell_to_go_on(process)
        process.wait(10)


BECOMES_NOBODY = """
import json, os, socket, sys
os.setgroups([]); os.setgid(65534); os.setuid(65534)
s = socket.socket(socket.AF_UNIX)
try: s.connect(os.environ["PREEMPTD_LINK"])
except PermissionError: print("refused"); sys.exit()
f = s.makefile("rw")
for verb in ("status", "notify", "register"):
    f.write(json.dumps({"v": 1, "verb": verb, "pid": os.getpid()}) + "\\n"); f.flush()
    print(json.loads(f.readline())["type"], flush=True)
input()
"""


@pytest.mark.usefixtures("needs_root")
def test_another_user_is_refused() -> None:
    with serving() as (server, _):
        os.chmod(os.path.dirname(os.path.dirname(server.path)), 0o755)
        os.chmod(os.path.dirname(server.path), 0o755)
        with script(BECOMES_NOBODY, server.path) as stranger:
            assert line_of(stranger) == "refused"


@pytest.mark.usefixtures("needs_root")
def test_a_member_of_the_group_may_register_but_not_ask_or_notify() -> None:
    with serving(group=65534) as (server, events):
        os.chmod(os.path.dirname(os.path.dirname(server.path)), 0o755)
        with script(BECOMES_NOBODY, server.path) as member:
            assert [line_of(member) for _ in range(3)] == ["error", "error", "registered"]
            assert events.wait_for(LinkJoined)[0].process.pid == member.pid
        assert events.of(LinkAsked) == []


@pytest.mark.usefixtures("needs_root")
def test_a_process_of_another_pid_namespace_is_told_by_message_and_has_no_pid_to_signal() -> None:
    """The server lives in a pid namespace of its own, as in a pod without shareProcessNamespace."""
    code = """
import os, sys
from preemptd.link.server import Server
server = Server(sys.argv[1], lambda event: print(event, flush=True), "9.9")
server.open(); server.start(); print("ready", flush=True); sys.stdin.readline()
(process,) = server.linked
assert server.tell(process, {"type": "told", "count": 5}); server.close()
try: os.kill(process.pid, 0)
except ProcessLookupError: print("no such process", flush=True)
"""
    with short_directory() as directory:
        path = str(directory / "link")
        command = ["unshare", "--pid", "--fork", "--mount-proc", sys.executable, "-c", code, path]
        with subprocess.Popen(
            command, cwd=ROOT, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        ) as process:
            assert line_of(process) == "ready"
            with RawPeer(path) as peer:
                assert peer.register()["type"] == "registered"
                joined = line_of(process)
                tell_to_go_on(process)

                assert peer.hear()["count"] == 5
                assert "start=0" in joined
                assert line_of(process).startswith(("LinkLeft", "no such process"))


@pytest.mark.usefixtures("needs_root")
def test_a_process_in_an_inner_pid_namespace_registers_by_the_pid_that_it_sees() -> None:
    code = """
import json, os, socket
s = socket.socket(socket.AF_UNIX); s.connect(os.environ["PREEMPTD_LINK"])
s.sendall(json.dumps({"v": 1, "verb": "register", "pid": os.getpid()}).encode() + b"\\n")
print(os.getpid(), json.loads(s.makefile().readline())["type"], flush=True); input()
"""
    with serving() as (server, events):
        command = ["unshare", "--pid", "--fork", "--kill-child", sys.executable, "-c", code]
        with subprocess.Popen(
            command,
            env={**os.environ, "PREEMPTD_LINK": server.path},
            text=True,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        ) as process:
            assert line_of(process) == "1 registered"
            assert events.wait_for(LinkJoined)[0].process.pid > 1
            tell_to_go_on(process)


ATTACKS = {
    "floods": 'register(); send(b\'{"v":1,"verb":"saving"}\\n\' * 1000)',
    "half lines": "send(b'{\"v\":1,'); time.sleep(0.1)",
    "oversized lines": "send(b'x' * 100_000)",
    "nonsense": "send(b'\\xff\\x00{}[]\\n' * 100)",
    "connections": "crowd.append(connect())",
    "comes and goes": "register(); link.close()",
    "does not read": 'register(); send(b\'{"v":1,"verb":"status"}\\n\' * 20); crowd.append(link)',
}
"""What each attacker does on each new connection, for ever."""
ATTACKS_IN = """
import json, os, socket, sys, time
crowd = []
def connect():
    s = socket.socket(socket.AF_UNIX); s.settimeout(0.2); s.connect(sys.argv[1]); return s
def send(data): link.sendall(data)
def register(): send(json.dumps({"v": 1, "verb": "register", "pid": os.getpid()}).encode() + b"\\n")
print("ready", flush=True)
while True:
    try:
        link = connect()
        %s
    except OSError:
        time.sleep(0.01)
"""


def test_under_all_attacks_at_once_a_whole_watch_tells_in_time_and_believes_the_trainer(tmp_path: Path) -> None:
    with (
        contextlib.ExitStack() as stack,
        FaultyEc2(grace=30.0) as ec2,
        Watch(tmp_path, trainer("link"), env=on_ec2(ec2)) as watch,
    ):
        ready = watch.await_said("ready")[0]
        link = str(watch.await_line("started")[0]["link"])
        for attack in ATTACKS.values():
            line_of(stack.enter_context(script(ATTACKS_IN % attack, None, link)))
        looks = len(ec2.asked)
        wait_until(lambda: len(ec2.asked) > looks + 2)
        ec2.announcement.announce()
        watch.await_said("saved")
        stack.close()
        status = watch.wait(60)

    (told,) = (line for line in watch.lines("told") if line["pid"] == ready["pid"])
    assert status == 75
    assert told["how"] == "link"
    assert float(str(told["ms"])) < 30_000 / 2  # the attackers and their victim share this machine's few cores
    assert ready["pid"] in [line["pid"] for line in watch.lines("saved")]


def test_who_comes_anew_for_each_flood_is_slowed_down_as_well() -> None:
    floods = """
import json, os, socket, sys
line = json.dumps({"v": 1, "verb": "register", "pid": os.getpid()}).encode() + b"\\n"
for _ in range(300):
    with socket.socket(socket.AF_UNIX) as s:
        s.connect(os.environ["PREEMPTD_LINK"])
        s.sendall(line + b'{"v":1,"verb":"saving"}\\n' * 200)
print("done", flush=True); input()
"""
    with served() as (server, events, *_), script(floods, server.path) as hostile:
        began = time.monotonic()
        assert line_of(hostile) == "done"
        wait_until(lambda: events.of(LinkLeft))
        took = time.monotonic() - began

        said = [event for event in events.of(LinkSaid) if event.process.pid == hostile.pid]
        assert len(said) < connection.OF_A_PROCESS_AT_ONCE + 300 + connection.OF_A_PROCESS_PER_SECOND * (took + 1)
        assert len(said) < 10_000


@pytest.mark.usefixtures("needs_root")
def test_one_process_that_has_no_pid_here_gets_64_connections_too() -> None:
    """Where the kernel tells such processes apart (6.9): before that they have only the limit for all in common."""
    serves = """
import sys
from preemptd.link.server import Server
server = Server(sys.argv[1], print, "9.9")
server.open(); server.start(); print("ready", flush=True); sys.stdin.readline()
"""
    with short_directory() as directory:
        path = str(directory / "link")
        command = ["unshare", "--pid", "--fork", "--kill-child", "--mount-proc", sys.executable, "-c", serves, path]
        with subprocess.Popen(command, cwd=ROOT, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
            assert line_of(process) == "ready"
            with script(OPENS, path, "100") as greedy, script(OPENS, path, "60") as modest:
                line_of(greedy)
                line_of(modest)
                tells_apart = os.stat(os.pidfd_open(greedy.pid)).st_ino != os.stat(os.pidfd_open(modest.pid)).st_ino
                if tells_apart:
                    wait_until(lambda: still_open([greedy]) <= exchange.MOST_OF_ONE_PID)

                assert still_open([greedy]) == (exchange.MOST_OF_ONE_PID if tells_apart else 100)
                assert still_open([modest]) == 60
            tell_to_go_on(process)
