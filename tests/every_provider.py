"""Every watch that hears a server: how its provider is led there, and what stands there when."""

import email.utils
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta, timezone

from preemptd.provider import Provider, Surroundings
from preemptd_providers._termination_time import TerminationTimeProvider
from preemptd_providers.alibaba import Alibaba
from preemptd_providers.azure import Azure, AzureOptions
from preemptd_providers.byteplus import BytePlus
from preemptd_providers.ec2 import Ec2, Ec2Options
from preemptd_providers.gce import Gce, GceOptions
from preemptd_providers.http import Http, HttpOptions
from preemptd_providers.tencent import Tencent

Pages = Mapping[str, tuple[int, bytes]]
"""``GET /path`` to the status and the body there; what is not listed is a 404."""
Form = Callable[[float], Pages]
"""The pages that announce an end, given its Unix time."""

NOTICE_S = 45.0
"""What the `http` sources say that they give."""
MACHINE = "machine-7"


@dataclass(frozen=True)
class Source:
    """One watch."""

    watch: str
    event_id: str
    make: Callable[[str, float], Provider]
    """Make the provider for the server at a URL, with the seconds for one request where that can be set."""
    key: str
    """Where it is said: the page that `Form` and `quiet` differ in."""
    quiet: Pages
    """All pages while there is nothing."""
    forms: Mapping[str, Form] = field(default_factory=dict)
    """Every way in which the end may be written."""
    bare: Mapping[str, Pages] = field(default_factory=dict)
    """Every way to announce it without a time that can be read."""
    same: Mapping[str, Form] = field(default_factory=dict)
    """What may follow, and is the same event."""
    bare_left: float | None = None
    """Seconds that are left, for those without a time."""
    believed: float | None = None
    """Seconds that are believed at the most; None: any."""
    headers: Mapping[str, str] = field(default_factory=dict)
    """Those of every answer."""
    clears: Mapping[str, Pages] = field(default_factory=dict)
    """All the ways to say that there is nothing, besides `quiet`."""
    negatives: frozenset[str] = frozenset()
    """Names of faults that are one of these ways."""
    longest: int = 64 * 1024
    """Bytes of a body that are read."""
    limit: float | None = None
    """Seconds for one request; None: what `make` is given."""

    def announced(self, end: float) -> Pages:
        """Make all pages of an announcement, in the first of its ways."""
        changed = next(iter(self.forms.values()))(end) if self.forms else next(iter(self.bare.values()))
        return {**self.quiet, **changed}


def iso(end: float, offset: float = 0.0, mark: str = "T", zone: str = "Z") -> str:
    moment = datetime.fromtimestamp(end, timezone(timedelta(hours=offset)))
    return moment.strftime(f"%Y-%m-%d{mark}%H:%M:%S") + zone


def rfc1123(end: float) -> str:
    return email.utils.formatdate(end, usegmt=True)


def page(key: str, write: Callable[[float], object]) -> Form:
    """Make the form that puts at *key* what *write* says of the end: a text, or a document."""
    return lambda end: {key: (200, text_of(write(end)))}


def text_of(value: object) -> bytes:
    return (
        value if isinstance(value, bytes) else value.encode() if isinstance(value, str) else json.dumps(value).encode()
    )


# -- EC2 ---------------------------------------------------------------------------------------------------------

TOKEN = "PUT /latest/api/token"
EC2 = "GET /latest/meta-data/"
EC2_BASE: Pages = {TOKEN: (200, b"token"), f"{EC2}instance-id": (200, b"i-0123456789abcdef0")}
EC2_HEADERS = {"X-aws-ec2-metadata-token-ttl-seconds": "21600", "Server": "EC2ws"}


def ec2(url: str, within: float) -> Provider:
    environ = {"AWS_EC2_METADATA_SERVICE_ENDPOINT": url, "AWS_METADATA_SERVICE_TIMEOUT": str(within)}
    return Ec2(Ec2Options(lifecycle=True), Surroundings(environ))


ACTION = f"{EC2}spot/instance-action"
TERMINATION_TIME = f"{EC2}spot/termination-time"
REBALANCE = f"{EC2}events/recommendations/rebalance"
SCHEDULED = f"{EC2}events/maintenance/scheduled"
LIFECYCLE = f"{EC2}autoscaling/target-lifecycle-state"


def scheduled(**fields: object) -> list[object]:
    event = {"Code": "system-reboot", "EventId": "instance-event-1", "State": "active", "Description": "a reboot"}
    return [{**event, **fields}]


def over(state: str) -> Pages:
    return {SCHEDULED: (200, text_of(scheduled(State=state, NotBefore="21 Jan 2029 09:00:43 GMT")))}


