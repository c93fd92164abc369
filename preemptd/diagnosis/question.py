"""Asks wandb-cores whether they serve a run: the first half of a marking, which writes nothing to the run."""

import select
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass

from preemptd.model import Run
from preemptd.runs.core_socket import Address, Conversation, CoreError, Progress

ASK_AGAIN = 0.15
"""Seconds after which a run is asked for again: it may be known to wandb-core only a moment after its files are."""


@dataclass(frozen=True, slots=True)
class Answer:
    why_not: str | None
    """None: the run is served, so a mark would be taken."""
    ms: float | None = None


class Questions:
    """All runs are asked for at the same time."""

    def __init__(self, addresses: Mapping[Run, Address]) -> None:
        self.answers: dict[Run, Answer] = {}
        self._addresses = addresses
        self._pending: dict[Run, Conversation] = {}
        self._connected: set[Run] = set()

    def ask(self, limit: float) -> Mapping[Run, Answer]:
        """Return the answers; what has none after *limit* seconds is said to have none."""
        with ExitStack() as stack:
            for run, address in self._addresses.items():
                self._begin(run, address, stack)
            self._go_round(limit)
            for run in self._pending:
                self.answers[run] = Answer(f"its wandb-core gave no answer within {limit:g} s")
        return self.answers

    def _begin(self, run: Run, address: Address, stack: ExitStack) -> None:
        try:
            conversation = Conversation(address, run.run_id, only_ask=True)
        except CoreError as error:
            self.answers[run] = Answer(str(error))
        else:
            self._pending[run] = conversation
            stack.callback(conversation.close)

    def _go_round(self, limit: float) -> None:
        began = now = due = time.monotonic()
        while self._pending and now < began + limit:
            again = now >= due
            if again:
                due = now + ASK_AGAIN
            for run in list(self._pending):
                if again or run in self._connected:
                    self._step(run, began, again=again)
            self._wait(min(due, began + limit) - time.monotonic())
            now = time.monotonic()

    def _step(self, run: Run, began: float, *, again: bool) -> None:
        conversation = self._pending[run]
        try:
            progress = conversation.ask_again() if again else conversation.go_on()
        except PermissionError as error:
            self._settle(run, Answer(f"its wandb-core lets us not in: {error.strerror}"))
        except OSError as error:
            self._settle(run, Answer(f"its wandb-core cannot be reached: {error.strerror}"))
        except CoreError as error:
            self._settle(run, Answer(str(error)))
        else:
            if progress is Progress.SERVED:
                self._settle(run, Answer(None, round(1000 * (time.monotonic() - began), 1)))
            elif progress is Progress.WAITING:
                self._connected.add(run)

    def _settle(self, run: Run, answer: Answer) -> None:
        self.answers[run] = answer
        self._pending.pop(run)
        self._connected.discard(run)

    def _wait(self, seconds: float) -> None:
        """Wait until one of them has something to say. What is not connected (backlog full) is tried when it is due."""
        poll = select.poll()
        for conversation in self._talking():
            wanted = select.POLLIN | (select.POLLOUT if conversation.wants_to_write else 0)
            poll.register(conversation.sock, wanted)
        if self._pending:
            poll.poll(max(0.0, seconds) * 1000)

    def _talking(self) -> Iterator[Conversation]:
        return (self._pending[run] for run in self._connected)
