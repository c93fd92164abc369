import contextlib
import os
import re
import socket
import stat
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from preemptd.errors import ConfigError
from preemptd.events import LinkAsked, LinkJoined, LinkLeft, LinkSaid
from preemptd.link import protocol
from preemptd.link.server import Server
from preemptd.model import ProcessId
from preemptd.procfs import process_id
from tests.linking import RawPeer, notice, script, serving, short_directory


def me() -> ProcessId:
    found = process_id(os.getpid())
    assert found is not None
    return found


def test_a_process_that_registers_is_known_by_pid_and_start_time() -> None:
    with serving() as (server, events), RawPeer(server.path) as peer:
        answer = peer.register()

        assert answer["type"] == "registered"
        assert answer["v"] == 1
        assert (answer["version"], answer["attempt"], answer["resumed"], answer["notices"]) == ("9.9", 2, False, [])
        assert events.wait_for(LinkJoined) == [LinkJoined(me(), "trainer")]
        assert server.linked == {me()}


def test_who_is_registered_is_told_and_who_is_not_is_reported() -> None:
    with serving() as (server, events), RawPeer(server.path) as peer:
        stranger = ProcessId(1, 1)
        before = server.tell(me(), {"type": "told", "count": 1})
        peer.register()
        events.wait_for(LinkJoined)

        assert not before
        assert not server.tell(stranger, {"type": "told", "count": 2})
        assert server.tell(me(), {"type": "told", "count": 3})
        assert peer.hear() == {"v": 1, "type": "told", "count": 3}


def test_what_a_process_says_arrives_with_its_fields() -> None:
    with serving() as (server, events), RawPeer(server.path) as peer:
        peer.register()
        peer.say("seen", event_id="e1")
        peer.say("saving")
        peer.say("saved", step=12, path="/ckpt/12.pt", colour="green")
        peer.say("saved")
        peer.say("done")

        said = [(event.verb, dict(event.fields)) for event in events.wait_for(LinkSaid, 5)]
        assert said == [
            ("seen", {"event_id": "e1"}),
            ("saving", {}),
            ("saved", {"step": 12, "path": "/ckpt/12.pt"}),
            ("saved", {}),
            ("done", {}),
        ]
        assert {event.process for event in events.of(LinkSaid)} == {me()}


def test_who_registers_while_a_notice_is_open_gets_it_with_the_answer() -> None:
    with serving() as (server, _):
        server.announce(notice("e1", remaining=30.0))
        server.announce(notice("e2"))
        server.announce({"type": "revoked", "event_id": "e2"})
        with RawPeer(server.path) as peer:
            answer = peer.register()

            (open_notice,) = answer["notices"]
            assert open_notice["event_id"] == "e1"
            assert 20 < open_notice["remaining"] < 30
            assert open_notice["mono"] == pytest.approx(time.monotonic() + open_notice["remaining"], abs=5)
            assert answer["mono"] == pytest.approx(time.monotonic(), abs=5)


def test_a_notice_that_was_told_to_one_process_is_open_for_the_next() -> None:
    with serving() as (server, events), RawPeer(server.path) as first, RawPeer(server.path) as second:
        first.register()
        events.wait_for(LinkJoined)
        server.tell(me(), notice("e1"))
        first.hear()

        assert [n["event_id"] for n in second.register()["notices"]] == ["e1"]


def test_a_process_with_two_connections_joins_once_and_leaves_with_the_last() -> None:
    with serving() as (server, events):
        first, second = RawPeer(server.path), RawPeer(server.path)
        first.register()
        second.register()
        first.close()
        second.say("done")
        events.wait_for(LinkSaid)
        left_early = events.of(LinkLeft)
        second.close()

        assert events.wait_for(LinkLeft) == [LinkLeft(me())]
        assert left_early == []
        assert len(events.of(LinkJoined)) == 1
        assert server.linked == frozenset()