EC2_SOURCES = {
    "ec2:spot/instance-action": Source(
        "ec2:spot/instance-action",
        "ec2:terminate",
        ec2,
        ACTION,
        EC2_BASE,
        forms={
            "RFC 3339": page(ACTION, lambda end: {"action": "terminate", "time": iso(end)}),
            "an offset": page(ACTION, lambda end: {"action": "terminate", "time": iso(end, 2, zone="+02:00")}),
            "milliseconds": page(ACTION, lambda end: {"action": "terminate", "time": iso(end, zone=".000Z")}),
            "termination-time alone": page(TERMINATION_TIME, iso),
        },
        bare={
            "no time": {ACTION: (200, b'{"action": "terminate"}')},
            "null": {ACTION: (200, b'{"action": "terminate", "time": null}')},
            "no time that can be read": {ACTION: (200, b'{"action": "terminate", "time": "soon"}')},
        },
        bare_left=120.0,
        believed=3600.0,
        headers=EC2_HEADERS,
        clears={"no time at termination-time": {TERMINATION_TIME: (200, b"not-marked")}},
    ),
    "ec2:events/recommendations/rebalance": Source(
        "ec2:events/recommendations/rebalance",
        "ec2:rebalance",
        ec2,
        REBALANCE,
        EC2_BASE,
        bare={
            "a time of the past": {REBALANCE: (200, b'{"noticeTime": "2020-10-27T08:22:00Z"}')},
            "another": {REBALANCE: (200, b'{"noticeTime": "2020-10-27T08:23:00Z"}')},
        },
        headers=EC2_HEADERS,
    ),
    "ec2:events/maintenance/scheduled": Source(
        "ec2:events/maintenance/scheduled",
        "ec2:scheduled-instance-event-1",
        ec2,
        SCHEDULED,
        {**EC2_BASE, SCHEDULED: (200, b"[]")},
        forms={
            "AWS's own": page(SCHEDULED, lambda end: scheduled(NotBefore=rfc1123(end).partition(", ")[2])),
            "RFC 1123": page(SCHEDULED, lambda end: scheduled(NotBefore=rfc1123(end))),
            "ISO 8601": page(SCHEDULED, lambda end: scheduled(NotBefore=iso(end))),
        },
        bare={
            "no time": {SCHEDULED: (200, text_of(scheduled()))},
            "no time that can be read": {SCHEDULED: (200, text_of(scheduled(NotBefore="soon")))},
        },
        headers=EC2_HEADERS,
        clears={
            "404": {SCHEDULED: (404, b"")},
            "canceled": over("canceled"),
            "completed": over("completed"),
        },
    ),
    "ec2:autoscaling/target-lifecycle-state": Source(
        "ec2:autoscaling/target-lifecycle-state",
        "ec2:lifecycle",
        ec2,
        LIFECYCLE,
        {**EC2_BASE, LIFECYCLE: (200, b"InService")},
        bare={"of the group": {LIFECYCLE: (200, b"Terminated")}, "warm": {LIFECYCLE: (200, b"Warmed:Terminated")}},
        headers=EC2_HEADERS,
        clears={
            "404": {LIFECYCLE: (404, b"")},
            "Detached": {LIFECYCLE: (200, b"Detached")},
            "Standby": {LIFECYCLE: (200, b"Standby")},
            "Warmed:Stopped": {LIFECYCLE: (200, b"Warmed:Stopped")},
            "Warmed:Hibernated": {LIFECYCLE: (200, b"Warmed:Hibernated")},
            "Warmed:Running": {LIFECYCLE: (200, b"Warmed:Running")},
        },
    ),
}

# -- GCE ---------------------------------------------------------------------------------------------------------

GCE = "GET /computeMetadata/v1/instance/"
GCE_HEADERS = {"Metadata-Flavor": "Google", "ETag": "0123456789abcdef"}
PREEMPTED = f"{GCE}preempted"
MAINTENANCE = f"{GCE}maintenance-event"
STOP = f"{GCE}shutdown-details/stop-state"
STOP_AT = f"{GCE}shutdown-details/request-timestamp"
STOP_MOST = f"{GCE}shutdown-details/max-duration"
UPCOMING = f"{GCE}upcoming-maintenance/"
NOTHING_YET = b'{"error": "no notifications have been received yet, try again later"}'


def gce(url: str, within: float) -> Provider:
    return Gce(GceOptions(), Surroundings({"GCE_METADATA_HOST": url, "GCE_METADATA_TIMEOUT": str(within)}))


def stopping(write: Callable[[float], str], most: str) -> Form:
    """Announce a stop that was asked for five minutes before its end."""
    return lambda end: {
        STOP: (200, b"PENDING_STOP"),
        STOP_AT: (200, write(end - 300).encode()),
        STOP_MOST: (200, most.encode()),
    }


