"""EC2: spot interruptions, and what else the instance metadata service (IMDSv2) announces."""

import time
from collections.abc import Sequence
from datetime import datetime, timezone
from typing import ClassVar

from pydantic import BaseModel, Field, ValidationError, model_validator

from preemptd.errors import ProviderError
from preemptd.notices import Kind, Level, Notice
from preemptd.provider import Detection, Found, Machine, Observation, Options, Provider, Surroundings, Watch
from preemptd_providers._deadline_text import BELIEVED_SECONDS, rfc3339
from preemptd_providers._ec2_seldom import GOING, Leaving, LifecycleWatch, RebalanceWatch, ScheduledWatch
from preemptd_providers._identity import ProvenWatch
from preemptd_providers._imds import ENDPOINT, METADATA, Imds, Settings, is_true
from preemptd_providers._metadata import Answer, MetadataWatch, load_http

INSTANCE_ACTION = METADATA + "spot/instance-action"
TERMINATION_TIME = METADATA + "spot/termination-time"

NOTICE_SECONDS = 120.0  # what AWS announces for terminate and stop
TERMINATION_TIME_SECONDS = 5.0  # the pause that AWS recommends between two looks at it
PROBE_SECONDS = 0.9

_KINDS = {"terminate": Kind.TERMINATE, "stop": Kind.STOP, "hibernate": Kind.HIBERNATE}


class Ec2Options(Options):
    """The table ``[providers.ec2]``."""

    interval: float = Field(default=1.0, ge=0.1, le=30.0)
    """Seconds between two looks for an interruption."""
    scheduled_interval: float = Field(default=60.0, ge=1.0, le=3600.0)
    """Seconds between two looks for maintenance that is planned."""
    lifecycle: bool = False
    """What the Auto Scaling group wants of this instance is heard."""
    lifecycle_states: tuple[Leaving, ...] = GOING
    """The target states that are a notice."""
    lifecycle_s: float | None = Field(default=None, gt=0, le=48 * 3600)
    """Seconds that the group's termination hook gives. None: ``--grace``."""

    @model_validator(mode="after")
    def _is_of_use(self) -> "Ec2Options":
        for name in ("lifecycle_s", "lifecycle_states"):
            if name in self.model_fields_set and not self.lifecycle:
                raise ValueError(f"{name} says nothing without lifecycle = true")
        if not self.lifecycle_states:  # not min_length, which would be a second error of each word that is none
            raise ValueError("lifecycle_states is empty: leave it out, or lifecycle")
        return self


class InstanceAction(BaseModel, strict=True, defer_build=True):
    """The document at ``spot/instance-action``."""

    action: str = Field(pattern=r"^[A-Za-z][A-Za-z_-]{0,31}$")
    time: str | None = None


class SpotWatch(ProvenWatch):
    """``spot/instance-action``, and ``spot/termination-time`` where that knows more. Both tell of one event."""

    notice_period = NOTICE_SECONDS

    def __init__(self, imds: Imds, provider: str, interval: float) -> None:
        super().__init__(f"{provider}:spot/instance-action", imds.client, imds.identify)
        self.interval = interval
        self._imds = imds
        self._provider = provider
        self._termination_time_due = 0.0
        self._announced = False

    def look(self) -> Observation:
        answer = self._imds.get(INSTANCE_ACTION)
        if answer.status == 200:
            return self._announce(parse_action(answer, self._provider))
        if answer.status != 404:
            raise answer.rejected()
        notice = self._by_termination_time()
        if notice is not None:
            return self._announce(notice)
        self.identity.check()
        self._announced = False
        return Observation.clear()

    def _announce(self, notice: Notice) -> Observation:
        self._announced = True
        return Observation.of(notice)

    def _by_termination_time(self) -> Notice | None:
        """Look there every 5 s; each time while a notice is open, so that it is not revoked in between."""
        now = time.monotonic()
        if now < self._termination_time_due and not self._announced:
            return None
        self._termination_time_due = now + TERMINATION_TIME_SECONDS
        try:
            answer = self._imds.get(TERMINATION_TIME)
        except ProviderError:
            if self._announced:
                raise
            return None
        if answer.status == 200:
            return parse_termination_time(answer, self._provider)  # AWS: "not a time" while the instance is not marked
        if answer.status != 404 and self._announced:
            raise answer.rejected()
        return None


