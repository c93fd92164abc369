"""What peers may say over the link, who may say it, and what the daemon says to them (docs/link.md)."""

import json
import time
from collections.abc import Mapping
from enum import Enum
from functools import cache
from types import MappingProxyType
from typing import Annotated, Literal, TypeAlias

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from preemptd.errors import PreemptdError
from preemptd.notices import Kind

VERSION = 1
LINE_LIMIT = 8 * 1024
"""Bytes of the longest line that a peer may send."""
ANSWER_LIMIT = 64 * 1024
"""Bytes of the longest line that the daemon sends: a status names every process."""

Message: TypeAlias = Mapping[str, object]
"""What the daemon sends: ``type`` and its fields; `encode` adds the version."""


class ProtocolError(PreemptdError):
    """A line is not one that this protocol knows; the text goes back to who sent it."""


class Who(Enum):
    """ANYONE: whom the socket's mode lets in. SUBSCRIBER: registered before. OWNER: the daemon's own uid, or root."""

    ANYONE = "anyone"
    SUBSCRIBER = "subscriber"
    OWNER = "owner"


ALLOWED: Mapping[str, Who] = MappingProxyType(
    {
        "register": Who.ANYONE,  # for itself alone: the pid is compared with SO_PEERCRED
        "seen": Who.SUBSCRIBER,
        "saving": Who.SUBSCRIBER,
        "saved": Who.SUBSCRIBER,
        "done": Who.SUBSCRIBER,
        "undone": Who.SUBSCRIBER,
        "status": Who.OWNER,
        "notify": Who.OWNER,
    }
)


class _Line(BaseModel):
    """Unknown fields are ignored: a newer client may say more than this daemon understands."""

    model_config = ConfigDict(frozen=True, extra="ignore", defer_build=True)

    v: Literal[1]

    def fields(self) -> Message:
        """Return what came with the verb; what was not given is left out."""
        return self.model_dump(exclude={"v", "verb"}, exclude_none=True)


class Register(_Line):
    verb: Literal["register"]
    pid: int = Field(gt=0, lt=2**31)
    """The peer's own pid, as it sees it."""
    role: Literal["trainer", "wrapper"] = "trainer"


class Seen(_Line):
    verb: Literal["seen"]
    event_id: str = Field(min_length=1, max_length=4096)


class Saving(_Line):
    verb: Literal["saving"]


class Saved(_Line):
    verb: Literal["saved"]
    step: int | None = Field(default=None, ge=-(2**63), lt=2**63)
    path: str | None = Field(default=None, max_length=4096)


class Done(_Line):
    verb: Literal["done"]


class Undone(_Line):
    verb: Literal["undone"]


class Status(_Line):
    verb: Literal["status"]


class Notify(_Line):
    verb: Literal["notify"]
    deadline_s: float | None = Field(default=None, ge=0, le=30 * 86400, allow_inf_nan=False)
    """Seconds left from now on; None: ``--grace``, or the default."""
    reason: str = Field(default="", max_length=512)
    kind: Kind = Kind.PREEMPT


Said: TypeAlias = Register | Seen | Saving | Saved | Done | Undone | Status | Notify


@cache
def _said() -> TypeAdapter[Said]:
    return TypeAdapter(Annotated[Said, Field(discriminator="verb")])


def parse(line: bytes) -> Said:
    """Read one line of a peer.

    Raises:
        ProtocolError: it is no JSON, no known verb, or a field is missing or out of bounds.
    """
    try:
        return _said().validate_json(line)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        raise ProtocolError(f"{where or 'line'}: {first['msg']}"[:200]) from None


def encode(message: Message) -> bytes:
    """Make one line of *message*; one that is longer than the limit becomes an error."""
    line = json.dumps({"v": VERSION, **message}, default=str).encode() + b"\n"
    return line if len(line) <= ANSWER_LIMIT else encode(error("the answer is too long for the link"))


def registered(version: str, notices: list[Message], attempt: int, resumed: bool) -> Message:
    """Answer a registration. By ``mono`` the peer sees whether its CLOCK_MONOTONIC is ours (time namespaces)."""
    return {
        "type": "registered",
        "version": version,
        "notices": notices,
        "attempt": attempt,
        "resumed": resumed,
        "mono": time.monotonic(),
    }


def with_deadline(message: Message) -> Message:
    """Add ``mono`` to a notice that says only ``remaining``: CLOCK_MONOTONIC when that is used up."""
    remaining = message.get("remaining")
    if "mono" in message or not isinstance(remaining, int | float):
        return message
    return {**message, "mono": time.monotonic() + remaining}


def as_of_now(message: Message) -> Message:
    """Compute ``remaining`` of a notice anew: it was right when the notice was given to the link."""
    mono = message.get("mono")
    return {**message, "remaining": mono - time.monotonic()} if isinstance(mono, int | float) else message


def error(text: str) -> Message:
    return {"type": "error", "text": text}
