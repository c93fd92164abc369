"""Metadata servers on loopback that speak like the clouds' own, and announce an interruption when someone looks.

``python -m preemptd.rehearsal.servers CLOUD --after S --grace S [--revoke S]`` prints ``ready http://127.0.0.1:PORT``
and then what happens: ``watched`` (the first good look at the signal), ``raised`` (S seconds later), ``revoked``,
``over`` (the grace has gone). It ends when its standard input does, so it never outlives who started it.
"""

import argparse
import contextlib
import hashlib
import json
import os
import secrets
import sys
import time
from collections.abc import Mapping, Sequence
from datetime import datetime, timezone
from types import MappingProxyType

from preemptd.rehearsal.other_clouds import AlibabaServer, AzureServer, BytePlusServer, TencentServer
from preemptd.rehearsal.serving import Announcement, MetadataServer, Reply, Request

INSTANCE = "/computeMetadata/v1/instance/"

NOT_FOUND = b"""<?xml version="1.0" encoding="iso-8859-1"?>
<!DOCTYPE html PUBLIC "-//W3C//DTD XHTML 1.0 Transitional//EN"
\t"http://www.w3.org/TR/xhtml1/DTD/xhtml1-transitional.dtd">
<html xmlns="http://www.w3.org/1999/xhtml" xml:lang="en" lang="en">
 <head>
  <title>404 - Not Found</title>
 </head>
 <body>
  <h1>404 - Not Found</h1>
 </body>
</html>
"""


class Ec2Server(MetadataServer):
    """IMDSv2 as EC2 speaks it, IMDSv1 too if the instance allows it."""

    keeps_connections = False

    def __init__(
        self, announcement: Announcement, address: str = "127.0.0.1", port: int = 0, allow_v1: bool = False
    ) -> None:
        super().__init__(announcement, address, port)
        self.allow_v1 = allow_v1
        self._tokens: dict[str, float] = {}
        self.action = "terminate"

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
        deadline = self.announcement.deadline
        if key in ("spot/instance-action", "spot/termination-time"):
            self.announcement.looked()
        if key == "spot/instance-action" and deadline is not None:
            return self._reply(200, json.dumps({"action": self.action, "time": self.time(deadline)}).encode())
        if key == "spot/termination-time" and deadline is not None and self.action == "terminate":
            return self._reply(200, self.time(deadline).encode())
        known = {
            "instance-id": b"i-0rehearsal0preempt",
            "instance-life-cycle": b"spot",
            "instance-type": b"p5.48xlarge",
        }
        return self._reply(200, known[key]) if key in known else self._reply(404, NOT_FOUND)

    def time(self, deadline: float) -> str:
        return datetime.fromtimestamp(deadline, timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")

    def _reply(self, status: int, body: bytes = b"", headers: Mapping[str, str] | None = None) -> Reply:
        kind = "text/html" if status == 404 else "text/plain"
        return Reply(status, body, {"Content-Type": kind, "Server": "EC2ws", "Connection": "close", **(headers or {})})


class GceServer(MetadataServer):
    """GCE's metadata server: values with an ETag, and GETs that wait for a change."""

    def __init__(self, announcement: Announcement, address: str = "127.0.0.1", port: int = 0) -> None:
        super().__init__(announcement, address, port)
        self.announced = {"preempted": ("FALSE", "TRUE")}
        """Key below instance/ to its value without and with an announcement."""

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
        if self.value(key) is None:
            return self._reply(404, NOT_FOUND)
        try:
            limit = float(query.get("timeout_sec", "3600"))
        except ValueError:
            return self._reply(400)
        if key in self.announced:
            self.announcement.looked()
        if query.get("wait_for_change") == "true":
            self.wait(key, query.get("last_etag"), limit)
        return self._show(self.value(key) or "", as_json=query.get("alt") == "json")

    def value(self, key: str) -> str | None:
        """Return the value of *key* below instance/ now; None: there is no such key."""
        if key in self.announced:
            before, after = self.announced[key]
            return before if self.announcement.deadline is None else after
        fixed = {"id": "1234567890123456789", "maintenance-event": "NONE", "scheduling/preemptible": "TRUE"}
        return fixed.get(key)

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


SERVERS: Mapping[str, type[MetadataServer]] = MappingProxyType(
    {
        "ec2": Ec2Server,
        "gce": GceServer,
        "azure": AzureServer,
        "alibaba": AlibabaServer,
        "tencent": TencentServer,
        "byteplus": BytePlusServer,
    }
)
"""By the names of `clouds.CLOUDS`."""


def main(arguments: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(prog="python -m preemptd.rehearsal.servers", description=__doc__)
    parser.add_argument("cloud", choices=sorted(SERVERS))
    parser.add_argument("--after", type=float, default=5.0, help="seconds from the first look to the notice")
    parser.add_argument("--grace", type=float, default=30.0, help="seconds from the notice to the end")
    parser.add_argument("--revoke", type=float, default=None, help="seconds from the notice to its withdrawal")
    chosen = parser.parse_args(arguments)
    announcement = Announcement(chosen.after, chosen.grace, chosen.revoke, _say)
    with SERVERS[chosen.cloud](announcement) as server:
        _say(f"ready {server.url}")
        with contextlib.suppress(KeyboardInterrupt):
            while os.read(sys.stdin.fileno(), 4096):
                pass


def _say(line: str) -> None:
    with contextlib.suppress(OSError):  # who listened has gone: our own end comes with standard input's
        sys.stdout.write(line + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main(sys.argv[1:])
