import errno
import json
import socket
import struct
from collections.abc import Iterator, Sequence
from contextlib import closing, suppress
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from preemptd.runs import core_socket, wire
from preemptd.runs.core_socket import Conversation, CoreError, Progress
from tests.waiting import wait_until

VECTORS = json.loads((Path(__file__).parent / "data" / "wandb_frames.json").read_text())
RUN = "abc12345"
Link = tuple[Conversation, socket.socket]
Fate = int | OSError | None


class Narrow(socket.socket):
    """A socket whose buffer has room for three bytes every other time, and for none in between."""

    room = False

    def send(self, data: bytes, flags: int = 0) -> int:  # type: ignore[override]  # bytes is all that is sent here
        self.room = not self.room
        if not self.room:
            raise BlockingIOError
        return super().send(data[:3], flags)


@pytest.fixture
def link(tmp_path: Path) -> Iterator[Link]:
    """A conversation and the end that a wandb-core would have."""
    path = str(tmp_path / "socket")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen()
        with closing(Conversation(path, RUN)) as conversation:
            assert conversation.connect() is Progress.WAITING
            end, _ = listener.accept()
            with end:
                end.settimeout(20)
                yield conversation, end


def answer_to(request_id: str, run_id: str = RUN) -> bytes:
    info = b"\xc2\x0c" + bytes([len(run_id) + 2, 0x0A, len(run_id)]) + run_id.encode()
    message = b"\x2a" + bytes([len(info)]) + info + b"\x52" + bytes([len(request_id)]) + request_id.encode()
    return b"W" + struct.pack("<I", len(message)) + message


def hear(conversation: Conversation) -> None:
    conversation.connect()
    wait_until(lambda: conversation.go_on() is Progress.MARKED)


@pytest.mark.parametrize("run_id", VECTORS)
def test_frames_are_byte_for_byte_what_wandbs_own_protobufs_make(run_id: str) -> None:
    made = {
        "attach": core_socket.attach_frame(run_id, "attach").hex(),
        "preempting": core_socket.preempting_frame(run_id).hex(),
        **{f"exit {code}": core_socket.exit_frame(run_id, code).hex() for code in (0, 1, 75, 143, 255, -1)},
    }

    assert made == VECTORS[run_id]


def test_the_record_leaves_only_after_the_attach_was_answered(link: Link) -> None:
    conversation, end = link
    attach = core_socket.attach_frame(RUN, "attach")
    first = end.recv(65536)
    conversation.ask_again()
    second = end.recv(65536)
    end.sendall(answer_to("attach"))
    progress = conversation.go_on()
    third = end.recv(65536)
    end.sendall(answer_to("marked"))

    assert (first, second) == (attach, attach)
    assert progress is Progress.WAITING
    assert third == core_socket.preempting_frame(RUN) + core_socket.attach_frame(RUN, "marked")
    assert conversation.go_on() is Progress.MARKED


def test_a_late_second_answer_to_the_first_question_is_no_acknowledgement(link: Link) -> None:
    conversation, end = link
    conversation.ask_again()
    end.sendall(answer_to("attach") + answer_to("attach"))

    assert conversation.go_on() is Progress.WAITING
    assert end.recv(65536).count(core_socket.preempting_frame(RUN)) == 1


def test_an_answer_may_come_in_single_bytes(link: Link) -> None:
    conversation, end = link
    for byte in answer_to("attach"):
        end.sendall(bytes([byte]))
        assert conversation.go_on() is Progress.WAITING
    for byte in answer_to("marked")[:-1]:
        end.sendall(bytes([byte]))
        assert conversation.go_on() is Progress.WAITING
    end.sendall(answer_to("marked")[-1:])

    assert conversation.go_on() is Progress.MARKED


