"""How a target says who is meant: each way finds the processes that head it."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from preemptd.targets.census import Census

How = Literal["pid", "pidfile", "unit", "match", "runs", "link"]
State = Literal["running", "waiting", "gone"]


@dataclass(frozen=True, slots=True)
class Found:
    """What one look has found of a target."""

    pids: Sequence[int] = ()
    """They and what is below them belong to it."""
    why: str = ""
    """What is to be known of them; without any: why there are none."""
    refused: bool = False
    """It is not as it has to be: somebody should mend it."""
    for_ever: bool = False
    """It will not come back."""


class Way(Protocol):
    """One way, for one target."""

    @property
    def how(self) -> How: ...

    @property
    def only_heads(self) -> bool:
        """Say whether what it finds is all: what is below is not its own, nor what has left it."""

    def find(self, census: Census) -> Found: ...

    def close(self) -> None: ...
