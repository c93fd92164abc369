"""One worker runs all tests of a module that names an xdist_group.

xdist's own `--dist=loadgroup` has no effect with pytest 9.2: it writes the group into an attribute that is gone.
"""

import functools

from xdist.scheduler import LoadScopeScheduling  # type: ignore[import-untyped]  # it has no stubs

from tests.conftest import ROOT


class ModuleGroups(LoadScopeScheduling):  # type: ignore[misc]  # for the same reason
    """All other tests go to whichever worker is free."""

    def _split_scope(self, nodeid: str) -> str:
        path, _, _ = nodeid.partition("::")
        return path if is_grouped(path) else nodeid


@functools.cache
def is_grouped(path: str) -> bool:
    """Say whether the module at *path*, relative to the repository, names a group."""
    module = ROOT / path
    return module.is_file() and "xdist_group(" in module.read_text()