class Ec2(Provider):
    """An EC2 instance. Spot or not: who is not interrupted is not told, so the life cycle is never asked for."""

    name: ClassVar[str] = "ec2"
    options_type: ClassVar[type[Options]] = Ec2Options

    def __init__(self, options: Options, surroundings: Surroundings) -> None:
        super().__init__(options, surroundings)
        wishes = options if isinstance(options, Ec2Options) else Ec2Options()
        self._settings = settings = Settings.of(surroundings.environ)
        self._imds = Imds(settings)
        # A thread for each watch, so a conversation for each: one that hangs keeps no other waiting.
        self._watches: list[MetadataWatch] = [
            SpotWatch(self._imds, self.name, wishes.interval),
            RebalanceWatch(Imds(settings), self.name),
            ScheduledWatch(Imds(settings), self.name, wishes.scheduled_interval, surroundings.lead),
        ]
        if wishes.lifecycle:
            self._watches.append(LifecycleWatch(Imds(settings), self.name, wishes.lifecycle_states, wishes.lifecycle_s))

    @classmethod
    def detect(cls, machine: Machine) -> Detection | None:
        if is_true(machine.environ, "AWS_EC2_METADATA_DISABLED"):
            return None
        if machine.environ.get(ENDPOINT):
            return Detection(Found.ENVIRONMENT, f"{ENDPOINT} is set")
        for name in ("sys_vendor", "bios_vendor", "board_vendor"):
            if machine.dmi.get(name) == "Amazon EC2":
                return Detection(Found.MACHINE, f"DMI {name} is Amazon EC2")
        if machine.dmi.get("bios_version", "").lower().endswith(".amazon"):
            return Detection(Found.MACHINE, "DMI bios_version is Amazon's (Xen)")
        return None

    def prepare(self) -> None:
        load_http()

    def probe(self) -> Detection | None:
        if self._settings.disabled:
            self._imds.heard = "not asked: AWS_EC2_METADATA_DISABLED is set"
            return None
        asked = Imds(self._settings)
        self._imds.heard = "asked for a token"
        try:
            self._imds.heard = asked.fetch_token(PROBE_SECONDS)
        except ProviderError as problem:
            self._imds.heard = str(problem)
            return None
        finally:
            asked.client.close()
        if self._imds.heard != "IMDSv2":
            self._imds.heard = (
                "something answers there, but gives no IMDSv2 token: not EC2, or its metadata are disabled"
            )
            return None
        return Detection(Found.PROBE, f"{asked.client.base} gave an IMDSv2 token")

    def watches(self) -> Sequence[Watch]:
        return self._watches

    def describe(self) -> str:
        return f"{self._imds.client.base}: {self._imds.heard}"

    def close(self) -> None:
        for watch in self._watches:
            watch.close()


def parse_action(answer: Answer, provider: str) -> Notice:
    """Read the document at ``spot/instance-action``; raises ProviderError for anything that is not one."""
    try:
        document = InstanceAction.model_validate_json(answer.body)
    except ValidationError:
        raise answer.malformed("not an instance action") from None
    action = document.action.lower()
    deadline = rfc3339(document.time or "")
    kind = _KINDS.get(action)
    if kind is None and deadline is None:
        raise answer.malformed("neither a known action nor a time")
    final = kind is Kind.HIBERNATE
    return Notice(
        provider=provider,
        event_id=f"{provider}:{action}",
        kind=kind or Kind.PREEMPT,
        level=Level.ACT,
        source="spot/instance-action",
        observed=answer.observed,
        remaining=0.0 if final else _remaining(answer, deadline),
        final=final,
        deadline=deadline,
        detail=answer.detail,
    )


def parse_termination_time(answer: Answer, provider: str) -> Notice | None:
    """Read ``spot/termination-time``; None: what stands there is not a time, as AWS allows."""
    deadline = rfc3339(answer.text)
    if deadline is None:
        return None
    return Notice(
        provider=provider,
        event_id=f"{provider}:{Kind.TERMINATE}",
        kind=Kind.TERMINATE,
        level=Level.ACT,
        source="spot/termination-time",
        observed=answer.observed,
        remaining=_remaining(answer, deadline),
        deadline=deadline,
        detail=answer.detail,
    )


def _remaining(answer: Answer, deadline: datetime | None) -> float:
    """Seconds to *deadline* by the server's clock. Ours may be wrong: without the server's, at most what AWS gives."""
    if deadline is None:
        return NOTICE_SECONDS
    if answer.date is not None:
        left = (deadline - answer.date).total_seconds()
        return left if left <= BELIEVED_SECONDS else NOTICE_SECONDS
    return min(NOTICE_SECONDS, (deadline - datetime.now(timezone.utc)).total_seconds())
