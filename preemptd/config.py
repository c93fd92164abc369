"""The settings: flag > PREEMPTD_* > file (TOML) > default, validated before anything starts."""

import re
import sys
from collections.abc import Mapping
from signal import Signals
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, TypeVar

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from preemptd.errors import ConfigError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

if TYPE_CHECKING:
    from pydantic_core import ErrorDetails
    from typing_extensions import Self

PREFIX = "PREEMPTD_"
LONGEST_DELAY = 30 * 86400.0
"""Seconds: what is longer was meant for something else."""
LONGEST_FILE = 2**20
"""Bytes; /dev/zero has no end."""


def _signal_name(value: object) -> object:
    """Take `SIGUSR1` and `usr1` for USR1, as kill does."""
    return value.upper().removeprefix("SIG") if isinstance(value, str) and value != "auto" else value


def _words(value: object) -> object:
    """Take `ec2,gce` for a list, as it comes from the environment; also where it is one of several."""
    if isinstance(value, (list, tuple)) and all(isinstance(part, str) for part in value):
        value = ",".join(value)
    return tuple(word.strip() for word in value.split(",") if word.strip()) if isinstance(value, str) else value


def _name(path: str) -> str:
    if not path or "\0" in path:
        raise ValueError("no file can have this name")
    return path


def _requeue_word(words: tuple[str, ...]) -> tuple[str, ...]:
    known = ("preempt", "timelimit", "request")
    unknown = [word for word in words if word not in known and word != "none"]
    if unknown or not words or ("none" in words and len(words) > 1):
        raise ValueError(f"must be of {', '.join(known)}; or none alone")
    return tuple(word for word in words if word != "none")


Advice = Literal["rebalance", "maintenance", "migrate", "freeze"]
"""Kinds of notices (`notices.Kind`) that come as advice."""
Seconds = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Path = Annotated[str, AfterValidator(_name)]


class Settings(BaseModel):
    """What ``watch`` goes by; one word for flag, variable and key of the file."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    foreign: ClassVar[frozenset[str]] = frozenset()
    """Keys of the class that this command has no use for."""

    provider: Annotated[tuple[str, ...], BeforeValidator(_words)] = ()
    """Names of providers; empty: find out."""
    signal: Annotated[Literal["auto", "USR1", "USR2", "TERM"], BeforeValidator(_signal_name)] = "auto"
    signal_target: Literal["auto", "main", "tree"] = "auto"
    grace: Seconds | None = None
    """Seconds, for sources that name no deadline; None: 30."""
    lead: Seconds = 120.0
    """Seconds before a dated maintenance at which we act."""
    act_on: Annotated[tuple[Advice, ...], BeforeValidator(_words)] = ()
    """Kinds of advice that we act on at once, as on a notice."""
    azure_approve: bool = False
    """Let an Azure event begin early, once everything is saved and has ended: ``[providers.azure] approve``."""
    reserve: Seconds | None = None
    """Seconds kept free before the deadline; None: 15 % of the time, at most 5."""
    kill: bool = False
    when_pending: Literal["hold", "start", "exit"] = "hold"
    preempted_exit_code: Annotated[int, Field(ge=0, le=255)] = 75
    exit_zero: Literal["preempted", "done"] = "preempted"
    job_id: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._+-]{0,63}$")] | None = None
    checkpoint_dir: Path | None = None
    on_advice: str | None = None
    on_notice: str | None = None
    on_saved: str | None = None
    on_exit: str | None = None
    webhook: Annotated[str, Field(pattern=r"^https?://[^/\s]+\S*$")] | None = None
    """URL; a secret."""
    webhook_file: Path | None = None
    """A file that holds the URL."""
    webhook_format: Literal["json", "slack"] = "json"
    listen: Annotated[str, Field(pattern=r"^(\[[0-9a-fA-F:]+\]|[^:\s]*):\d{1,5}$")] | None = None
    """Address of ``/metrics`` and ``/healthz``; an empty host is all of this machine's."""
    journal: Path | None = None
    link: Path | None = None
    """Path of our socket; None: one of our own choice."""
    state_dir: Path | None = None
    no_wandb: bool = False
    log_format: Literal["text", "json"] = "text"
    dry_run: bool = False
    die_with_parent: bool = False
    sweep: bool = False
    sync: Annotated[tuple[str, ...], BeforeValidator(_words)] = ()
    """``DIR=URL`` each: what is restored before the start and kept there."""
    loop: bool = False
    """Run the command again after each end, until it takes no run of a W&B sweep."""
    restart: Annotated[int, Field(ge=0)] = 0
    """How often the command is started again, in all, when a notice that ended it was revoked or outlived."""
    requeue_on: Annotated[tuple[str, ...], BeforeValidator(_words), AfterValidator(_requeue_word)] = (
        "preempt",
        "timelimit",
        "request",
    )
    """What ends a SLURM job that is brought back by us; empty (``none``): nothing."""
    max_requeues: Annotated[int, Field(ge=0)] | None = None
    requeue_delay: Annotated[float, Field(ge=0, le=LONGEST_DELAY, allow_inf_nan=False)] | None = None
    """Seconds from the requeue to the earliest start; None: the cluster's own."""
    shield_term: bool = False
    """Start the command with SIGTERM ignored."""
    providers: dict[str, dict[str, Any]] = Field(default_factory=dict)
    """The tables ``[providers.NAME]``; each is checked by that provider's own model."""

    @property
    def tables(self) -> Mapping[str, Mapping[str, object]]:
        """The tables of the providers, with what has an option of its own."""
        if not self.azure_approve:
            return self.providers
        return {**self.providers, "azure": {**self.providers.get("azure", {}), "approve": True}}

    @property
    def code_for_wandb(self) -> int:
        """The exit code of a preempted W&B run: never 0, which would be *finished*, and not handed out again."""
        return self.preempted_exit_code or 75

    @property
    def signals(self) -> tuple[Signals, ...]:
        """The signals to tell by, the preferred one first."""
        if self.signal == "auto":
            return (Signals.SIGUSR1, Signals.SIGTERM)
        return (Signals[f"SIG{self.signal}"],)