def upcoming(key: str) -> Callable[[float], object]:
    return lambda end: {"maintenanceStatus": "PENDING", "type": "SCHEDULED", key: iso(end, zone=".000Z")}


GCE_SOURCES = {
    "gce:instance/preempted": Source(
        "gce:instance/preempted",
        "gce:preempted",
        gce,
        PREEMPTED,
        {PREEMPTED: (200, b"FALSE")},
        bare={"TRUE": {PREEMPTED: (200, b"TRUE")}, "a line": {PREEMPTED: (200, b"TRUE\n")}},
        headers=GCE_HEADERS,
    ),
    "gce:instance/maintenance-event": Source(
        "gce:instance/maintenance-event",
        "gce:maintenance-terminate",
        gce,
        MAINTENANCE,
        {MAINTENANCE: (200, b"NONE")},
        bare={"terminate": {MAINTENANCE: (200, b"TERMINATE_ON_HOST_MAINTENANCE")}},
        bare_left=3600.0,
        headers=GCE_HEADERS,
    ),
    "gce:instance/shutdown-details/stop-state": Source(
        "gce:instance/shutdown-details/stop-state",
        "gce:stop",
        gce,
        STOP,
        {STOP: (200, b"UNSPECIFIED")},
        forms={
            "seconds": stopping(iso, "300"),
            "seconds with their unit": stopping(iso, "300s"),
            "nanoseconds": stopping(lambda end: iso(end, zone=".000000000Z"), "300"),
            "an offset": stopping(lambda end: iso(end, -7, zone="-07:00"), "300"),
        },
        bare={
            "no details": {STOP: (200, b"PENDING_STOP")},
            "no duration": {STOP: (200, b"PENDING_STOP"), STOP_AT: (200, b"2029-01-01T00:00:00Z")},
            "no request": {STOP: (200, b"PENDING_STOP"), STOP_MOST: (200, b"300")},
            "details that cannot be read": {
                STOP: (200, b"PENDING_STOP"),
                STOP_AT: (200, b"9999-12-31T23:59:59Z"),
                STOP_MOST: (200, b"300"),
            },
            "under way": {STOP: (200, b"STOPPING")},
        },
        believed=3600.0,
        headers=GCE_HEADERS,
        clears={"UNKNOWN": {STOP: (200, b"UNKNOWN")}, "404: not switched on": {STOP: (404, b"")}},
        negatives=frozenset({"404 to everything"}),
    ),
    "gce:instance/upcoming-maintenance": Source(
        "gce:instance/upcoming-maintenance",
        "gce:upcoming-maintenance",
        gce,
        UPCOMING,
        {UPCOMING: (200, b'"NONE"')},
        forms={
            "windowStartTime": page(UPCOMING, upcoming("windowStartTime")),
            "window_start_time": page(UPCOMING, upcoming("window_start_time")),
            "startTime": page(UPCOMING, upcoming("startTime")),
            "wrapped": page(UPCOMING, lambda end: {"Upcoming maintenance": upcoming("windowStartTime")(end)}),
        },
        bare={
            "no time": {UPCOMING: (200, b'{"maintenanceStatus": "ONGOING"}')},
            "no time that can be read": {
                UPCOMING: (200, b'{"maintenanceStatus": "PENDING", "windowStartTime": "soon"}')
            },
        },
        headers=GCE_HEADERS,
        clears={
            "NONE": {UPCOMING: (200, b"NONE")},
            "{}": {UPCOMING: (200, b"{}")},
            "nothing yet": {UPCOMING: (200, NOTHING_YET)},
            "404": {UPCOMING: (404, b"")},
            "503": {UPCOMING: (503, b"")},
        },
        negatives=frozenset({"404 to everything", "503 with Retry-After", "{}", "JSON of another thing"}),
    ),
}

# -- the others --------------------------------------------------------------------------------------------------

EVENTS = "GET /metadata/scheduledevents"
COMPUTE = "GET /metadata/instance/compute"
"""Who this machine is: with another name there, the events are another's."""
AZURE_BASE: Pages = {COMPUTE: (200, text_of({"name": MACHINE, "vmId": "5c08b38e-4d57"}))}


def events(*listed: Mapping[str, object]) -> object:
    event = {"EventId": "A1", "EventType": "Preempt", "EventStatus": "Scheduled", "Resources": [MACHINE.upper()]}
    return {"DocumentIncarnation": 1, "Events": [{**event, **each} for each in listed]}


def azure(url: str, _within: float) -> Provider:
    return Azure(AzureOptions(), Surroundings({"PREEMPTD_AZURE_ENDPOINT": url}))


