"""The marking or ending of one run in one escalation: connect, ask again, until wandb-core has taken the record."""

import selectors
import time
from collections.abc import Callable

from preemptd.model import Run
from preemptd.runs.core_socket import Conversation, CoreError, Progress
from preemptd.runs.discovery import Core
from preemptd.runs.run_settings import RunSettings

RETRY = 0.15
"""Seconds until a run that has not answered is asked again."""
BACKLOG_RETRY = 0.015
"""Seconds until a core whose backlog is full is tried again."""
DOUBT = 0.05
"""Seconds until a run of which only the debug log is open is asked again; doubles each time, for most have ended."""
DOUBT_ROUNDS = 5
UPLOADED_WITHIN = 2.0
"""Seconds for wandb-core to say that all of a run that was ended is uploaded (50 to 150 ms on an idle loopback)."""


class Attempt:
    """Keeps its conversation in *selector*, with itself as the key's data. Ends the run if there is a *code*."""

    def __init__(self, run: Run, core: Core, selector: selectors.BaseSelector, code: int | None = None) -> None:
        self.run = run
        self.core = core
        self.code = code
        self.taken = False
        """wandb-core has read the exit record."""
        self.due = 0.0
        """time.monotonic() of the next `press()`."""
        self._selector = selector
        self._conversation: Conversation | None = None
        self._rounds = 0

    @property
    def settings(self) -> RunSettings | None:
        """The run's own, as wandb-core answered; None: it has not."""
        return self._conversation.settings if self._conversation is not None else None

    @property
    def certain(self) -> bool:
        return self.run in self.core.certain

    @property
    def hopeless(self) -> bool:
        """Only the debug log speaks for the run, and it never answered: it has ended."""
        return not self.certain and self._rounds > DOUBT_ROUNDS

    @property
    def delays_telling(self) -> bool:
        return self.certain or self._rounds <= 1

    def press(self, now: float) -> Progress:
        """Begin a conversation, or ask once more in the one that goes on. Raises CoreError (of no use) and OSError.

        TAKEN: it is not going to say more.
        """
        if self.taken:
            return Progress.TAKEN
        self.due = now + (RETRY if self.certain else DOUBT * 2**self._rounds)
        if self.core.out_of_reach is not None or self.core.address is None:
            raise CoreError(self.core.out_of_reach or "its wandb-core does not listen")
        if self._conversation is None:
            self._conversation = Conversation(self.core.address, self.run.run_id, self.code)
            progress = self._take(self._conversation.connect)
        else:
            progress = self._take(self._conversation.ask_again)
        if progress is Progress.BACKLOG_FULL:
            self.due = now + BACKLOG_RETRY
        else:
            self._rounds += 1
        return progress

    def go_on(self) -> Progress:
        """Do what the selector says is possible now. Raises as `press()`."""
        return self._take(self._conversation.go_on) if self._conversation is not None else Progress.WAITING

    def hang_up(self) -> None:
        if self._conversation is not None:
            if self._conversation.sock in self._selector.get_map():
                self._selector.unregister(self._conversation.sock)
            self._conversation.close()
            self._conversation = None

    def _take(self, step: Callable[[], Progress]) -> Progress:
        progress = step()
        if progress is Progress.TAKEN:
            self.taken = True
            self.due = time.monotonic() + UPLOADED_WITHIN
            progress = Progress.WAITING
        if progress is Progress.WAITING and self._conversation is not None:
            self._register(self._conversation)
        return progress

    def _register(self, conversation: Conversation) -> None:
        wanted = selectors.EVENT_READ | (selectors.EVENT_WRITE if conversation.wants_to_write else 0)
        if conversation.sock not in self._selector.get_map():
            self._selector.register(conversation.sock, wanted, self)
        elif self._selector.get_key(conversation.sock).events != wanted:
            self._selector.modify(conversation.sock, wanted, self)
