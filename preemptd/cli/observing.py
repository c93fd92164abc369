"""Makes those who hear of what happens besides the log and ``--journal``: only what is asked for is imported."""

from collections.abc import Callable, Mapping, Sequence

from preemptd.config import Settings
from preemptd.journal import Sink
from preemptd.targets.reaping import Helpers


def observers(
    settings: Settings,  # noqa: ARG001
    environ: Mapping[str, str],  # noqa: ARG001
    helpers: Helpers,  # noqa: ARG001
    warn: Callable[[str], None],  # noqa: ARG001
) -> Sequence[Sink]:
    """Make them; their threads begin with the journal's first line.

    Raises:
        ConfigError: what they were given cannot be used.
    """
    sinks: list[Sink] = []
    return sinks
