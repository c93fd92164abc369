"""A process that speaks wandb-core's frames: python wandb_core.py DIRECTORY [--tcp=PORT] [--not-listening] MODE

It listens on DIRECTORY/socket, prints ``ready ADDRESS``, then one JSON line for every whole frame that it reads. MODE:
good answers; uploads never says of a run that was ended that all is uploaded; silent never answers; full has a backlog
without room until it is told ``accept``; breaks closes the first three connections after their first frame; drips
answers one byte at a time; garbage and huge answer nonsense.
Standard input takes orders, each answered by ``did ORDER``: ``open ID`` (its log appears, and it is served),
``file ID`` (only its log appears), ``log ID`` (only its debug log appears), ``serve ID``, ``close ID`` (its transaction
log closes, its debug log stays), ``bad-name`` (a run whose id is not UTF-8 appears), ``accept``. It shares no code
with the program under test.
"""

import contextlib
import json
import os
import queue
import socket
import struct
import sys
import threading
from pathlib import Path

DIRECTORY = Path(sys.argv[1])
MODE = sys.argv[-1]
SERVED: set[str] = set()
FILES: dict[str, list[int]] = {}
ACCEPTING: "queue.SimpleQueue[None]" = queue.SimpleQueue()
BREAKS = [3]
FILLERS: list[socket.socket] = []


def say(line: str) -> None:
    os.write(1, f"{line}\n".encode())


def parse(message: bytes) -> dict[str, str]:
    """Read an attach or a preempting record, byte for byte as wandb's own protobufs write them."""
    if message[:5] == b"\x2a" + message[1:2] + b"\xc2\x0c" + message[4:5]:
        run_id = message[7 : 7 + message[6]].decode()
        rest = message[7 + len(run_id) :]
        assert rest[:1] == b"\x52", message
        assert rest[1] == len(rest) - 2, message
        return {"attach": run_id, "request_id": rest[2:].decode()}
    if message[2:12] == b"\x82\x01\x06\x22\x04exit\x92":
        content, rest = message[14 : 14 + message[13]], message[14 + message[13] :]
        assert message[0] == 0x0A
        assert rest[-6:] == b"\x52\x04exit", message
        return {"exit": rest[5:-6].decode(), "code": content[1:].hex()}
    assert message[:8] == b"\x0a" + message[1:2] + b"\xba\x01\x00\xc2\x0c" + message[7:8], message
    assert message[9] == len(message) - 10, message
    return {"preempting": message[10:].decode()}


def answer(run_id: str, request_id: str) -> bytes:
    info = b"\xc2\x0c" + bytes([len(run_id) + 2]) + b"\x0a" + bytes([len(run_id)]) + run_id.encode()
    attached = b"\x0a\x00" + info
    message = b"\x2a" + bytes([len(attached)]) + attached + b"\x52" + bytes([len(request_id)]) + request_id.encode()
    return b"W" + struct.pack("<I", len(message)) + message


def reply(connection: socket.socket, frame: dict[str, str]) -> None:
    if MODE == "garbage":
        connection.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")
    elif MODE == "huge":
        connection.sendall(b"W\xff\xff\xff\x7f")
    elif MODE == "drips":
        for byte in answer(frame["attach"], frame["request_id"]):
            connection.sendall(bytes([byte]))
    elif MODE != "silent":
        connection.sendall(answer(frame["attach"], frame["request_id"]))


def serve(connection: socket.socket) -> None:
    stream = connection.makefile("rb")
    with contextlib.suppress(OSError), connection, stream:
        while header := stream.read(5):
            magic, size = struct.unpack("<cI", header)
            message = stream.read(size)
            if magic != b"W" or len(message) < size:
                say(json.dumps({"bad": (header + message).hex()}))
                return
            try:
                frame = parse(message)
            except (AssertionError, IndexError):
                say(json.dumps({"bad": message.hex()}))
                return
            say(json.dumps(frame))
            if MODE == "breaks" and BREAKS[0]:
                BREAKS[0] -= 1
                return
            if frame.get("attach") in SERVED:
                reply(connection, frame)
            elif "exit" in frame and MODE != "uploads":
                connection.sendall(b"W\x0b\x00\x00\x00\x52\x04exit\x12\x03\x92\x01\x00")


def listen() -> tuple[socket.socket, str]:
    if port := next((word.removeprefix("--tcp=") for word in sys.argv if word.startswith("--tcp=")), None):
        listener = socket.create_server(("127.0.0.1", int(port)))
        return listener, str(listener.getsockname()[1])
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(DIRECTORY / "socket"))
    listener.listen(0 if MODE == "full" else 128)
    return listener, str(DIRECTORY / "socket")


def fill(address: str) -> None:
    with contextlib.suppress(BlockingIOError):
        while True:
            FILLERS.append(socket.socket(socket.AF_UNIX))
            FILLERS[-1].setblocking(False)
            FILLERS[-1].connect(address)


def accept(listener: socket.socket) -> None:
    if MODE == "full":
        ACCEPTING.get()
        for filler in FILLERS:
            filler.close()
    while True:
        connection, _ = listener.accept()
        threading.Thread(target=serve, args=(connection,), daemon=True).start()


def touch(run_id: str, name: str) -> None:
    path = DIRECTORY / "wandb" / f"run-20260102_030405-{run_id}" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    FILES.setdefault(run_id, []).append(os.open(path, os.O_CREAT | os.O_WRONLY))


def obey(order: str, run_id: str = "") -> None:
    if order in ("open", "log", "file"):
        touch(run_id, "logs/debug-internal.log")
    if order in ("open", "file"):
        touch(run_id, f"run-{run_id}.wandb")
    if order in ("open", "serve"):
        SERVED.add(run_id)
    if order == "close":
        SERVED.discard(run_id)
        os.close(FILES[run_id].pop())
    if order == "bad-name":
        touch("\udcff", "run-\udcff.wandb")
    if order == "accept":
        ACCEPTING.put(None)


def main() -> None:
    if "--not-listening" not in sys.argv:
        listener, address = listen()
        if MODE == "full":
            fill(address)
        threading.Thread(target=accept, args=(listener,), daemon=True).start()
    else:
        address = ""
    say(f"ready {address}")
    for line in sys.stdin:
        obey(*line.split())
        say(f"did {line.strip()}")


main()
