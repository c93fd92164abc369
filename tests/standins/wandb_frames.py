"""Print, made by the protobufs of whatever wandb this interpreter has, the frames that preemptd makes by hand.

python wandb_frames.py > tests/data/wandb_frames.json
"""

import json
import struct

from wandb.proto import wandb_server_pb2 as pb

RUN_IDS = ("abc12345", "a", "id-with_every.kind", "übung", "x" * 64, "y" * 200)
CODES = (0, 1, 75, 143, 255, -1)


def frame(request: "pb.ServerRequest") -> str:
    message: bytes = request.SerializeToString()
    return (b"W" + struct.pack("<I", len(message)) + message).hex()


def attach(run_id: str) -> str:
    request = pb.ServerRequest()
    request.inform_attach._info.stream_id = run_id
    request.request_id = "attach"
    return frame(request)


def preempting(run_id: str) -> str:
    request = pb.ServerRequest()
    request.record_publish.preempting.SetInParent()
    request.record_publish._info.stream_id = run_id
    return frame(request)


def ended(run_id: str, code: int) -> str:
    request = pb.ServerRequest()
    request.record_publish.control.mailbox_slot = "exit"
    request.record_publish.exit.exit_code = code
    request.record_publish.exit.SetInParent()
    request.record_publish._info.stream_id = run_id
    request.request_id = "exit"
    return frame(request)


def vectors_of(run_id: str) -> dict[str, str]:
    exits = {f"exit {code}": ended(run_id, code) for code in CODES}
    return {"attach": attach(run_id), "preempting": preempting(run_id), **exits}


def main() -> None:
    vectors = {run_id: vectors_of(run_id) for run_id in RUN_IDS}
    print(json.dumps(vectors, indent=1, sort_keys=True))


if __name__ == "__main__":
    main()
