"""Tencent Cloud CVM: spot instances are reclaimed two minutes after a time appears in the metadata."""

import re
from datetime import datetime, timedelta, timezone

from preemptd_providers._termination_time import TerminationTimeProvider

_TIME = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2} [0-9]{2}:[0-9]{2}:[0-9]{2}")
_CHINA = timezone(timedelta(hours=8))
"""The time is in UTC+8, and does not say so."""


class Tencent(TerminationTimeProvider):
    name = "tencent"
    endpoint = "PREEMPTD_TENCENT_ENDPOINT"
    default_base = "http://metadata.tencentyun.com"
    signal_path = "/latest/meta-data/spot/termination-time"
    identity_path = "/latest/meta-data/instance-id"
    notice_seconds = 120.0
    dmi = {"sys_vendor": "Tencent Cloud"}  # noqa: RUF012  # the base declares it a ClassVar

    @staticmethod
    def parse(text: str) -> datetime | None:
        if not _TIME.fullmatch(text):
            return None
        try:
            return datetime.fromisoformat(text).replace(tzinfo=_CHINA).astimezone(timezone.utc)
        except (ValueError, OverflowError):
            return None
