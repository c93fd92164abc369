"""A metadata server that speaks like EC2's."""

import json
import secrets
import time
from collections.abc import Mapping
from datetime import datetime, timezone

from preemptd.rehearsal.serving import NOT_FOUND, Announcement, MetadataServer, Reply, Request

SPOT = "spot/instance-action", "spot/termination-time"
REBALANCE = "events/recommendations/rebalance"
SCHEDULED = "events/maintenance/scheduled"
LIFECYCLE = "autoscaling/target-lifecycle-state"
KEYS = {"rebalance": (REBALANCE,), "scheduled": (SCHEDULED,), "lifecycle": (LIFECYCLE,)}
"""Event to the keys that show it; every other one is an interruption of a spot instance."""
LASTS = 1000.0
"""Seconds from the begin of a scheduled event to its end."""


class Ec2Server(MetadataServer):
    """IMDSv2 as EC2 speaks it, IMDSv1 too if the instance allows it."""

    keeps_connections = False

    def __init__(
        self, announcement: Announcement, address: str = "127.0.0.1", port: int = 0, allow_v1: bool = False
    ) -> None:
        super().__init__(announcement, address, port)
        self.allow_v1 = allow_v1
        self._tokens: dict[str, float] = {}
        self.event = "terminate"
        """What it is, or else the action of a spot interruption."""
        self.scheduled: list[object] = []
        """Scheduled events besides the one that is announced, as they stand."""
        self.fields: dict[str, object] = {}
        """What is different in the scheduled event that is announced."""
        self.lifecycle: tuple[str, str] | None = None
        """Target state without and with an announcement; None: no Auto Scaling group has this instance."""

    def forget_tokens(self) -> None:
        """Be as a metadata service that restarted."""
        self._tokens.clear()

    def answer(self, request: Request) -> Reply:
        if request.method == "PUT":
            return self._token(request)
        if request.method not in ("GET", "HEAD"):
            return self._reply(405)
        token = request.headers.get("x-aws-ec2-metadata-token")
        allowed = self._tokens.get(token, 0.0) > time.monotonic() if token else self.allow_v1
        if not allowed:
            return self._reply(401)
        return self._get(request.path)

    def _token(self, request: Request) -> Reply:
        if request.path != "/latest/api/token" or "x-forwarded-for" in request.headers:
            return self._reply(403)
        ttl = request.headers.get("x-aws-ec2-metadata-token-ttl-seconds", "")
        if not (ttl.isascii() and ttl.isdigit() and 1 <= int(ttl) <= 21600):
            return self._reply(400)
        token = secrets.token_urlsafe(40) + "=="
        self._tokens[token] = time.monotonic() + int(ttl)
        return self._reply(200, token.encode(), {"X-aws-ec2-metadata-token-ttl-seconds": ttl})

    def _get(self, path: str) -> Reply:
        key = path.removeprefix("/latest/meta-data/")
        if key in KEYS.get(self.event, SPOT):
            self.announcement.looked()
        value = self._value(key)
        return self._reply(404, NOT_FOUND) if value is None else self._reply(200, value.encode())

    def _value(self, key: str) -> str | None:
        """Return what is at *key* now; None: there is no such key."""
        deadline = self.announcement.deadline
        if key in SPOT:
            return None if deadline is None or self.event in KEYS else self._interruption(key, deadline)
        if key == SCHEDULED:
            return json.dumps([*self.scheduled, *self._maintenance()])
        if key == REBALANCE and self.event == "rebalance" and deadline is not None:
            return json.dumps({"noticeTime": self.time(deadline - self.announcement.grace)})
        if key == LIFECYCLE:
            return self._target_state(announced=self.event == "lifecycle" and deadline is not None)
        known = {
            "instance-id": "i-0rehearsal0preempt",
            "instance-life-cycle": "spot",
            "instance-type": "p5.48xlarge",
        }
        return known.get(key)

    def _interruption(self, key: str, deadline: float) -> str | None:
        if key == "spot/instance-action":
            return json.dumps({"action": self.event, "time": self.time(deadline)})
        return self.time(deadline) if self.event == "terminate" else None

    def _maintenance(self) -> list[object]:
        """Describe the reboot that is announced, or was: EC2 keeps showing what it has canceled."""
        deadline = self.announcement.deadline or self.announcement.withdrawn
        if self.event != "scheduled" or deadline is None:
            return []
        is_on = self.announcement.deadline is not None
        return [
            {
                "NotBefore": _date(deadline),
                "Code": "system-reboot",
                "Description": "scheduled reboot" if is_on else "[Canceled] scheduled reboot",
                "EventId": "instance-event-0d59937288b749b32",
                "NotAfter": _date(deadline + LASTS),
                "State": "active" if is_on else "canceled",
                **self.fields,
            }
        ]

    def _target_state(self, *, announced: bool) -> str | None:
        states = self.lifecycle or (("InService", "Terminated") if self.event == "lifecycle" else None)
        return None if states is None else states[announced]

    def time(self, deadline: float) -> str:
        return datetime.fromtimestamp(deadline, timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")

    def _reply(self, status: int, body: bytes = b"", headers: Mapping[str, str] | None = None) -> Reply:
        kind = "text/html" if status == 404 else "text/plain"
        return Reply(status, body, {"Content-Type": kind, "Server": "EC2ws", "Connection": "close", **(headers or {})})


def _date(moment: float) -> str:
    return datetime.fromtimestamp(moment, timezone.utc).strftime("%d %b %Y %H:%M:%S GMT")
