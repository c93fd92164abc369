"""A metadata server that speaks like GCE's."""

import hashlib
import json
from collections.abc import Mapping
from datetime import datetime, timezone
from types import MappingProxyType

from preemptd.rehearsal.serving import NOT_FOUND, Announcement, MetadataServer, Reply, Request

INSTANCE = "/computeMetadata/v1/instance/"
STOP_STATE = "shutdown-details/stop-state"
UPCOMING = "upcoming-maintenance"
ANNOUNCED: Mapping[str, tuple[str, str, str]] = MappingProxyType(
    {
        "preempted": ("preempted", "FALSE", "TRUE"),
        "terminate": ("maintenance-event", "NONE", "TERMINATE_ON_HOST_MAINTENANCE"),
        "migrate": ("maintenance-event", "NONE", "MIGRATE_ON_HOST_MAINTENANCE"),
        "stop": (STOP_STATE, "UNSPECIFIED", "PENDING_STOP"),
    }
)
"""Event to the key that shows it, and its value without and with an announcement. The other one is `UPCOMING`."""
WINDOW = 4 * 3600.0
"""Seconds in which a planned maintenance begins."""


class GceServer(MetadataServer):
    """GCE's metadata server: values with an ETag, and GETs that wait for a change."""

    def __init__(self, announcement: Announcement, address: str = "127.0.0.1", port: int = 0) -> None:
        super().__init__(announcement, address, port)
        self.announced: dict[str, tuple[str | None, str | None]] = {}
        """Key below instance/ to its value without and with an announcement; None: there is no such key."""
        self.event = "preempted"

    @property
    def event(self) -> str:
        return self._event

    @event.setter
    def event(self, word: str) -> None:
        self._event = word
        self.announced = {}
        if word != "upcoming":
            key, *values = ANNOUNCED[word]
            self.announced[key] = values[0], values[1]

    def answer(self, request: Request) -> Reply:
        if request.headers.get("metadata-flavor") != "Google" or "x-forwarded-for" in request.headers:
            return self._reply(403, b"Missing Metadata-Flavor:Google header.")
        if request.method not in ("GET", "HEAD"):
            return self._reply(405)
        if request.path == "/":
            return self._reply(200, b"computeMetadata/\n")
        if request.path == INSTANCE.rstrip("/"):
            return self._reply(301, b"", {"Location": INSTANCE})
        return self._get(request.path.removeprefix(INSTANCE), request.query)

    def _get(self, key: str, query: Mapping[str, str]) -> Reply:
        key = UPCOMING if key == f"{UPCOMING}/" else key
        try:
            limit = float(query.get("timeout_sec", "3600"))
        except ValueError:
            return self._reply(400)
        if key in self.announced or (key == UPCOMING and self.event == "upcoming"):
            self.announcement.looked()
        if query.get("wait_for_change") == "true" and self.value(key) is not None:
            self.wait(key, query.get("last_etag"), limit)
        value = self.value(key)
        if value is None:
            return self._reply(503, b"") if key == UPCOMING else self._reply(404, NOT_FOUND)
        return self._show(value, as_json=query.get("alt") == "json" and key != UPCOMING)

    def value(self, key: str) -> str | None:
        """Return the value of *key* below instance/ now; None: it has none."""
        deadline = self.announcement.deadline
        if key in self.announced:
            return self.announced[key][deadline is not None]
        if key == UPCOMING:
            return None if deadline is None or self.event != "upcoming" else json.dumps(_window(deadline))
        if key.startswith("shutdown-details/"):
            return self._stop(key.removeprefix("shutdown-details/"))
        fixed = {
            "id": "1234567890123456789",
            "preempted": "FALSE",
            "maintenance-event": "NONE",
            "scheduling/preemptible": "TRUE",
        }
        return fixed.get(key)

    def _stop(self, detail: str) -> str | None:
        """Return a detail of the stop that is under way; None: none is, or this machine stops without grace."""
        deadline = self.announcement.deadline
        if deadline is None or self.announced.get(STOP_STATE, (None, None))[1] is None:
            return None
        most = max(1, round(self.announcement.grace))
        details = {"target-state": "STOPPED", "max-duration": str(most), "request-timestamp": _time(deadline - most)}
        return details.get(detail)

    def etag(self, value: str) -> str:
        return hashlib.sha256(value.encode()).hexdigest()[:16]

    def wait(self, key: str, last_etag: str | None, limit: float) -> None:
        """Wait until the value of *key* has another ETag, at most *limit* seconds."""
        before = self.etag(self.value(key) or "") if last_etag is None else last_etag
        announcement = self.announcement
        with announcement.changed:
            announcement.changed.wait_for(
                lambda: announcement.closed or self.etag(self.value(key) or "") != before, max(0.0, limit)
            )

    def _show(self, value: str, as_json: bool) -> Reply:
        body, kind = (json.dumps(value), "application/json") if as_json else (value, "application/text")
        return self._reply(200, body.encode(), {"ETag": self.etag(value), "Content-Type": kind})

    def _reply(self, status: int, body: bytes = b"", headers: Mapping[str, str] | None = None) -> Reply:
        return Reply(status, body, {"Metadata-Flavor": "Google", "Server": "Metadata Server for VM", **(headers or {})})


def _window(begins: float) -> Mapping[str, str]:
    """Describe a maintenance that has a date; a boolean is text there."""
    return {
        "canReschedule": "true",
        "latestWindowStartTime": _time(begins + 6 * WINDOW),
        "maintenanceStatus": "PENDING",
        "type": "SCHEDULED",
        "windowEndTime": _time(begins + WINDOW),
        "windowStartTime": _time(begins),
    }


def _time(moment: float) -> str:
    return datetime.fromtimestamp(moment, timezone.utc).isoformat(timespec="milliseconds").replace("+00:00", "Z")
