"""What wandb-core answers to an attach: the settings of the run, as an SDK that attaches would take them over."""

from contextlib import suppress
from dataclasses import dataclass, field

from preemptd.runs.wire import fields

_SETTINGS = 1  # ServerInformAttachResponse
_VALUE = 1  # google.protobuf.StringValue
_EXECUTABLE, _API_KEY, _BASE_URL, _ENTITY, _PROJECT = 13, 55, 57, 69, 97  # Settings; the same in 0.19.11 to 0.31.0


@dataclass(frozen=True, slots=True)
class RunSettings:
    """Empty where they do not say."""

    entity: str = ""
    project: str = ""
    base_url: str = ""
    executable: str = ""
    """sys.executable of the process that called wandb.init."""
    api_key: str = field(default="", repr=False)


def parse(answer: bytes) -> RunSettings:
    """Read what is understood of *answer*, a ServerInformAttachResponse; nothing of one that cannot be parsed."""
    with suppress(ValueError):
        settings = dict(fields(answer)).get(_SETTINGS)
        if isinstance(settings, bytes):
            found = dict(fields(settings))
            names = (_ENTITY, _PROJECT, _BASE_URL, _EXECUTABLE, _API_KEY)
            return RunSettings(*(_text(found.get(name)) for name in names))
    return RunSettings()


def _text(wrapped: int | bytes | None) -> str:
    value = dict(fields(wrapped)).get(_VALUE, b"") if isinstance(wrapped, bytes) else b""
    return value.decode(errors="replace") if isinstance(value, bytes) else ""
