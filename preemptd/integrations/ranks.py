"""The processes of one training, who save and load together: each call is made by all of them, in the same order."""

from collections.abc import Callable
from typing import Any, TypeVar

import torch.distributed as dist

from preemptd.integrations.manifest import CheckpointError

T = TypeVar("T")


class Ranks:
    """Those of the process group that is there now; without one this process is all of them."""

    def __init__(self) -> None:
        self.world = _world()
        self.size: int = 1 if self.world is None else dist.get_world_size()
        self.rank: int = 0 if self.world is None else dist.get_rank()
        self._group: Any = None
        if self.size > 1 and dist.get_backend() != "gloo":
            # NCCL would need each of our messages on a GPU, behind the work that is queued there.
            self._group = dist.new_group(backend="gloo")

    @property
    def stale(self) -> bool:
        """Say whether the process group is another one now."""
        return self.world is not _world()

    def together(self, act: Callable[[], T]) -> list[T]:
        """Do *act* on each rank; return what it returned on each of them.

        Raises what *act* raised here; CheckpointError where it raised on another rank only.
        """
        done: T | None = None
        failure: Exception | None = None
        try:
            done = act()
        except Exception as error:  # noqa: BLE001  # the others wait for us: they are to hear of it first
            failure = error
        answers = self._gather((done, None if failure is None else f"{type(failure).__name__}: {failure}"))
        if failure is not None:
            raise failure
        for rank, (_, problem) in enumerate(answers):
            if problem is not None:
                raise CheckpointError(f"rank {rank} failed: {problem}")
        return [answer for answer, _ in answers]

    def first(self, act: Callable[[], T]) -> T:
        """Do *act* on rank 0 alone; return there and everywhere what it returned. Raises as `together` does."""
        return self.together(lambda: act() if self.rank == 0 else None)[0]  # type: ignore[return-value]  # rank 0's

    def _gather(self, answer: tuple[Any, str | None]) -> list[tuple[Any, str | None]]:
        if self.size == 1:
            return [answer]
        answers: list[Any] = [None] * self.size
        dist.all_gather_object(answers, answer, group=self._group)
        return answers


def _world() -> object:
    return dist.group.WORLD if dist.is_available() and dist.is_initialized() else None
