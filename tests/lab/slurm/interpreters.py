"""Which paths a job must be able to read to run what the tests run: this repository, its interpreters, their libraries.

They may lie below a directory that only root may enter (pyenv in root's home); the cluster then shows each of
them under its own path, in its own mount namespace.
"""

import os
import sys
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]
LAB = ROOT / ".lab"


def needed(more: Sequence[str] = ()) -> list[str]:
    """List directories, without those that lie below others in the list."""
    named = {str(ROOT), sys.prefix, sys.base_prefix, *more}
    for executable in [sys.executable, *(str(path) for path in LAB.glob("*/bin/python"))]:
        named |= _of(executable)
    found = named | {os.path.realpath(path) for path in named}
    return sorted(path for path in found if not any(path.startswith(other + "/") for other in found))


def _of(executable: str) -> set[str]:
    """Follow *executable* from link to link; each is taken to be PREFIX/bin/NAME."""
    found = set()
    while True:
        found |= {os.path.dirname(os.path.dirname(path)) for path in (executable, _directory_resolved(executable))}
        if not os.path.islink(executable):
            return found - {"/", ""}
        executable = os.path.normpath(os.path.join(os.path.dirname(executable), os.readlink(executable)))


def _directory_resolved(path: str) -> str:
    return os.path.join(os.path.realpath(os.path.dirname(path)), os.path.basename(path))
