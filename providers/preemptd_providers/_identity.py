"""When a 404 on a signal path means that there is nothing."""

import time
from collections.abc import Callable

from preemptd.provider import Observation, State
from preemptd_providers._metadata import Client, MetadataWatch

TRUSTED_SECONDS = 60.0


class Identity:
    """Only the platform's own server knows who this machine is; who does not may answer 404 to everything."""

    def __init__(self, prove: Callable[[], None]) -> None:
        """Make it; *prove* raises ProviderError where the server does not know."""
        self._prove = prove
        self._proven_at: float | None = None

    def check(self) -> None:
        """Have it proven, unless it was a minute ago at the most, and nothing but "nothing" has come since."""
        now = time.monotonic()
        if self._proven_at is None or now >= self._proven_at + TRUSTED_SECONDS:
            self._proven_at = None
            self._prove()
            self._proven_at = now

    def doubt(self) -> None:
        """Have it proven anew at the next `check`: a server that answers 404 to everything takes back no notice."""
        self._proven_at = None


class ProvenWatch(MetadataWatch):
    """A watch whose "nothing" counts only from a server that knows who this machine is."""

    def __init__(self, name: str, client: Client, prove: Callable[[], None]) -> None:
        """Make it; *prove* is that of `Identity`."""
        super().__init__(name, client)
        self.heard = "not asked yet"
        """What became of the last look, for people."""
        self.identity = Identity(prove)

    def observe(self) -> Observation:
        observation = super().observe()
        if observation.state is not State.CLEAR:  # who was away may have become another one
            self.identity.doubt()
        self.heard = "answers" if observation.error is None else str(observation.error)
        return observation
