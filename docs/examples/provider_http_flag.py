"""A provider that asks one web server: {"preempt": true, "seconds": 60} is a notice, {"preempt": false} is none."""

import http.client
import time

from pydantic import BaseModel, FiniteFloat

from preemptd.notices import Kind, Level, Notice
from preemptd.provider import Observation, Options, Provider, Surroundings, Watch


class FlagOptions(Options):
    host: str = "127.0.0.1:8080"


class Flag(BaseModel, strict=True):
    preempt: bool
    seconds: FiniteFloat = 30.0


class FlagWatch(Watch):
    name = "http-flag:preempt"

    def __init__(self, host: str) -> None:
        self.server = http.client.HTTPConnection(host, timeout=2)

    def observe(self) -> Observation:
        try:
            self.server.request("GET", "/preempt")
            answer = self.server.getresponse()
            if answer.status != 200:
                return Observation.unknown(f"http://{self.server.host}/preempt: status {answer.status}")
            flag = Flag.model_validate_json(answer.read(4096))
        except (OSError, ValueError, http.client.HTTPException) as error:
            return Observation.unknown(f"http://{self.server.host}/preempt: {error!r}")
        finally:
            self.server.close()
        if not flag.preempt:
            return Observation.clear()
        now = time.monotonic()
        return Observation.of(
            Notice("http-flag", "http-flag:1", Kind.PREEMPT, Level.ACT, "/preempt", now, flag.seconds)
        )


class HttpFlag(Provider):
    name = "http-flag"
    options_type = FlagOptions

    def __init__(self, options: FlagOptions, surroundings: Surroundings) -> None:
        super().__init__(options, surroundings)
        self.host = options.host

    def watches(self) -> list[Watch]:
        return [FlagWatch(self.host)]
