"""What can be rehearsed: platforms, what each of them announces, and how its provider is led to a server of ours."""

import shlex
import sys
from collections.abc import Mapping
from types import MappingProxyType
from typing import NamedTuple

AHEAD = 10.0
"""Seconds for which a maintenance with a date is advice in a rehearsal, before ``--lead`` seconds are left."""
SOON = 1.0
"""Seconds between two looks at what is looked at once a minute otherwise."""


class Event(NamedTuple):
    """Something that a platform announces."""

    grace: float | None
    """Seconds that the platform gives; None: it names a date that is days ahead."""
    advice: str | None = None
    """The kind that ``--act-on`` must name, or nobody is told; None: it is a notice, or becomes one."""


class Cloud(NamedTuple):
    events: Mapping[str, Event]
    """By the words of ``--event``; the first one is the default."""
    endpoint: str | None
    """The variable that leads its provider to another server; None: a table of the configuration does."""
    takes_url: bool = True
    """False: the variable holds HOST:PORT."""

    @property
    def first(self) -> str:
        return next(iter(self.events))


CLOUDS: Mapping[str, Cloud] = MappingProxyType(
    {
        "ec2": Cloud(
            {
                "terminate": Event(120.0),
                "stop": Event(120.0),
                "hibernate": Event(30.0),
                "rebalance": Event(120.0, advice="rebalance"),
                "scheduled": Event(None),
                "lifecycle": Event(120.0),
            },
            "AWS_EC2_METADATA_SERVICE_ENDPOINT",
        ),
        "gce": Cloud(
            {
                "preempted": Event(30.0),
                "terminate": Event(None),
                "migrate": Event(60.0, advice="migrate"),
                "stop": Event(120.0),
                "upcoming": Event(None),
            },
            "GCE_METADATA_HOST",
            takes_url=False,
        ),
        "azure": Cloud(
            {
                "preempt": Event(30.0),
                "terminate": Event(300.0),
                "redeploy": Event(None),
                "reboot": Event(None),
                "freeze": Event(900.0, advice="freeze"),
            },
            "PREEMPTD_AZURE_ENDPOINT",
        ),
        "alibaba": Cloud({"terminate": Event(300.0)}, "PREEMPTD_ALIBABA_ENDPOINT"),
        "tencent": Cloud({"terminate": Event(120.0)}, "PREEMPTD_TENCENT_ENDPOINT"),
        "byteplus": Cloud({"terminate": Event(300.0)}, "PREEMPTD_BYTEPLUS_ENDPOINT"),
        "http": Cloud({"terminate": Event(30.0)}, None),
        "exec": Cloud({"terminate": Event(30.0)}, None),
    }
)


def variables(platform: str, url: str) -> Mapping[str, str]:
    """Return what leads the provider of *platform* to the server at *url*."""
    cloud = CLOUDS[platform]
    if cloud.endpoint is None:
        return {}
    return {cloud.endpoint: url if cloud.takes_url else url.removeprefix("http://")}


def table(platform: str, event: str, grace: float, url: str) -> Mapping[str, object]:
    """Return what the table ``[providers.NAME]`` says in this rehearsal, besides what the user has in it."""
    asking = shlex.join([sys.executable, "-m", "preemptd.rehearsal.asking", url])
    tables: Mapping[tuple[str, str], Mapping[str, object]] = {
        ("ec2", "scheduled"): {"scheduled_interval": SOON},
        ("ec2", "lifecycle"): {"lifecycle": True, "lifecycle_s": grace},
        ("gce", "preempted"): {"preemption_notice_s": grace},
        ("gce", "terminate"): {"notice_s": grace},
        ("gce", "upcoming"): {"upcoming_interval": SOON},
        ("http", "terminate"): {
            "url": f"{url}/leaving",
            "notice": "^at ",
            "clear": "^no",
            "deadline": "^at (.*)",
            "kind": "terminate",
            "interval": SOON,
        },
        ("exec", "terminate"): {"command": asking, "kind": "terminate", "interval": SOON, "within": 20.0},
    }
    return tables.get((platform, event), {})
