"""A metadata key that is absent until the machine is to be reclaimed, and then holds the time: some clouds have it."""

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from datetime import datetime, timezone
from typing import ClassVar

from pydantic import Field

from preemptd.notices import Kind, Level, Notice
from preemptd.provider import Detection, Found, Machine, Observation, Options, Provider, Surroundings, Watch
from preemptd_providers._deadline_text import BELIEVED_SECONDS
from preemptd_providers._identity import ProvenWatch
from preemptd_providers._metadata import Answer, Client, load_http
from preemptd_providers._variables import checked_base

WITHIN_SECONDS = 2.0


class TerminationTimeOptions(Options):
    """The table of such a provider."""

    interval: float = Field(default=5.0, ge=1.0, le=60.0)
    """Seconds between two looks."""


class TerminationTimeProvider(Provider):
    """A cloud that announces the end of a spot machine by a time at one key; 404 means that there is none."""

    options_type: ClassVar[type[Options]] = TerminationTimeOptions
    endpoint: ClassVar[str]
    """Variable that names another server: ``PREEMPTD_ALIBABA_ENDPOINT``."""
    default_base: ClassVar[str]
    signal_path: ClassVar[str]
    identity_path: ClassVar[str]
    """What only this cloud's own server answers with 200: until it has, a 404 means nothing."""
    notice_seconds: ClassVar[float]
    dmi: ClassVar[Mapping[str, str]] = {}
    """By DMI file: what it says on this cloud."""

    def __init__(self, options: Options, surroundings: Surroundings) -> None:
        super().__init__(options, surroundings)
        value = surroundings.environ.get(self.endpoint, "")
        self.base = checked_base(self.endpoint, value) if value else self.default_base
        wishes = options if isinstance(options, TerminationTimeOptions) else TerminationTimeOptions()
        self._watch = TerminationTimeWatch(self, wishes.interval)

    @staticmethod
    @abstractmethod
    def parse(text: str) -> datetime | None:
        """Read the time that stands at the key; None: it is none."""

    def ask(self, client: Client, path: str, within: float) -> Answer:
        """Ask as this cloud wants to be asked (a token, where there are some)."""
        return client.ask("GET", path, {}, within)

    @classmethod
    def detect(cls, machine: Machine) -> Detection | None:
        if machine.environ.get(cls.endpoint):
            return Detection(Found.ENVIRONMENT, f"{cls.endpoint} is set")
        for name, text in cls.dmi.items():
            if machine.dmi.get(name) == text:
                return Detection(Found.MACHINE, f"DMI {name} is {text}")
        return None

    def prepare(self) -> None:
        load_http()

    def watches(self) -> Sequence[Watch]:
        return (self._watch,)

    def describe(self) -> str:
        return f"{self.base}: {self._watch.heard}"

    def close(self) -> None:
        self._watch.close()


class TerminationTimeWatch(ProvenWatch):
    def __init__(self, cloud: TerminationTimeProvider, interval: float) -> None:
        super().__init__(f"{cloud.name}:termination-time", Client((cloud.base,)), self._identify)
        self.interval = interval
        self.notice_period = cloud.notice_seconds
        self._cloud = cloud

    def look(self) -> Observation:
        answer = self._cloud.ask(self.client, self._cloud.signal_path, WITHIN_SECONDS)
        if answer.status == 404:
            self.identity.check()
            return Observation.clear()
        if answer.status != 200:
            raise answer.rejected()
        deadline = self._cloud.parse(answer.text)
        if deadline is None:
            raise answer.malformed("no time")
        return Observation.of(self._notice(answer, deadline))

    def _identify(self) -> None:
        answer = self._cloud.ask(self.client, self._cloud.identity_path, WITHIN_SECONDS)
        if answer.status != 200 or not answer.text or "<" in answer.text or len(answer.text) > 128:
            raise answer.malformed("no instance id: what else this server says means nothing")

    def _notice(self, answer: Answer, deadline: datetime) -> Notice:
        left = (deadline - (answer.date or datetime.now(timezone.utc))).total_seconds()
        if answer.date is None:  # our own clock may be slow
            left = min(left, self._cloud.notice_seconds)
        return Notice(
            provider=self._cloud.name,
            event_id=f"{self._cloud.name}:terminate",
            kind=Kind.TERMINATE,
            level=Level.ACT,
            source=self._cloud.signal_path.rpartition("/")[2],
            observed=answer.observed,
            remaining=left if left <= BELIEVED_SECONDS else self._cloud.notice_seconds,
            deadline=deadline,
            detail=answer.detail,
        )
