"""A preemptd inside a preemptd: the test's own process is the outer one, a script is the inner one."""

import socket
import subprocess
from collections.abc import Iterator

import pytest

from preemptd.events import LinkJoined
from preemptd.link.server import Server
from preemptd.model import ProcessId
from tests.linking import line_of, notice, script, serving, short_directory, tell_to_go_on
from tests.waiting import wait_until

WRAPS = """
import os, sys, time
from preemptd.link import nested
nested.AFTER_REVOCATION = float(sys.argv[1]) if sys.argv[1:] else nested.AFTER_REVOCATION
outer = nested.Outer.join(os.environ["PREEMPTD_LINK"])
if outer is None: print("none", flush=True); sys.exit()
outer.start(); print("joined", flush=True)
for line in sys.stdin: print(outer.preempted, flush=True)
outer.close(); print("closed", flush=True)
"""


class Nest:
    def __init__(self, server: Server, inner: "subprocess.Popen[str]", wrapper: ProcessId) -> None:
        self.server = server
        self.inner = inner
        self.wrapper = wrapper

    def preempted(self) -> bool:
        tell_to_go_on(self.inner)
        return line_of(self.inner) == "True"


def nests(*arguments: str) -> Iterator[Nest]:
    with serving() as (server, events), script(WRAPS, server.path, *arguments) as inner:
        assert line_of(inner) == "joined"
        joined = events.wait_for(LinkJoined)[0]
        assert (joined.process.pid, joined.role) == (inner.pid, "wrapper")
        yield Nest(server, inner, joined.process)


@pytest.fixture
def nest() -> Iterator[Nest]:
    yield from nests()


@pytest.fixture
def forgetful_nest() -> Iterator[Nest]:
    yield from nests("0")


def test_without_a_notice_the_end_of_the_command_is_its_own(nest: Nest) -> None:
    assert not nest.preempted()


def test_a_notice_of_which_nobody_was_told_explains_nothing(nest: Nest) -> None:
    nest.server.tell(nest.wrapper, notice())
    nest.server.tell(nest.wrapper, {"type": "told", "count": 0})

    assert not nest.preempted()


def test_after_the_telling_the_command_was_preempted_also_when_the_notice_was_revoked_since(nest: Nest) -> None:
    nest.server.tell(nest.wrapper, notice())
    nest.server.tell(nest.wrapper, {"type": "told", "count": 2})

    assert wait_until(nest.preempted)
    nest.server.announce({"type": "revoked", "event_id": "e1"})
    assert nest.preempted()
    assert nest.preempted()


def test_long_after_the_revocation_the_end_is_the_commands_own(forgetful_nest: Nest) -> None:
    nest = forgetful_nest
    nest.server.tell(nest.wrapper, notice())
    nest.server.tell(nest.wrapper, {"type": "told", "count": 2})
    assert wait_until(nest.preempted)
    nest.server.announce({"type": "revoked", "event_id": "e1"})

    assert wait_until(lambda: not nest.preempted())
    nest.server.tell(nest.wrapper, notice("e2"))
    assert not nest.preempted()


def test_advice_explains_nothing(nest: Nest) -> None:
    nest.server.tell(nest.wrapper, notice(level="advise"))
    nest.server.tell(nest.wrapper, {"type": "told", "count": 2})

    assert not nest.preempted()


def test_an_inner_preemptd_that_starts_during_a_notice_knows_it() -> None:
    with serving() as (server, events):
        server.announce(notice())
        with script(WRAPS, server.path) as inner:
            line_of(inner)
            nest = Nest(server, inner, events.wait_for(LinkJoined)[0].process)
            server.tell(nest.wrapper, {"type": "told", "count": 1})

            assert wait_until(nest.preempted)


def test_it_leaves_in_silence(nest: Nest) -> None:
    assert nest.inner.stdin is not None
    assert nest.inner.stderr is not None
    nest.inner.stdin.close()

    assert line_of(nest.inner) == "closed"
    assert nest.inner.wait(10) == 0
    assert nest.inner.stderr.read() == ""
    wait_until(lambda: not nest.server.linked)


def test_a_preemptd_that_is_no_ancestor_is_not_ours() -> None:
    """The variable may have been inherited from a job that this one outlived (a tmux, a notebook server)."""
    serves = """
import sys
from preemptd.link.server import Server
server = Server(sys.argv[1], print, "9.9"); server.open(); server.start()
print("ready", flush=True); sys.stdin.read(); server.close()
"""
    with short_directory() as directory, script(serves, None, str(directory / "link")) as stranger:
        assert line_of(stranger) == "ready"
        with script(WRAPS, str(directory / "link")) as inner:
            assert line_of(inner) == "none"


@pytest.mark.parametrize("what", ["missing", "refused", "silent", "a\0b"])
def test_where_nobody_answers_there_is_no_outer_preemptd(what: str) -> None:
    from preemptd.link.nested import Outer

    with short_directory() as directory, socket.socket(socket.AF_UNIX) as listener:
        path = str(directory / "link")
        if what in ("refused", "silent"):
            listener.bind(path)
        if what == "silent":
            listener.listen()

        assert Outer.join("a\0b" if "\0" in what else path) is None
