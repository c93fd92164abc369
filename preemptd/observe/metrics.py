"""The figures for Prometheus: counted from the journal's lines, and read off the loop's last word."""

from collections.abc import Callable, Iterator, Mapping

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Histogram,
    Info,
    ProcessCollector,
    disable_created_metrics,
)
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest
from prometheus_client.registry import Collector

from preemptd.journal import Line
from preemptd.observe.health import Heart, entries, judge

SOON = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
LATER = (0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 20.0, 30.0, 60.0, 120.0, 300.0, 600.0, 1800.0)
MOST_REMEMBERED = 1000
"""Notices whose repetition is not counted."""


class Metrics:
    """A sink. Labels are names of providers and watches, and words of ours: few, whatever happens."""

    def __init__(self, heart: Heart, version: str) -> None:
        # A gauge beside each counter, for which nobody asks.
        disable_created_metrics()  # type: ignore[no-untyped-call]  # prometheus-client's is not annotated
        self._registry = registry = CollectorRegistry()
        registry.register(_Now(heart))
        ProcessCollector(registry=registry)
        Info("preemptd_build", "This preemptd.", registry=registry).info({"version": version})

        def counter(name: str, about: str, *labels: str) -> Counter:
            return Counter(f"preemptd_{name}", about, labels, registry=registry)

        def seconds(name: str, about: str, buckets: tuple[float, ...]) -> Histogram:
            return Histogram(f"preemptd_{name}_seconds", about, registry=registry, buckets=buckets)

        self._notices = counter("notices", "Notices, each once.", "provider", "kind", "level")
        self._revoked = counter("revoked", "Notices that were taken back.", "provider")
        self._told = counter("told", "Processes told, by signal or over the link.", "how")
        self._saved = counter("saved", "Times that a told process said it has saved.")
        self._marks = counter("marks", "W&B runs to be marked preempting.", "result")
        self._repairs = counter("repairs", "W&B runs looked after when their process had ended.", "result")
        self._outages = counter("outages", "Times that a watch stopped getting answers.", "watch")
        self._warnings = counter("warnings", "Warnings in the log.")
        self._tell = seconds("tell", "From the notice to the telling, each process.", SOON)
        self._mark = seconds("mark", "From the notice to the mark, each W&B run.", SOON)
        self._save = seconds("save", "From the notice to saved, each process.", LATER)
        for result in ("ok", "failed"):  # there from the start: a rate() needs a 0 before the 1
            self._marks.labels(result)
            self._repairs.labels(result)
        self._seen: set[tuple[object, object]] = set()
        self._take: Mapping[str, Callable[[Line], None]] = {
            "notice": self._notice,
            "advice": self._notice,
            "revoked": self._revocation,
            "told": self._telling,
            "saved": self._saving,
            "marked": self._marking,
            "repaired": lambda line: self._repairs.labels(_result(line)).inc(),
            "provider": self._provider,
            "warning": lambda _: self._warnings.inc(),
        }

    def write(self, line: Line) -> None:
        take = self._take.get(str(line["event"]))
        if take is not None:
            take(line)

    def page(self) -> tuple[str, bytes]:
        """Make the content type and the page."""
        return CONTENT_TYPE_LATEST, generate_latest(self._registry)

    def _notice(self, line: Line) -> None:
        known = line.get("event_id"), line.get("level")
        if known in self._seen:
            return
        if len(self._seen) >= MOST_REMEMBERED:
            self._seen.clear()
        self._seen.add(known)
        self._notices.labels(str(line.get("provider")), str(line.get("kind")), str(line.get("level"))).inc()

    def _revocation(self, line: Line) -> None:
        self._seen = {known for known in self._seen if known[0] != line.get("event_id")}
        self._revoked.labels(str(line.get("provider"))).inc()

    def _telling(self, line: Line) -> None:
        if not line.get("dry_run"):
            self._told.labels(str(line.get("how"))).inc()
            _observe(self._tell, line)

    def _saving(self, line: Line) -> None:
        if _observe(self._save, line):  # else a checkpoint that nobody asked for
            self._saved.inc()

    def _marking(self, line: Line) -> None:
        self._marks.labels(_result(line)).inc()
        if line.get("ok"):
            _observe(self._mark, line)

    def _provider(self, line: Line) -> None:
        if line.get("state") == "outage":
            self._outages.labels(str(line.get("provider"))).inc()


def _result(line: Line) -> str:
    return "ok" if line.get("ok") else "failed"


def _observe(histogram: Histogram, line: Line) -> bool:
    """Count the line's milliseconds since the notice, if it has some."""
    ms = line.get("ms")
    if not isinstance(ms, (int, float)):
        return False
    histogram.observe(max(0.0, ms / 1000))
    return True


class _Now(Collector):
    """What holds at this moment."""

    def __init__(self, heart: Heart) -> None:
        self._heart = heart

    def collect(self) -> Iterator[GaugeMetricFamily]:
        health = judge(self._heart)
        yield _gauge("healthy", "1: /healthz says 200.", float(health.ready))
        up = _family("watch_up", "1: the watch's last look got an answer.", "watch")
        age = _family("watch_last_good_age_seconds", "Since the watch's last good answer.", "watch")
        for watch in health.watches:
            up.add_metric([watch.watch], float(watch.state in {"clear", "notice"}))
            if watch.age is not None:
                age.add_metric([watch.watch], watch.age)
        yield up
        yield age
        if health.loop is not None and self._heart.last is not None:
            yield _gauge("loop_age_seconds", "Since the loop's last word.", health.loop)
            yield from _counts(self._heart.last.status, health.loop)


def _counts(status: Mapping[str, object], age: float) -> Iterator[GaugeMetricFamily]:
    """Count what is in a status that is *age* seconds old."""
    for name, key, about in (
        ("targets", "targets", "Targets of `preemptd daemon`."),
        ("linked_processes", "linked", "Processes that listen on the link."),
        ("wandb_runs", "runs", "W&B runs that are open."),
        ("open_notices", "notices", "Notices that are open."),
    ):
        found = status.get(key)
        yield _gauge(name, about, float(len(found)) if isinstance(found, (list, tuple)) else 0.0)
    left = _family("notice_seconds_left", "To the earliest end among the open notices; absent: none is open.")
    ends = [end for notice in entries(status, "notices") if isinstance(end := notice.get("remaining"), (int, float))]
    if ends:
        left.add_metric([], min(ends) - age)
    yield left


def _family(name: str, about: str, *labels: str) -> GaugeMetricFamily:
    return GaugeMetricFamily(f"preemptd_{name}", about, labels=labels)


def _gauge(name: str, about: str, value: float) -> GaugeMetricFamily:
    family = _family(name, about)
    family.add_metric([], value)
    return family
