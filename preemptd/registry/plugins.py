"""Finds the providers that are installed, imports and constructs them; a broken one is named and left out."""

import importlib.metadata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import EntryPoint
from typing import TYPE_CHECKING

from pydantic import ValidationError

from preemptd.errors import ConfigError, PluginError
from preemptd.provider import Found, Options, Provider, Surroundings

if TYPE_CHECKING:
    from pydantic_core import ErrorDetails

GROUP = "preemptd.providers"


@dataclass(frozen=True, slots=True)
class Installed:
    """What is registered, by the name that ``--provider`` takes; nothing of it is imported yet."""

    entry_points: Mapping[str, EntryPoint]
    left_out: Mapping[str, str] = field(default_factory=dict)
    """What was registered and is not used, with the reason."""


@dataclass(frozen=True, slots=True)
class Loaded:
    providers: Mapping[str, type[Provider]]
    left_out: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Chosen:
    provider: type[Provider]
    why: str
    """For people: ``named by the user``, ``DMI sys_vendor is Amazon EC2``."""
    found: Found | None
    """None: the user named it."""


@dataclass(frozen=True, slots=True)
class Built:
    providers: tuple[Provider, ...]
    left_out: Mapping[str, str]


def installed() -> Installed:
    """List the registered providers; of two with one name the first on the path wins."""
    entry_points: dict[str, EntryPoint] = {}
    left_out: dict[str, str] = {}
    for entry_point in _entry_points(left_out):
        first = entry_points.setdefault(entry_point.name, entry_point)
        if first.value != entry_point.value:
            left_out[entry_point.value] = f"{first.value} is registered under the same name, {first.name!r}, before it"
    return Installed(entry_points, left_out)


def _entry_points(left_out: dict[str, str]) -> Iterable[EntryPoint]:
    try:
        return importlib.metadata.entry_points(group=GROUP)
    except Exception:  # noqa: BLE001  # one unreadable entry_points.txt, whosever, makes the whole call raise (TypeError)
        found: list[EntryPoint] = []
        for distribution in importlib.metadata.distributions():
            try:
                found += distribution.entry_points.select(group=GROUP)
            except Exception as error:  # noqa: BLE001, PERF203  # this is the one: every other package is served
                left_out[str(distribution.metadata["Name"])] = f"its entry_points.txt cannot be read: {one_line(error)}"
        return found


def load(entries: Installed, names: Sequence[str] = ()) -> Loaded:
    """Import the providers: those of *names*, else all. One that does not load is named and left out.

    Raises:
        PluginError: one of *names* does not exist or does not load.
    """
    providers: dict[str, type[Provider]] = {}
    left_out: dict[str, str] = {}
    for name in dict.fromkeys(names or entries.entry_points):
        if name not in entries.entry_points:
            raise PluginError(f"no provider is called {name!r}; {_what_exists(entries)}")
        try:
            providers[name] = _load(entries.entry_points[name])
        except PluginError as error:
            if name in names:
                raise
            left_out[name] = str(error)
    return Loaded(providers, left_out)


def _what_exists(entries: Installed) -> str:
    if entries.entry_points:
        return f"installed are: {', '.join(sorted(entries.entry_points))}"
    return "none is registered at all: preemptd runs from a bare checkout, install it (pip install -e .)"


def _load(entry_point: EntryPoint) -> type[Provider]:
    where = f"provider {entry_point.name!r} ({entry_point.value})"
    try:
        loaded: object = entry_point.load()
    except (Exception, SystemExit) as error:  # the plug-in border: an import runs any code, and raises anything
        raise PluginError(f"{where} does not load: {one_line(error)}") from error
    if not (isinstance(loaded, type) and issubclass(loaded, Provider)):
        raise PluginError(f"{where} is no subclass of preemptd.provider.Provider")
    name: object = getattr(loaded, "name", None)
    if name != entry_point.name:
        raise PluginError(f"{where} calls itself {name!r}: its entry point must have the same name")
    options: object = loaded.options_type
    if not (isinstance(options, type) and issubclass(options, Options)):
        raise PluginError(f"{where}: its options_type is no subclass of preemptd.provider.Options")
    return loaded


def check_tables(tables: Mapping[str, object], entries: Installed) -> None:
    """Refuse a ``[providers.NAME]`` whose provider is not installed. One that is merely not used here is fine.

    Raises:
        ConfigError
    """
    for name in tables:
        if name not in entries.entry_points:
            raise ConfigError(f"[providers.{name}]: no provider is called {name!r}; {_what_exists(entries)}")


def options_for(provider: type[Provider], table: object) -> Options:
    """Check the table ``[providers.NAME]`` by the provider's own model.

    Raises:
        ConfigError: one line that says which key, which value (but for secrets), and what is allowed.
    """
    where = f"[providers.{provider.name}]"
    if not isinstance(table, Mapping):
        raise ConfigError(f"{where} must be a table, not {table!r:.60}")
    try:
        return provider.options_type.model_validate(dict(table))
    except ValidationError as error:
        raise ConfigError(f"{where} {_fault(error, provider.options_type)}") from error


def _fault(error: ValidationError, options_type: type[Options]) -> str:
    faults = error.errors(include_url=False, include_context=False)
    first = faults[0]
    key = ".".join(_word(part) for part in first["loc"])
    more = f" (and {len(faults) - 1} more)" if len(faults) > 1 else ""
    if first["type"] == "extra_forbidden":
        known = ", ".join(options_type.model_fields) or "none"
        return f"has no key {key!r}; its keys are: {known}{more}"
    if first["type"] == "missing":
        return f"needs the key {key!r}{more}"
    value = "" if _is_secret(first, options_type) else f" = {first['input']!r:.60}"
    said = f"{key}{value}: " if key else ""
    return f"{said}{first['msg'].removeprefix('Value error, ')}{more}"


def _word(part: int | str) -> str:
    return str(part) if str(part).isprintable() else repr(part)


def _is_secret(error: "ErrorDetails", options_type: type[Options]) -> bool:
    """Say whether its value may hold one: what is in several fields, or in one that is not to be shown."""
    field = options_type.model_fields.get(str(error["loc"][0])) if error["loc"] else None
    return field is None or not field.repr or isinstance(error["input"], Mapping | list)


def build(chosen: Iterable[Chosen], tables: Mapping[str, object], surroundings: Surroundings) -> Built:
    """Construct the providers. A broken one is named and left out, unless the user named it.

    Raises:
        ConfigError: a table does not fit, or a provider cannot use the environment that it is configured by.
        PluginError: one that the user named is broken.
    """
    providers: list[Provider] = []
    left_out: dict[str, str] = {}
    for choice in chosen:
        name = choice.provider.name
        options = options_for(choice.provider, tables.get(name, {}))
        try:
            provider = choice.provider(options, surroundings)
            if choice.found is not Found.PROBE:
                provider.prepare()
            providers.append(provider)
        except Exception as error:  # the plug-in border: a bug in one provider must not cost the others
            if isinstance(error, ConfigError) and choice.found is not Found.PROBE:
                raise
            left_out[name] = f"cannot be set up: {one_line(error)}"
            if choice.found is None:
                raise PluginError(f"provider {name!r} {left_out[name]}") from error
    return Built(tuple(providers), left_out)


def one_line(error: BaseException) -> str:
    """Say on one line what went wrong."""
    return " ".join(f"{type(error).__name__}: {error}".split())[:300]