def test_the_end_of_a_process_is_heard_without_a_word_from_it() -> None:
    code = """
import os, socket, json
s = socket.socket(socket.AF_UNIX); s.connect(os.environ["PREEMPTD_LINK"])
s.sendall(json.dumps({"v": 1, "verb": "register", "pid": os.getpid()}).encode() + b"\\n")
s.recv(9999); input()
"""
    with serving() as (server, events), script(code, server.path) as process:
        joined = events.wait_for(LinkJoined)[0]
        process.kill()

        assert events.wait_for(LinkLeft) == [LinkLeft(joined.process)]
        assert joined.process.pid == process.pid


def test_after_a_sync_all_that_a_process_said_before_it_ended_has_been_heard() -> None:
    with serving() as (server, events):
        for step in range(50):
            with RawPeer(server.path) as peer:
                peer.say("register", pid=os.getpid(), role="trainer")
                peer.say("saved", step=step)
            server.sync()

            assert len(events.of(LinkSaid)) == step + 1


def test_a_sync_waits_but_a_moment_for_a_peer_that_never_stops_talking() -> None:
    with serving() as (server, events), RawPeer(server.path) as peer:
        peer.register()
        flood = threading.Thread(target=talk, args=(peer,), daemon=True)
        flood.start()
        events.wait_for(LinkSaid)
        server.sync()
        peer.sock.shutdown(socket.SHUT_RDWR)
        flood.join(20)

        assert not flood.is_alive()
        events.wait_for(LinkLeft)


def talk(peer: RawPeer) -> None:
    with contextlib.suppress(OSError):
        while True:
            peer.say("saving")


def test_status_and_notify_need_no_registration_and_are_answered_by_number() -> None:
    with serving() as (server, events), RawPeer(server.path) as peer, RawPeer(server.path) as other:
        other.say("status")
        peer.say("notify", deadline_s=60, reason="drain", kind="maintenance")
        asked = {event.verb: event for event in events.wait_for(LinkAsked, 2)}
        server.answer(asked["notify"].peer, {"type": "status", "ok": True})
        server.answer(10**9, {"type": "status", "ok": False})

        assert dict(asked["notify"].fields) == {"deadline_s": 60.0, "reason": "drain", "kind": "maintenance"}
        assert peer.hear() == {"v": 1, "type": "status", "ok": True}
        assert events.of(LinkJoined) == []


def test_only_who_registered_may_speak_of_saving() -> None:
    with serving() as (server, events), RawPeer(server.path) as peer:
        peer.say("saved", step=1)

        assert peer.hear() == {"v": 1, "type": "error", "text": "saved: register first"}
        assert events == []


def test_nobody_registers_another_process() -> None:
    with serving() as (server, events), RawPeer(server.path) as peer:
        peer.say("register", pid=os.getppid())

        assert peer.hear()["text"] == "register: a process registers itself only, by its own pid"
        assert events == []


def test_a_message_sent_just_before_the_end_gets_out() -> None:
    with serving() as (server, events), RawPeer(server.path) as peer:
        peer.register()
        events.wait_for(LinkJoined)
        for count in range(200):
            server.tell(me(), {"type": "told", "count": count})
        server.close()

        assert [peer.hear()["count"] for _ in range(200)] == list(range(200))
        assert peer.is_hung_up()


def test_closing_waits_a_tenth_of_a_second_for_one_who_does_not_read() -> None:
    with serving() as (server, events), RawPeer(server.path) as peer:
        peer.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1)
        peer.register()
        events.wait_for(LinkJoined)
        for _ in range(20):
            server.tell(me(), {"type": "status", "text": "x" * 10_000})
        began = time.monotonic()
        server.close()

        assert time.monotonic() - began < 5


def test_the_socket_is_for_its_owner_and_leaves_with_its_directory() -> None:
    with short_directory() as directory:
        server = Server(str(directory / "new" / "link"), print, "9.9")
        server.open()
        socket_mode = stat.S_IMODE((directory / "new" / "link").stat().st_mode)
        directory_mode = stat.S_IMODE((directory / "new").stat().st_mode)
        server.close()
        server.close()

        assert (socket_mode, directory_mode) == (0o600, 0o700)
        assert list(directory.iterdir()) == []