def test_a_frame_that_was_sent_in_part_is_completed_before_anything_else(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "socket"))
        listener.listen()
        with closing(Conversation(str(tmp_path / "socket"), RUN)) as conversation:
            conversation.sock.close()
            conversation.sock = Narrow(socket.AF_UNIX)
            conversation.sock.setblocking(False)
            conversation.connect()
            end, _ = listener.accept()
            with end:
                for _ in range(99):
                    conversation.ask_again()
                assert conversation.wants_to_write
                end.sendall(answer_to("attach"))
                conversation.go_on()
                while conversation.wants_to_write:
                    conversation.ask_again()
                got = end.recv(65536)

    attach = core_socket.attach_frame(RUN, "attach")
    marked = core_socket.preempting_frame(RUN) + core_socket.attach_frame(RUN, "marked")
    asked = got[: -len(marked)]
    assert asked == attach * (len(asked) // len(attach))
    assert got.endswith(marked)


class Faulty(socket.socket):
    """A connected socket that takes so many bytes at each attempt; None: it has no room, an error: it breaks."""

    fates: Sequence[Fate] = ()

    def connect_ex(self, _address: object, /) -> int:
        return 0

    def send(self, data: bytes, flags: int = 0) -> int:  # type: ignore[override]  # bytes is all that is sent here
        fate, *self.fates = self.fates or (len(data),)
        if fate is None:
            raise BlockingIOError
        if isinstance(fate, OSError):
            raise fate
        return super().send(data[:fate], flags)


def frames_in(sent: bytes) -> tuple[list[bytes], bytes]:
    """Split it into whole frames, and what is left of the last one."""
    whole = []
    while len(sent) >= 5 and len(sent) >= (size := 5 + struct.unpack_from("<I", sent, 1)[0]):
        whole.append(sent[:size])
        sent = sent[size:]
    return whole, sent


BREAKS = st.builds(OSError, st.sampled_from([errno.EPIPE, errno.ECONNRESET, errno.ENOBUFS]))
FATES = st.lists(st.one_of(st.integers(1, 40), st.none(), BREAKS), max_size=30)
STORY = st.lists(st.sampled_from(["ask", "go on", "attach", "marked"]), max_size=20)


@pytest.mark.parametrize("code", [None, 75])
@given(fates=FATES, story=STORY)
def test_whatever_the_socket_does_nothing_but_whole_frames_leaves(
    code: int | None, fates: list[Fate], story: list[str]
) -> None:
    """Only the last one may be cut off, by the end of the connection: wandb-core drops that."""
    asked = [core_socket.attach_frame(RUN, "attach"), core_socket.attach_frame(RUN, "marked")]
    record = core_socket.preempting_frame(RUN) + (b"" if code is None else core_socket.exit_frame(RUN, code))
    ours, theirs = socket.socketpair()
    with theirs, closing(Conversation("unused", RUN, code)) as conversation:
        conversation.sock.close()
        conversation.sock = faulty = Faulty(fileno=ours.detach())
        faulty.setblocking(False)
        faulty.fates = fates
        with suppress(OSError):
            conversation.connect()
            for word in story:
                if word in ("attach", "marked"):
                    theirs.sendall(answer_to(word))
                conversation.ask_again() if word == "ask" else conversation.go_on()
        may_be_cut = conversation.wants_to_write
        faulty.shutdown(socket.SHUT_WR)
        sent = b"".join(iter(lambda: theirs.recv(65536), b""))
    whole, rest = frames_in(sent)

    assert set(whole) <= {*asked, *frames_in(record)[0]}
    assert not rest or may_be_cut
    assert sent.count(record) <= 1
    assert whole[:1] in ([], asked[:1])


def test_a_connection_to_itself_is_not_an_answer() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        free = listener.getsockname()
    with closing(Conversation(free, RUN)) as conversation:
        conversation.sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        conversation.sock.bind(free)

        with pytest.raises(ConnectionRefusedError):
            hear(conversation)


def test_a_run_id_that_is_not_utf8_is_never_sent(tmp_path: Path) -> None:
    with pytest.raises(CoreError, match="UTF-8"):
        Conversation(str(tmp_path / "socket"), "\udcff")


def test_nobody_listening_is_an_os_error(tmp_path: Path) -> None:
    with closing(Conversation(str(tmp_path / "socket"), RUN)) as conversation, pytest.raises(FileNotFoundError):
        conversation.connect()


@given(st.binary(max_size=200))
def test_any_message_parses_or_is_a_value_error(message: bytes) -> None:
    try:
        found = list(wire.fields(message))
    except ValueError:
        return

    assert all(number >= 0 for number, _ in found)


@given(st.lists(st.binary(max_size=60), max_size=5), st.booleans())
def test_whatever_answers_marks_nothing_and_raises_only_what_is_declared(answers: list[bytes], framed: bool) -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs, closing(Conversation("unused", RUN)) as conversation:
        conversation.sock.close()
        conversation.sock = ours
        ours.setblocking(False)
        for answer in answers:
            theirs.sendall(b"W" + struct.pack("<I", len(answer)) + answer if framed else answer)

        try:
            assert conversation.go_on() is Progress.WAITING
        except (CoreError, OSError):
            return
