"""The end of a machine as sources write it: a moment in one of the usual forms, or the seconds that are left."""

import email.utils
import re
from datetime import datetime, timedelta, timezone
from typing import NamedTuple

_SECONDS = re.compile(r"[0-9]{1,10}(?:\.[0-9]{1,9})?")
_FRACTION = re.compile(r"[.,][0-9]{1,9}(?=Z|[+-]|$)")  # nanoseconds are too much for Python 3.10, and for anybody
_OFFSET = re.compile(r"(?<=:[0-9]{2})([+-][0-9]{2}):?([0-9]{2})?$")  # Python 3.10 knows +01:00 alone
_NAMED_MONTH = re.compile(
    r"(?:[A-Z][a-z]{2}, )?[0-9]{1,2} [A-Z][a-z]{2} [0-9]{4} [0-9:]{8}(?: (?:GMT|UTC|UT|Z|[+-][0-9]{4}))?"
)
# No other names of zones: CST is one of China's as well as of the United States.
_DATED = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}.*")  # Python 3.11 takes 1793120100123 for a day of the year 1793
_RFC3339 = re.compile(
    r"[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}(?:\.[0-9]{1,9})?(?:Z|[+-][0-9]{2}:[0-9]{2})"
)
_ZONE = re.compile(r"([+-])([0-9]{2}):([0-9]{2})")
BELIEVED_SECONDS = 3600.0
"""No cloud announces the end of a machine earlier than this: a time further away is a mistake, and less time is the
safe thing to count with."""
FIRST_ZONE, LAST_ZONE = timedelta(hours=-12), timedelta(hours=14)
EPOCH_FROM = 10_000_000.0
"""A number as large as this is a moment in Unix seconds (from 1970-04-26 on), a smaller one is what is left."""


class End(NamedTuple):
    """The end of a machine."""

    left: float | None
    """Seconds; None: nobody says."""
    moment: datetime | None
    """None: the source says how long it is, and not when."""


def end_of(text: str, now: datetime, zone: timezone) -> End | None:
    """Read *text*: ISO 8601, RFC 1123, Unix seconds, or the seconds that are left; None: it is none of them.

    Args:
        text: what the source says.
        now: the source's own clock, where it shows one.
        zone: that of a moment that names none.
    """
    text = text.strip()
    number = float(text) if _SECONDS.fullmatch(text) else None
    if number is not None and number < EPOCH_FROM:
        return End(number, None)
    moment = moment_of(text, zone) if number is None else datetime.fromtimestamp(number, timezone.utc)
    return None if moment is None else End((moment - now).total_seconds(), moment)


def rfc3339(text: str) -> datetime | None:
    """Read a UTC time from RFC 3339, and nothing else: some keys hold a text that is no time; None: it is not one."""
    return moment_of(text, timezone.utc) if _RFC3339.fullmatch(text) else None


def zone_of(text: str) -> timezone:
    """Read ``+08:00`` or ``Z``; raises ValueError."""
    match = _ZONE.fullmatch(text)
    if text == "Z":
        return timezone.utc
    if match is None:
        raise ValueError("no zone: write +08:00, or Z")
    offset = timedelta(hours=int(match[2]), minutes=int(match[3])) * (-1 if match[1] == "-" else 1)
    if not FIRST_ZONE <= offset <= LAST_ZONE or int(match[3]) >= 60:
        raise ValueError("no zone: they reach from -12:00 to +14:00")
    return timezone(offset)


def moment_of(text: str, zone: timezone) -> datetime | None:
    """Read an aware UTC time from RFC 1123, with or without the weekday, or ISO 8601; *zone* if it names none.

    None: it is neither.
    """
    text = text.strip()
    try:
        if _NAMED_MONTH.fullmatch(text):
            moment = email.utils.parsedate_to_datetime(text)
        elif not _DATED.fullmatch(text):
            return None
        else:
            plain = _FRACTION.sub("", text).replace("Z", "+00:00")
            moment = datetime.fromisoformat(_OFFSET.sub(lambda found: f"{found[1]}:{found[2] or '00'}", plain))
        return (moment if moment.tzinfo else moment.replace(tzinfo=zone)).astimezone(timezone.utc)
    except (ValueError, TypeError, IndexError, OverflowError):
        return None
