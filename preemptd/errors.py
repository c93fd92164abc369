"""What can go wrong, each named for whom it concerns."""


class PreemptdError(Exception):
    """Base of all; its text is one line for a person: what, which, and what to do. Exit status 2."""


class ConfigError(PreemptdError):
    """The user's options, environment or configuration file cannot be used."""


class CommandError(PreemptdError):
    """The command cannot be run: *status* is 127 if it was not found, else 126 (as a shell says it)."""

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = status


class PluginError(PreemptdError):
    """A provider that was asked for by name does not exist or does not load."""


class ProviderError(PreemptdError):
    """A provider could not find out: neither a notice nor its absence. Never ends a watch."""


def place_of(error: BaseException) -> str:
    """Name the file and line in which *error* was raised: what a report needs, on one line."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return "?" if trace is None else f"{trace.tb_frame.f_code.co_filename}:{trace.tb_lineno}"
