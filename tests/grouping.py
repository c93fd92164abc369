"""One worker runs all tests of the modules that name the same xdist_group.

xdist's own `--dist=loadgroup` has no effect with pytest 9.2: it writes the group into an attribute that is gone.
"""

import functools
import re

from xdist.scheduler import LoadScopeScheduling  # type: ignore[import-untyped]  # it has no stubs

from tests.conftest import ROOT


class ModuleGroups(LoadScopeScheduling):  # type: ignore[misc]  # for the same reason
    """All other tests go to whichever worker is free."""

    def _split_scope(self, nodeid: str) -> str:
        path, _, _ = nodeid.partition("::")
        return group_of(path) or nodeid


@functools.cache
def group_of(path: str) -> str | None:
    """Return the group that the module at *path*, relative to the repository, names; None: it names none."""
    module = ROOT / path
    named = (
        re.search(r'^pytestmark = .*xdist_group\("(.+?)"\)', module.read_text(), re.MULTILINE)
        if module.is_file()
        else None
    )
    return named and named[1]
