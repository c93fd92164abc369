"""The end of a machine as sources write it: a moment in one of the usual forms, or the seconds that are left."""

import email.utils
import re
from datetime import datetime, timedelta, timezone

_SECONDS = re.compile(r"[0-9]{1,10}(?:\.[0-9]{1,9})?")
_ZONE = re.compile(r"([+-])([0-9]{2}):([0-9]{2})")
EPOCH_FROM = 10_000_000.0
"""A number as large as this is a moment in Unix seconds (from 1970-04-26 on), a smaller one is what is left."""


def seconds_left(text: str, now: datetime, zone: timezone) -> float | None:
    """Read *text*: ISO 8601, RFC 1123, Unix seconds, or the seconds that are left; None: it is none of them.

    Args:
        text: what the source says.
        now: the source's own clock, where it shows one.
        zone: that of a moment that names none.
    """
    text = text.strip()
    if _SECONDS.fullmatch(text):
        number = float(text)
        return number if number < EPOCH_FROM else number - now.timestamp()
    moment = moment_of(text, zone)
    return None if moment is None else (moment - now).total_seconds()


def zone_of(text: str) -> timezone:
    """Read ``+08:00`` or ``Z``; raises ValueError."""
    match = _ZONE.fullmatch(text)
    if text == "Z":
        return timezone.utc
    if match is None:
        raise ValueError("no zone: write +08:00, or Z")
    offset = timedelta(hours=int(match[2]), minutes=int(match[3]))
    return timezone(-offset if match[1] == "-" else offset)


def moment_of(text: str, zone: timezone) -> datetime | None:
    """Read an aware UTC time from RFC 1123 or ISO 8601, which may name no *zone*; None: it is neither."""
    text = text.strip()
    try:
        if "," in text:
            moment = email.utils.parsedate_to_datetime(text)
        else:
            moment = datetime.fromisoformat(text.replace("Z", "+00:00"))
        return (moment if moment.tzinfo else moment.replace(tzinfo=zone)).astimezone(timezone.utc)
    except (ValueError, TypeError, IndexError, OverflowError):
        return None
