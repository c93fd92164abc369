"""`preemptd providers`."""

import os
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

import typer

from preemptd.cli import options

if TYPE_CHECKING:
    from preemptd.provider import Provider


NAMED = "named: a watch uses what is named, and no others"


@dataclass(frozen=True, slots=True)
class Survey:
    """Who is installed, and who is at home here."""

    words: "Mapping[str, str]"
    """By name: `here: ` or `not here: `, and why."""
    here: "tuple[Provider, ...]"


def providers(
    no_probe: Annotated[bool, typer.Option("--no-probe", help="Do not ask the network.", show_default=False)] = False,
    config: options.Config = None,
) -> int:
    """List the providers that are installed, which of them are at home here, and why.

    PREEMPTD_PROVIDER and FILE may name some: then a watch uses these, and no others.
    """
    named = _named(os.environ, config)
    with survey(no_probe=no_probe) as found:
        words = {**found.words, **dict.fromkeys(named, NAMED)}
        for name in sorted(words):
            print(f"{name:12} {words[name]}")
    return 0


def _named(environ: Mapping[str, str], config: str | None) -> Sequence[str]:
    """Read who is named in the environment, else in the file.

    Raises:
        ConfigError: the file cannot be read.
        PluginError: somebody is named who is not installed.
    """
    from preemptd.config import PREFIX, from_environment, from_file, settings
    from preemptd.registry import installed, load

    path = config or environ.get(f"{PREFIX}CONFIG")
    said = {**(from_file(path) if path else {}), **from_environment(environ)}
    named = settings({"provider": said.get("provider", ())}, {}, None).provider
    load(installed(), named)
    return named


@contextmanager
def survey(*, no_probe: bool) -> Iterator[Survey]:
    """Find out who is at home here; the providers are closed at the end."""
    from preemptd.provider import Surroundings
    from preemptd.registry import build, choose, installed, load, probe, read_machine

    environ = dict(os.environ)
    entries = installed()
    loaded = load(entries)
    choice = choose(loaded, (), read_machine(environ))
    surroundings = Surroundings(environ, started=time.time())
    here = build(choice.chosen, {}, surroundings)
    asked = build(choice.to_probe, {}, surroundings)
    try:
        found = {} if no_probe else probe(asked.providers)
        words = {chosen.provider.name: f"here: {chosen.why}" for chosen in choice.chosen}
        left_out = {**entries.left_out, **loaded.left_out, **choice.left_out, **here.left_out, **asked.left_out}
        words |= {name: f"not here: {why}" for name, why in left_out.items()}
        for provider in asked.providers:
            answer = "not asked (--no-probe)" if no_probe else provider.describe() or "no answer"
            words[provider.name] = f"here: {found[provider.name]}" if provider.name in found else f"not here: {answer}"
        at_home = (*here.providers, *(provider for provider in asked.providers if provider.name in found))
        yield Survey(words, at_home)
    finally:
        for provider in (*here.providers, *asked.providers):
            provider.close()