AZURE = Source(
    "azure:scheduledevents",
    "azure:preempt",
    azure,
    EVENTS,
    {**AZURE_BASE, EVENTS: (200, text_of(events()))},
    forms={
        "RFC 1123": page(EVENTS, lambda end: events({"NotBefore": rfc1123(end)})),
        "ISO 8601": page(EVENTS, lambda end: events({"NotBefore": iso(end)})),
        "the earlier of two": page(EVENTS, lambda end: events({"NotBefore": iso(end + 60)}, {"NotBefore": iso(end)})),
    },
    bare={
        "no time": {EVENTS: (200, text_of(events({})))},
        "no time that can be read": {EVENTS: (200, text_of(events({"NotBefore": "soon"})))},
    },
    same={
        "begun": page(EVENTS, lambda _: events({"EventId": "B2", "EventStatus": "Started", "NotBefore": ""})),
        "begun, its id the old one": page(
            EVENTS, lambda end: events({"EventStatus": "Started", "NotBefore": iso(end)})
        ),
    },
    clears={"another machine's": {EVENTS: (200, text_of(events({"Resources": ["another"]})))}},
    believed=3600.0,
    longest=256 * 1024,  # it tells of a whole set of machines
    limit=10.0,
)


def termination_time(kind: type[TerminationTimeProvider], write: Callable[[float], str]) -> Source:
    key, identity = f"GET {kind.signal_path}", f"GET {kind.identity_path}"
    base: Pages = {identity: (200, b"i-7"), **({TOKEN: (200, b"token")} if kind is Alibaba else {})}

    def make(url: str, _within: float) -> Provider:
        return kind(kind.options_type(), Surroundings({kind.endpoint: url}))

    watch = f"{kind.name}:termination-time"
    forms = {"its own": page(key, write), "a line": page(key, lambda end: write(end) + "\n")}
    return Source(watch, f"{kind.name}:terminate", make, key, base, forms=forms, believed=3600.0, limit=2.0)


def http(**description: object) -> Callable[[str, float], Provider]:
    """Describe a page of the server's, which takes a password; *description* names paths."""

    def make(url: str, within: float) -> Provider:
        place = url.replace("//", "//me:hush@")
        urls = {name: f"{place}{path}" for name, path in description.items() if name.endswith("url")}
        options = {"within": within, "notice_s": NOTICE_S, **description, **urls}
        return Http(HttpOptions.model_validate(options), Surroundings({}))

    return make


def flag(end: str) -> str:
    return f'{{"preempted": true, "end": "{end}"}}'


HTTP_SOURCES = {
    "http, two expressions": Source(
        "http:page",
        "http:preempt",
        http(
            url="/flag", notice='"preempted": true', clear='"preempted": false', deadline='"end": "([^"]*)"', zone="Z"
        ),
        "GET /flag",
        {"GET /flag": (200, b'{"preempted": false}')},
        forms={
            "ISO 8601": page("GET /flag", lambda end: flag(iso(end))),
            "ISO 8601 without a zone": page("GET /flag", lambda end: flag(iso(end, zone=""))),
            "RFC 1123": page("GET /flag", lambda end: flag(rfc1123(end))),
            "Unix seconds": page("GET /flag", lambda end: flag(f"{end:.0f}")),
            "milliseconds": page("GET /flag", lambda end: flag(f"{end:.3f}")),
        },
        bare={
            "no time": {"GET /flag": (200, b'{"preempted": true}')},
            "no time that can be read": {"GET /flag": (200, flag("soon").encode())},
        },
        bare_left=NOTICE_S,
        believed=30 * 86400.0,
    ),
    "http, a status": Source(
        "http:page",
        "http:terminate",
        http(
            url="/end?token=hush",
            identity_url="/id",
            clear_status=404,
            notice="^[0-9]",
            deadline="(.*)",
            zone="+08:00",
            kind="terminate",
        ),
        "GET /end",
        {"GET /id": (200, b"i-7")},
        forms={
            "without a zone": page("GET /end", lambda end: iso(end, 8, " ", "")),
            "with one": page("GET /end", iso),
        },
        bare={"no time that can be read": {"GET /end": (200, b"7 o'clock")}},
        bare_left=NOTICE_S,
        believed=30 * 86400.0,
    ),
}

SOURCES: Mapping[str, Source] = {
    **EC2_SOURCES,
    **GCE_SOURCES,
    "azure:scheduledevents": AZURE,
    "alibaba:termination-time": termination_time(Alibaba, iso),
    "tencent:termination-time": termination_time(Tencent, lambda end: iso(end, 8, " ", "")),
    "byteplus:termination-time": termination_time(BytePlus, iso),
    **HTTP_SOURCES,
}
