"""What GCE's metadata announce with a date: a graceful stop, and maintenance that is planned."""

import re
from collections.abc import Mapping
from datetime import datetime, timedelta, timezone

from preemptd.errors import ProviderError
from preemptd.notices import Kind, Level, Notice
from preemptd.provider import Observation
from preemptd_providers._deadline_text import BELIEVED_SECONDS, moment_of
from preemptd_providers._gce_server import FLAVOR, INSTANCE, POLL_INTERVAL, KeyWatch, Settings, is_google
from preemptd_providers._metadata import Answer, Client, MetadataWatch

OFF_SECONDS = 60.0
"""Between two looks where graceful shutdown is off, as Google's own agent does it."""
REFUSALS = 3
"""404, 503 and {} stand there while nothing is planned, and also in any server's trouble: so many in a row take an
announcement back."""
STOPPING = frozenset({"PENDING_STOP", "STOPPING"})
RUNNING = frozenset({"UNSPECIFIED", "STOP_STATE_UNSPECIFIED", "UNKNOWN"})

_DURATION = re.compile(r"([0-9]{1,6})s?")
_STATE = re.compile(r"[A-Z_]{1,32}")
_STARTS = ("windowStartTime", "window_start_time", "startTime")
_STATES = ("maintenanceStatus", "maintenance_status")
_NOTHING_YET = "no notifications have been received yet"


class Announced:
    """Whether something is announced, and how often in a row there was but nothing in its place."""

    def __init__(self) -> None:
        self._is_open = False
        self._nothing = 0

    def take(self, announced: bool) -> None:
        self._is_open, self._nothing = announced, 0

    def is_doubtful(self) -> bool:
        """Count a nothing; say whether it is too early to believe it."""
        self._nothing += 1
        return self._is_open and self._nothing < REFUSALS


class StopWatch(KeyWatch):
    """``instance/shutdown-details/stop-state``: graceful shutdown, where it is on, gives up to an hour."""

    secondary = True

    def __init__(self, provider: str, settings: Settings) -> None:
        super().__init__(provider, "shutdown-details/stop-state", settings)
        self._announced = Announced()

    def judge(self, answer: Answer) -> Observation:
        self.interval = POLL_INTERVAL
        if answer.text not in STOPPING | RUNNING:
            raise answer.malformed("not a stop state")
        self._announced.take(answer.text in STOPPING)
        if answer.text in RUNNING:
            return Observation.clear()
        deadline = self._deadline() if answer.text == "PENDING_STOP" else None
        left = None if deadline is None else (deadline - (answer.date or datetime.now(timezone.utc))).total_seconds()
        if left is not None and left > BELIEVED_SECONDS:
            left = None
        return Observation.of(
            Notice(
                provider=self.provider,
                event_id=f"{self.provider}:stop",
                kind=Kind.STOP,
                level=Level.ACT,
                source=f"instance/shutdown-details/stop-state: {answer.text}",
                observed=answer.observed,
                remaining=left,
                deadline=deadline,
                detail=answer.detail,
            )
        )

    def judge_absence(self, answer: Answer) -> Observation:
        if answer.status != 404 or not is_google(answer):
            raise answer.rejected()
        if self._announced.is_doubtful():
            raise answer.rejected(" while a stop is announced")
        self.interval = OFF_SECONDS
        return Observation.clear()

    def _deadline(self) -> datetime | None:
        """Add the time that is granted to that of the request; None: the server does not say."""
        began = moment_of(self._sibling("request-timestamp"), timezone.utc)
        granted = _DURATION.fullmatch(self._sibling("max-duration"))
        try:
            return None if began is None or granted is None else began + timedelta(seconds=int(granted[1]))
        except OverflowError:
            return None

    def _sibling(self, key: str) -> str:
        try:
            answer = self.client.ask("GET", f"{INSTANCE}shutdown-details/{key}", FLAVOR, self.within)
        except ProviderError:
            return ""
        return answer.text if answer.status == 200 and is_google(answer) else ""


class UpcomingWatch(MetadataWatch):
    """``instance/upcoming-maintenance``: what is planned for machines that cannot be migrated, days ahead."""

    notice_period = 3600.0
    secondary = True

    def __init__(self, provider: str, settings: Settings, interval: float, lead: float) -> None:
        super().__init__(f"{provider}:instance/upcoming-maintenance", Client(settings.bases))
        self.interval = interval
        self._provider = provider
        self._within = settings.within
        self._lead = lead
        self._announced = Announced()

    def look(self) -> Observation:
        path = f"{INSTANCE}upcoming-maintenance/?alt=json&recursive=true"
        answer = self.client.ask("GET", path, FLAVOR, self._within)
        if answer.status not in (200, 404, 503):
            raise answer.rejected()
        if not is_google(answer):
            raise answer.malformed("without Metadata-Flavor: Google; something else answers for the metadata server")
        known = _unwrapped(answer) if answer.status == 200 else {}
        if known == {}:
            if self._announced.is_doubtful():
                raise answer.rejected(" while a maintenance is planned")
            return Observation.clear()
        if known is None or str(known.get("error", "")).startswith(_NOTHING_YET):
            notice = None
        else:
            notice = self._notice(known, answer)
        self._announced.take(notice is not None)
        return Observation.clear() if notice is None else Observation.of(notice)

    def _notice(self, known: Mapping[str, object], answer: Answer) -> Notice:
        start = moment_of(_first(known, _STARTS), timezone.utc)
        state = _first(known, _STATES)
        if start is None and not state:
            raise answer.malformed("not an upcoming maintenance")
        now = answer.date or datetime.now(timezone.utc)
        return Notice(
            provider=self._provider,
            event_id=f"{self._provider}:upcoming-maintenance",
            kind=Kind.MAINTENANCE,
            level=Level.ADVISE,
            source=f"instance/upcoming-maintenance: {state if _STATE.fullmatch(state) else 'planned'}",
            observed=answer.observed,
            remaining=None if start is None else (start - now).total_seconds(),
            act_within=None if start is None else self._lead,
            deadline=start,
            detail=answer.detail,
        )


def _unwrapped(answer: Answer) -> Mapping[str, object] | None:
    """Read the document, which some machines show inside of another: ``{"Upcoming maintenance": {...}}``.

    None: there is none.
    """
    if answer.text in ("NONE", '"NONE"'):
        return None
    document = answer.json
    if isinstance(document, dict) and len(document) == 1:
        (inner,) = document.values()
        document = inner if isinstance(inner, dict) and inner else document
    if not isinstance(document, dict):
        raise answer.malformed("not an upcoming maintenance")
    return document


def _first(known: Mapping[str, object], names: tuple[str, ...]) -> str:
    """Return the text under the first of *names* that is there; empty: none is."""
    return next((value for name in names if isinstance(value := known.get(name), str)), "")
