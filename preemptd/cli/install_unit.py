"""`preemptd install-unit`."""

import os
import pwd
import sys
from importlib import resources
from typing import Annotated

import typer

from preemptd.errors import ConfigError

UNITS = ("preemptd.service", "preemptd@.service", "preemptd-watch@.service")
EXAMPLE = "preemptd.toml.example"
DIRECTORY = "/etc/systemd/system"
OURS = "Written by `preemptd install-unit`"
"""In each of our units: what lacks it is somebody else's."""
PROGRAM = "ExecStart=/usr/local/bin/preemptd "
_HOMES = tuple(os.path.join(os.sep, name, "") for name in ("home", "root", "run/user"))
_PLAIN = frozenset("/._-+:@=,")


def install_unit(
    name: Annotated[
        str | None,
        typer.Argument(
            metavar="NAME",
            help="preemptd, preemptd@ or preemptd-watch@. Default: all three.",
            show_default=False,
        ),
    ] = None,
    directory: Annotated[
        str, typer.Option(metavar="DIR", help="Where units are kept. Default: /etc/systemd/system.", show_default=False)
    ] = DIRECTORY,
    only_print: Annotated[
        bool,
        typer.Option(
            "--print",
            help="Write nothing, and print; also preemptd.toml.example.",
            show_default=False,
        ),
    ] = False,
) -> int:
    """Write systemd units that run this very preemptd, by the interpreter that runs it now."""
    names = _chosen(name, also=(EXAMPLE,) if only_print else ())
    if only_print:
        print("\n".join(_text(one) for one in names), end="")
        return 0
    if not os.path.isdir(directory):
        raise ConfigError(f"{directory} is no directory: --directory names one, --print writes nothing")
    paths = {os.path.join(directory, one): _text(one) for one in names}
    for path in paths:
        _refuse_others(path)
    for path, text in paths.items():
        _write(path, text)
        print(f"{path} written")
    if "preemptd.service" in names and (closed := _closed()):
        print(f"preemptd: preemptd.service may not look into {closed}: install preemptd elsewhere", file=sys.stderr)
    if "preemptd.service" in names and not _has_user():
        print("next: useradd --system --home-dir / --shell /usr/sbin/nologin preemptd")
    print("next: systemctl daemon-reload")
    return 0


def _chosen(name: str | None, also: tuple[str, ...]) -> tuple[str, ...]:
    if name is None:
        return UNITS
    for known in (*UNITS, *also):
        if name in {known, known.removesuffix(".service")}:
            return (known,)
    raise ConfigError(f"there is no unit {name!r}: {', '.join((*UNITS, *also))}")


def _text(name: str) -> str:
    packaged = resources.files("preemptd") / "systemd" / name
    if packaged.is_file():
        text = packaged.read_text(encoding="utf-8")
    else:  # an editable install: they lie beside the package
        package = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
        with open(os.path.join(os.path.dirname(package), "systemd", name), encoding="utf-8") as file:
            text = file.read()
    return text.replace(PROGRAM, f"ExecStart={' '.join(map(_word, _program()))} ")


def _program() -> list[str]:
    """Name what runs us: this interpreter, and the script if we came by one (`-m` would look into the job's folder)."""
    script = os.path.abspath(sys.argv[0])
    if os.path.basename(script) == "preemptd" and os.path.isfile(script):
        return [sys.executable, script]
    return [sys.executable, *(["-P"] if sys.version_info >= (3, 11) else []), "-m", "preemptd"]


def _word(text: str) -> str:
    """Quote for ``ExecStart=``, where % and $ begin something."""
    doubled = text.replace("%", "%%").replace("$", "$$")
    if all(letter.isalnum() or letter in _PLAIN for letter in text):
        return doubled
    escaped = doubled.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'


def _refuse_others(path: str) -> None:
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            text = file.read()
    except FileNotFoundError:
        return
    if text and OURS not in text:
        raise ConfigError(f"{path} is there, and was not written by us: move it away, or name another --directory")


def _write(path: str, text: str) -> None:
    new = f"{path}.new"
    with open(new, "w", encoding="utf-8") as file:
        os.fchmod(file.fileno(), 0o644)
        file.write(text)
    os.replace(new, path)


def _has_user() -> bool:
    try:
        pwd.getpwnam("preemptd")
    except KeyError:
        return False
    return True


def _closed() -> str:
    """Name the directory of ours that a unit with ``ProtectHome=yes`` cannot look into; empty: there is none."""
    ours = (os.path.realpath(sys.executable), sys.prefix, sys.base_prefix, os.path.realpath(__file__))
    return next((path for path in ours if path.startswith(_HOMES)), "")