def test_a_group_may_be_let_in() -> None:
    with serving(group=os.getgid()) as (server, _):
        assert stat.S_IMODE(os.stat(server.path).st_mode) == 0o660
        assert stat.S_IMODE(os.stat(os.path.dirname(server.path)).st_mode) == 0o710


def test_a_relative_path_is_made_absolute_for_children_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    with short_directory() as directory:
        monkeypatch.chdir(directory)

        assert Server("link", print, "9.9").path == str(directory / "link")


def test_the_socket_of_a_dead_daemon_is_replaced() -> None:
    with short_directory() as directory:
        with socket.socket(socket.AF_UNIX) as dead:
            dead.bind(str(directory / "link"))
        with serving(str(directory / "link")) as (server, _), RawPeer(server.path) as peer:
            assert peer.register()["type"] == "registered"


def test_the_socket_of_a_living_daemon_is_left_alone() -> None:
    with serving() as (server, _), RawPeer(server.path) as peer:
        second = Server(server.path, print, "9.9")
        with pytest.raises(ConfigError, match="in use by a running preemptd"):
            second.open()
        second.close()

        assert peer.register()["type"] == "registered"


def test_another_file_at_the_path_is_left_alone() -> None:
    with short_directory() as directory:
        (directory / "link").write_text("precious")
        with pytest.raises(ConfigError, match="exists and is not a socket"):
            Server(str(directory / "link"), print, "9.9").open()

        assert (directory / "link").read_text() == "precious"


def test_the_socket_of_another_user_is_left_alone() -> None:
    if os.geteuid() != 0:
        pytest.skip("needs root to make a socket of another user")
    with short_directory() as directory:
        with socket.socket(socket.AF_UNIX) as theirs:
            theirs.bind(str(directory / "link"))
        os.chown(directory / "link", 65534, 65534)
        with pytest.raises(ConfigError, match=re.escape("another user (uid 65534)")):
            Server(str(directory / "link"), print, "9.9").open()

        assert (directory / "link").exists()


@pytest.mark.parametrize(
    ("path", "why"),
    [
        ("/tmp/" + "x" * 103, "longer than 107 bytes"),
        ("/proc/nowhere/link", "No such file"),
        ("/dev/null/link", "Not a directory"),
        ("/tmp/a\0b", "null"),
    ],
)
def test_a_path_that_cannot_be_used_is_one_clear_line(path: str, why: str) -> None:
    with pytest.raises(ConfigError, match=why) as caught:
        Server(path, print, "9.9").open()

    assert "\n" not in str(caught.value)


def test_a_path_of_107_bytes_is_short_enough() -> None:
    with short_directory() as directory:
        path = str(directory / ("x" * (106 - len(str(directory)))))
        with serving(path) as (server, _), RawPeer(server.path) as peer:
            assert len(path) == 107
            assert peer.register()["type"] == "registered"


def test_a_socket_that_another_put_in_our_place_is_not_removed() -> None:
    with serving() as (server, _):
        os.unlink(server.path)
        Path(server.path).write_text("another's")
        server.close()

        assert Path(server.path).read_text() == "another's"


def test_an_answer_that_is_too_long_becomes_an_error() -> None:
    assert b"too long" in protocol.encode({"type": "status", "text": "x" * 70_000})


def test_before_open_nobody_is_linked_and_nothing_fails() -> None:
    server = Server("/nowhere/link", print, "9.9")
    server.start()
    server.announce({"type": "told", "count": 1})
    server.answer(1, {})
    server.close()

    assert not server.tell(me(), {"type": "told", "count": 1})
    assert server.linked == frozenset()


def test_it_sleeps_when_nothing_happens() -> None:
    code = """
import resource, sys, time
from preemptd.link.server import Server
server = Server(sys.argv[1], print, "9.9"); server.open(); server.start()
used = lambda: sum(resource.getrusage(resource.RUSAGE_SELF)[:2])
time.sleep(0.2); before = used(); time.sleep(1.0); print(used() - before); server.close()
"""
    with short_directory() as directory:
        done = subprocess.run(
            [sys.executable, "-c", code, str(directory / "link")], check=True, capture_output=True, text=True
        )

        assert float(done.stdout) < 0.02
