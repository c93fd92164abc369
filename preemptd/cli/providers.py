"""`preemptd providers`."""

import os
import time
from typing import Annotated

import typer


def providers(
    no_probe: Annotated[bool, typer.Option("--no-probe", help="Do not ask the network.", show_default=False)] = False,
) -> int:
    """List the providers that are installed, which of them are at home here, and why."""
    from preemptd.provider import Surroundings
    from preemptd.registry import build, choose, installed, load, probe, read_machine

    environ = dict(os.environ)
    entries = installed()
    loaded = load(entries)
    choice = choose(loaded, (), read_machine(environ))
    surroundings = Surroundings(environ, started=time.time())
    here = build(choice.chosen, {}, surroundings)
    asked = build(choice.to_probe, {}, surroundings)
    found = {} if no_probe else probe(asked.providers)
    words = {chosen.provider.name: f"here: {chosen.why}" for chosen in choice.chosen}
    left_out = {**entries.left_out, **loaded.left_out, **choice.left_out, **here.left_out, **asked.left_out}
    words |= {name: f"not here: {why}" for name, why in left_out.items()}
    for provider in asked.providers:
        answer = "not asked (--no-probe)" if no_probe else provider.describe() or "no answer"
        words[provider.name] = f"here: {found[provider.name]}" if provider.name in found else f"not here: {answer}"
    for name in sorted(words):
        print(f"{name:12} {words[name]}")
    for provider in (*here.providers, *asked.providers):
        provider.close()
    return 0
