"""``--listen``: /metrics for Prometheus, /healthz for probes and load balancers."""

import json
from collections.abc import Callable, Mapping
from http import HTTPStatus
from typing import Protocol

import preemptd
from preemptd.journal import Line
from preemptd.observe.health import Heart, judge
from preemptd.observe.web import Page, Web, text

EXTRA = "metrics need the extra: pip install 'preemptd[metrics]'"


class _Figures(Protocol):
    def write(self, line: Line) -> None: ...

    def page(self) -> tuple[str, bytes]: ...


class Pages:
    """A sink of the journal, and a `parts.Pulse`. Its thread begins with the journal's first line."""

    def __init__(self, address: str, warn: Callable[[str], None]) -> None:
        """Listen there.

        Raises:
            ConfigError: that is not possible.
        """
        self._heart = Heart()
        self.interval = self._heart.interval
        self._warn = warn
        self._figures: _Figures | None = None
        self._web = Web(address, self._answer)
        self._started = False

    def beat(self, status: Callable[[], Mapping[str, object]]) -> None:
        self._heart.beat(status)

    def write(self, line: Line) -> None:
        if not self._started:
            self._started = True
            self._figures = self._collect()
            self._web.start()
        if self._figures is not None:
            self._figures.write(line)

    def close(self) -> None:
        self._web.stop()

    def _collect(self) -> _Figures | None:
        try:
            from preemptd.observe.metrics import Metrics
        except ImportError:
            self._warn(f"--listen serves /healthz alone: {EXTRA}")
            return None
        return Metrics(self._heart, preemptd.__version__)

    def _answer(self, path: str) -> Page:
        page, _, query = path.partition("?")
        if page == "/metrics":
            return self._metrics()
        if page == "/healthz":
            return self._healthz(live_only=query == "live")
        return text(HTTPStatus.NOT_FOUND, "/metrics and /healthz are all that there is")

    def _metrics(self) -> Page:
        if self._figures is None:
            return text(HTTPStatus.NOT_IMPLEMENTED, EXTRA)
        form, content = self._figures.page()
        return Page(HTTPStatus.OK, content, form)

    def _healthz(self, *, live_only: bool) -> Page:
        health = judge(self._heart)
        well = health.live if live_only else health.ready
        content = json.dumps(health.as_json()).encode() + b"\n"
        return Page(HTTPStatus.OK if well else HTTPStatus.SERVICE_UNAVAILABLE, content, "application/json")
