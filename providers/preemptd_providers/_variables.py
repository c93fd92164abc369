"""What the variables that lead a provider elsewhere may hold."""

from collections.abc import Mapping
from urllib.parse import urlsplit

from preemptd.errors import ConfigError


def checked_base(variable: str, value: str) -> str:
    """Return the base URL in *value* without a trailing slash; raises ConfigError naming *variable*."""
    try:
        parts = urlsplit(value.strip())
        usable = parts.scheme == "http" and bool(parts.hostname) and parts.port != 0
    except ValueError:
        usable = False
    if not usable:
        raise ConfigError(f"{variable}={value!r} is not the address of a metadata server (http://HOST[:PORT])")
    return value.strip().rstrip("/")


def checked_number(environ: Mapping[str, str], variable: str, default: float) -> float:
    """Return the positive number in *variable*; raises ConfigError if there is something else in it."""
    value = environ.get(variable, "")
    if not value:
        return default
    try:
        number = float(value)
    except ValueError:
        number = 0.0
    if not 0 < number < 3600:
        raise ConfigError(f"{variable}={value!r} is not a positive number")
    return number
