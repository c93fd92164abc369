"""Writes real packages with real entry points, as pip would install them."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest


class PluginPackages:
    """A directory on the import path in which distributions can be written."""

    def __init__(self, site: Path) -> None:
        self.site = site
        self._modules: list[str] = []

    def add(self, module: str, code: str, entry_points: str, distribution: str | None = None) -> None:
        """Install *code* as *module*; *entry_points* is ``NAME = MODULE:CLASS``, one a line."""
        (self.site / f"{module}.py").write_text(code)
        self.add_metadata(distribution or module, f"[preemptd.providers]\n{entry_points}\n")
        self._modules.append(module)

    def add_metadata(self, distribution: str, entry_points_txt: str) -> None:
        info = self.site / f"{distribution}-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {distribution}\nVersion: 1.0\n")
        (info / "entry_points.txt").write_text(entry_points_txt)

    def forget(self) -> None:
        for module in self._modules:
            sys.modules.pop(module, None)


@pytest.fixture
def plugins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[PluginPackages]:
    site = tmp_path / "site packages"
    site.mkdir()
    monkeypatch.syspath_prepend(site)
    packages = PluginPackages(site)
    yield packages
    packages.forget()
