"""Asks one web page: {"preempt": true, "seconds": 60} is a notice, {"preempt": false} is none; all else is unknown."""

import time
import urllib.request
from http.client import HTTPException

from pydantic import BaseModel, Field, FiniteFloat

from preemptd.provider import Kind, Level, Notice, Observation, Options, Provider, Watch


class FlagOptions(Options):
    url: str = Field("http://127.0.0.1:8080/preempt", pattern="^http://")


class Flag(BaseModel, strict=True):
    preempt: bool
    seconds: FiniteFloat = 30.0


class FlagWatch(Watch):
    name = "http-flag:preempt"

    def __init__(self, url: str) -> None:
        self.url, self.opener = url, urllib.request.OpenerDirector()
        self.opener.add_handler(urllib.request.HTTPHandler())  # and no other: no proxy, no redirects

    def observe(self) -> Observation:
        try:
            with self.opener.open(self.url, timeout=2) as page:
                flag = Flag.model_validate_json(page.read(4096) if page.status == 200 else f"status {page.status}")
        except (OSError, ValueError, HTTPException) as error:
            return Observation.unknown(f"{self.url}: {error!r}")
        notice = Notice("http-flag", "http-flag:1", Kind.PREEMPT, Level.ACT, self.url, time.monotonic(), flag.seconds)
        return Observation.of(notice) if flag.preempt else Observation.clear()


class HttpFlag(Provider):
    name = "http-flag"
    options_type = FlagOptions
    options: FlagOptions

    def watches(self) -> list[Watch]:
        return [FlagWatch(self.options.url)]