class Target(BaseModel):
    """One ``[[target]]`` of the daemon: exactly one of the five says who is meant."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = ""
    """For people; empty: what says who is meant."""
    pid: Annotated[int, Field(gt=1)] | None = None
    """This process, and what is below it."""
    pidfile: Path | None = None
    """The process whose number is in this file now."""
    unit: Annotated[str, Field(pattern=r"^[^/\s]+\.(service|scope|slice)$")] | None = None
    """A systemd unit or slice: all that is in its cgroup."""
    match: Annotated[str, Field(min_length=1)] | None = None
    """A regular expression for the command lines of the daemon's own user."""
    runs: Literal[True] | None = None
    """Whatever process of the daemon's own user owns a W&B run."""

    @model_validator(mode="after")
    def _says_who(self) -> "Self":
        ways = {name: getattr(self, name) for name in ("pid", "pidfile", "unit", "match", "runs")}
        if sum(value is not None for value in ways.values()) != 1:
            raise ValueError("it says who is meant by exactly one of pid, pidfile, unit, match, runs = true")
        if self.match is not None:
            try:
                re.compile(self.match)
            except re.error as error:
                raise ValueError(f"match = {self.match!r} is no regular expression: {error}") from error
        return self


class DaemonSettings(Settings):
    """What ``daemon`` goes by."""

    foreign: ClassVar[frozenset[str]] = frozenset(
        {
            "when_pending", "exit_zero", "job_id", "checkpoint_dir", "die_with_parent", "sweep", "loop", "restart",
            "requeue_on", "max_requeues", "requeue_delay", "shield_term", "sync", "azure_approve",
        }
    )  # fmt: skip
    target: tuple[Target, ...] = ()


_FILE_ONLY = {"providers", "target"}


AnySettings = TypeVar("AnySettings", bound=Settings)


