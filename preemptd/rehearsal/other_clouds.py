"""Metadata servers that speak like Azure's, Alibaba's, Tencent's and BytePlus'."""

import email.utils
import json
import secrets
from collections.abc import Mapping
from datetime import datetime, timedelta, timezone

from preemptd.rehearsal.serving import Announcement, MetadataServer, Reply, Request

NAME = "rehearsal"
"""Of the virtual machine."""


class AzureServer(MetadataServer):
    """Instance metadata and Scheduled Events, in the versions that are asked for."""

    def __init__(self, announcement: Announcement, address: str = "127.0.0.1", port: int = 0) -> None:
        super().__init__(announcement, address, port)
        self.event = "preempt"
        self.fields: dict[str, object] = {"EventStatus": "Scheduled", "Resources": [NAME]}
        """What the event that is announced says besides its id, its type and its time."""
        self.events: list[object] = []
        """Others, as they stand, before and after that."""
        self.approved: list[str] = []
        """Ids of events that were let begin."""

    def answer(self, request: Request) -> Reply:
        if request.headers.get("metadata") != "true" or "x-forwarded-for" in request.headers:
            return _json(400, {"error": "Bad request. Required metadata header not specified"})
        if request.path == "/metadata/instance/compute" and request.query.get("api-version") == "2021-02-01":
            return _json(200, {"name": NAME, "vmId": "5c08b38e-4d57-4c23-ac45-aca61037f084"})
        if request.path != "/metadata/scheduledevents":
            return _json(404, {"error": "Not found"})
        if request.query.get("api-version") != "2020-07-01":
            return _json(400, {"error": "Bad request. api-version is invalid or was not specified in the request."})
        if request.method == "POST":
            return self._approve(request)
        self.announcement.looked()
        return _json(200, {"DocumentIncarnation": 1, "Events": [*self.events, *self._announced()]})

    def _announced(self) -> list[object]:
        deadline = self.announcement.deadline
        if deadline is None:
            return []
        not_before = email.utils.formatdate(deadline, usegmt=True)
        event = {"EventId": "A1", "EventType": self.event.capitalize(), "ResourceType": "VirtualMachine"}
        return [{**event, "NotBefore": not_before, **self.fields}]

    def _approve(self, request: Request) -> Reply:
        try:
            wanted = [str(each["EventId"]) for each in json.loads(request.body)["StartRequests"]]
        except (ValueError, KeyError, TypeError):
            return _json(400, {"error": "Bad request"})
        self.approved += wanted
        return Reply(200)


class TerminationTimeServer(MetadataServer):
    """A key that is absent, or holds the time at which the machine is reclaimed."""

    signal_path: str
    identity_path: str
    event = "terminate"

    def answer(self, request: Request) -> Reply:
        if request.method not in ("GET", "HEAD"):
            return Reply(405)
        if request.path == self.identity_path:
            return Reply(200, b"i-rehearsal")
        if request.path != self.signal_path:
            return Reply(404, b"<html>404 - Not Found</html>")
        self.announcement.looked()
        deadline = self.announcement.deadline
        return Reply(404, b"<html>404 - Not Found</html>") if deadline is None else Reply(200, self.time(deadline))

    def time(self, deadline: float) -> bytes:
        return datetime.fromtimestamp(deadline, timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ").encode()


class AlibabaServer(TerminationTimeServer):
    """ECS in its security-hardened mode: nothing without a token."""

    signal_path = "/latest/meta-data/instance/spot/termination-time"
    identity_path = "/latest/meta-data/instance-id"

    def __init__(self, announcement: Announcement, address: str = "127.0.0.1", port: int = 0) -> None:
        super().__init__(announcement, address, port)
        self.tokens: set[str] = set()
        self.is_hardened = True

    def answer(self, request: Request) -> Reply:
        if request.method == "PUT":
            return self._token(request.path, request.headers)
        if self.is_hardened and request.headers.get("x-aliyun-ecs-metadata-token") not in self.tokens:
            return Reply(403)
        return super().answer(request)

    def _token(self, path: str, headers: Mapping[str, str]) -> Reply:
        seconds = headers.get("x-aliyun-ecs-metadata-token-ttl-seconds", "")
        if path != "/latest/api/token" or not self.is_hardened:
            return Reply(404)
        if not (seconds.isascii() and seconds.isdigit() and 1 <= int(seconds) <= 21600):
            return Reply(400)
        token = secrets.token_urlsafe(32)
        self.tokens.add(token)
        return Reply(200, token.encode())


class TencentServer(TerminationTimeServer):
    """CVM: its time is China's, and does not say so."""

    signal_path = "/latest/meta-data/spot/termination-time"
    identity_path = "/latest/meta-data/instance-id"

    def time(self, deadline: float) -> bytes:
        china = timezone(timedelta(hours=8))
        return datetime.fromtimestamp(deadline, china).strftime("%Y-%m-%d %H:%M:%S").encode()


class BytePlusServer(TerminationTimeServer):
    signal_path = "/latest/spot_instance_termination_time"
    identity_path = "/latest/instance_id"


def _json(status: int, document: object) -> Reply:
    return Reply(status, json.dumps(document).encode(), {"Content-Type": "application/json; charset=utf-8"})
