"""From what typer hands over to what the settings take."""

from collections.abc import Mapping

_NOT_SETTINGS = frozenset({"command", "config"})


def given(arguments: Mapping[str, object]) -> dict[str, object]:
    """Keep the settings that the command line names."""
    flags = {name: value for name, value in arguments.items() if value is not None and name not in _NOT_SETTINGS}
    if "provider" in flags:
        names = flags["provider"]
        flags["provider"] = tuple(names) if isinstance(names, (list, tuple)) else (names,)
    return flags