def variables() -> frozenset[str]:
    """List the environment variables that are ours: none of them is passed on to the command."""
    names = {*Settings.model_fields, "config"} - _FILE_ONLY
    return frozenset(PREFIX + name.upper() for name in names)


def from_environment(environ: Mapping[str, str], model: type[Settings] = Settings) -> dict[str, object]:
    """Pick our settings out of *environ*; an empty value is as good as none."""
    names = model.model_fields.keys() - _FILE_ONLY - model.foreign
    return {name: value for name in names if (value := environ.get(PREFIX + name.upper()))}


def from_file(path: str) -> dict[str, object]:
    """Read the TOML file at *path*.

    Raises:
        ConfigError: it cannot be read or parsed.
    """
    try:
        with open(path, "rb") as file:
            text = file.read(LONGEST_FILE + 1)
        if len(text) > LONGEST_FILE:
            raise ConfigError(f"configuration file {path} is longer than {LONGEST_FILE:,} bytes: that is none of ours")
        return tomllib.loads(text.decode())
    except OSError as error:
        raise ConfigError(f"configuration file {path} cannot be read: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"configuration file {path} is not valid TOML: {error}") from error


def settings(flags: Mapping[str, object], environ: Mapping[str, str], path: str | None) -> Settings:
    """Put the sources together for ``watch``; see `daemon_settings`."""
    return _put_together(Settings, flags, environ, path)


def daemon_settings(flags: Mapping[str, object], environ: Mapping[str, str], path: str | None) -> DaemonSettings:
    """Put the sources together.

    Args:
        flags: what the command line says; what it does not say is absent.
        environ: the environment.
        path: the configuration file; None: ``PREEMPTD_CONFIG``, else none.

    Raises:
        ConfigError: one line that names the key, its source, the value and what is allowed.
    """
    return _put_together(DaemonSettings, flags, environ, path)


def _put_together(
    model: type[AnySettings], flags: Mapping[str, object], environ: Mapping[str, str], path: str | None
) -> AnySettings:
    path = path or environ.get(PREFIX + "CONFIG") or None
    sources = {
        f"configuration file {path}": from_file(path) if path else {},
        "environment": from_environment(environ, model),
        "command line": dict(flags),
    }
    merged: dict[str, object] = {}
    origin: dict[str, str] = {}
    for source, values in sources.items():
        merged.update(values)
        origin.update(dict.fromkeys(values, source))
    known = sorted(model.model_fields.keys() - model.foreign)
    for key in merged:
        if key not in known:
            raise ConfigError(f"{origin[key]}: unknown key {key!r}; known keys are {', '.join(known)}")
    try:
        return model.model_validate(merged)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        key = str(first["loc"][0])
        if key == "target":
            raise ConfigError(f"{origin[key]}: {_wrong_target(merged[key], first)}") from error
        raise ConfigError(f"{origin[key]}: {_said(key, merged.get(key))}: {_wrong(first)}") from error


def _said(key: str, value: object) -> str:
    """Quote the setting, unless it is a secret, or has some in it."""
    return key if key in {"webhook", "providers"} else f"{key.replace('_', '-')} = {value!r:.60}"


def _wrong_target(targets: object, error: "ErrorDetails") -> str:
    """Name one of the ``[[target]]`` tables as people count them."""
    place = error["loc"][1:2]
    if not isinstance(targets, list) or not place:
        return "each target is a table of its own: write [[target]], with two brackets"
    target = targets[int(place[0])]
    name = target.get("name") if isinstance(target, dict) else None
    named = f" ({name:.40})" if isinstance(name, str) and name and name.isprintable() else ""
    key = "".join(f"{part} = {error['input']!r:.60}: " for part in error["loc"][2:3])
    return f"target {int(place[0]) + 1}{named}: {key}{_plain(error)}"


def _plain(error: "ErrorDetails") -> str:
    return error["msg"].removeprefix("Value error, ")


def _wrong(error: "ErrorDetails") -> str:
    where = ".".join(part for part in error["loc"][1:] if isinstance(part, str))
    return f"{where and where + ': '}{_plain(error)}"
