"""Many waits at once: SLURM's timers take half a minute, and no processor time (README.md has the pattern)."""

import threading
from collections.abc import Callable, Hashable, Iterable
from concurrent.futures import Future
from typing import Generic, TypeVar

import pytest

Case = TypeVar("Case", bound=Hashable)
Told = TypeVar("Told")


class SideBySide(Generic[Case, Told]):
    """Runs `story(case)` for each case in a thread of its own, all at once; tests ask for what theirs told."""

    def __init__(self, story: Callable[[Case], Told], cases: Iterable[Case]) -> None:
        self._futures: dict[Case, Future[Told]] = {case: Future() for case in cases}
        for case, future in self._futures.items():
            # A daemon: where the tests stop at the first failure, nobody waits for the other stories.
            threading.Thread(target=_tell, args=(story, case, future), name=f"{case}", daemon=True).start()

    def __getitem__(self, case: Case) -> Told:
        """Wait for the story of *case*; what failed in it fails here."""
        return self._futures[case].result()


def _tell(story: Callable[[Case], Told], case: Case, future: "Future[Told]") -> None:
    try:
        future.set_result(story(case))
    except BaseException as error:  # noqa: BLE001  # whoever asks for the result gets it
        future.set_exception(error)


def cases(request: pytest.FixtureRequest, kind: type[Case], parameter: str = "case") -> list[Case]:
    """List, once each, the values of *parameter* in the tests of this module that were chosen to run."""
    found: dict[Case, None] = {}
    for item in request.session.items:
        if isinstance(item, pytest.Function) and item.module is request.module and hasattr(item, "callspec"):
            value = item.callspec.params.get(parameter)
            if isinstance(value, kind):
                found[value] = None
    return list(found)
