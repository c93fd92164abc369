"""Entry points to providers: what is installed, which of it is at home here, and how it is set up."""

from preemptd.registry.detection import EXPECTED, Choice, choose, probe, probe_all, read_machine
from preemptd.registry.plugins import (
    Built,
    Chosen,
    Installed,
    Loaded,
    build,
    check_tables,
    installed,
    load,
    options_for,
)

__all__ = [
    "EXPECTED",
    "Built",
    "Choice",
    "Chosen",
    "Installed",
    "Loaded",
    "build",
    "check_tables",
    "choose",
    "installed",
    "load",
    "options_for",
    "probe",
    "probe_all",
    "read_machine",
]
