import re

import pytest

from preemptd.events import LinkAsked, LinkJoined, LinkLeft, LinkSaid
from preemptd.link import connection, exchange, protocol
from tests.linking import ROOT, RawPeer, notice, script, serving

DOCS = (ROOT / "docs" / "link.md").read_text()


def example(language: str) -> str:
    (found,) = re.findall(rf"```{language}\n(.*?)```", DOCS, re.DOTALL)
    assert isinstance(found, str)
    return found


@pytest.mark.parametrize("is_early", [True, False])
def test_the_python_example_saves_when_it_is_told(is_early: bool) -> None:
    with serving() as (server, events):
        if is_early:
            server.announce(notice())
        with script(example("python"), server.path) as process:
            events.wait_for(LinkJoined)
            if not is_early:
                server.announce(notice())
            _, err = process.communicate(timeout=30)
            events.wait_for(LinkLeft)

        assert (process.returncode, err) == (0, "")
        assert [(event.verb, dict(event.fields)) for event in events.of(LinkSaid)] == [
            ("seen", {"event_id": "e1"}),
            ("saved", {"step": 7, "path": "/checkpoints/7.pt"}),
        ]


def test_the_line_of_the_shell_example_is_understood() -> None:
    (line,) = re.findall(r"printf '(.*?)\\n'", example("sh"))
    with serving() as (server, events), RawPeer(server.path) as peer:
        peer.sock.sendall(line.encode() + b"\n")
        asked = events.wait_for(LinkAsked)[0]

        assert (asked.verb, asked.fields["deadline_s"], asked.fields["reason"]) == ("notify", 60.0, "drain")


def test_the_documented_verbs_and_limits_are_those_of_the_code() -> None:
    table = DOCS.split("## What a program may say")[1].split("##")[0]

    assert set(re.findall(r"^\| `(\w+)` \|", table, re.MULTILINE)) == set(protocol.ALLOWED)
    assert protocol.LINE_LIMIT == 8 * 1024
    assert protocol.ANSWER_LIMIT == 64 * 1024
    assert (connection.PATIENCE, connection.BAD_LINES, connection.BURST, connection.LINES_PER_SECOND) == (
        10,
        16,
        64,
        20,
    )
    assert (exchange.MOST_OF_ONE_PID, exchange.MOST_CONNECTIONS) == (64, 1024)
