"""The commands, and how their errors reach people."""

import os
import signal
import sys
import threading
from contextlib import suppress

import typer

from preemptd.cli import daemon, doctor, history, install_unit, notify, providers, rehearse, slurm_node, status, watch
from preemptd.errors import CommandError, PreemptdError, place_of
from preemptd.log import printable

EX_USAGE = 2


def _version(asked: bool) -> None:
    if asked:
        import preemptd

        print(f"preemptd {preemptd.__version__}")
        raise typer.Exit


app = typer.Typer(
    name="preemptd",
    help="Tell training processes in time that their machine is about to be taken away.",
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)


@app.callback(invoke_without_command=True)
def _common(
    context: typer.Context,
    version: bool = typer.Option(False, "--version", callback=_version, is_eager=True, help="Print the version."),  # noqa: ARG001 - see its callback
) -> None:
    """Tell training processes in time that their machine is about to be taken away."""
    if context.invoked_subcommand is None:
        print(context.get_help(), file=sys.stderr)
        raise typer.Exit(EX_USAGE)


# Options end where the command begins: `preemptd watch python train.py --grace 5` passes --grace to train.py.
_WRAPS = {"allow_interspersed_args": False}
app.command("watch", context_settings=_WRAPS)(watch.watch)
app.command("rehearse", context_settings=_WRAPS)(rehearse.rehearse)
app.command("daemon")(daemon.daemon)
app.command("doctor")(doctor.doctor)
app.command("install-unit")(install_unit.install_unit)
app.command("providers")(providers.providers)
app.command("status")(status.status)
app.command("history")(history.history)
app.command("notify")(notify.notify)
app.command("slurm-node", hidden=True)(slurm_node.slurm_node)


def main() -> None:
    """Run the command line: 2 and one line for what is the user's to mend, else what the command says."""
    _fill_standard_descriptors()
    status = _run()
    if threading.active_count() > 1:  # one that is inside of OpenSSL when the interpreter is taken down crashes us all
        for stream in (sys.stdout, sys.stderr):
            with suppress(OSError, ValueError, AttributeError):
                stream.flush()
        os._exit(status)
    sys.exit(status)


def _run() -> int:
    try:
        status = app(standalone_mode=False) or 0
        if sys.stdout is not None:
            sys.stdout.flush()
        return status  # noqa: TRY300 - the flush belongs to it
    except CommandError as error:
        return _fail(str(error), error.status)
    except typer.Abort:
        return 128 + signal.SIGINT
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # `preemptd providers | head`: nobody wants the rest
        return 128 + signal.SIGPIPE
    except Exception as error:  # noqa: BLE001 - people get one line, whatever it was
        return _fail(_words(error))


def _words(error: Exception) -> str:
    if isinstance(error, PreemptdError):
        return str(error)
    if isinstance(error, BlockingIOError) or (isinstance(error, RuntimeError) and "start new thread" in str(error)):
        return "no more processes or threads can be started: see `ulimit -u`, and the limit of the container"
    if isinstance(error, OSError):
        return f"{error.strerror or error} ({error.filename or place_of(error)})"
    # What click raises for a bad command line; typer has a copy of click of its own, or uses the one installed.
    text = getattr(error, "format_message", None)
    if text is not None:
        return f"{text()}{_given(error)} (preemptd --help)"
    return f"internal error, please report it: {error!r} at {place_of(error)}"


def _given(error: Exception) -> str:
    """Repeat what the option was given that *error* is about: the words for numbers do not."""
    names = getattr(getattr(error, "param", None), "opts", ())
    arguments = iter(sys.argv[1:])
    for argument in arguments:
        name, equals, value = argument.partition("=")
        if name in names:
            value = value if equals else next(arguments, "")
            return "" if repr(value) in str(error) else f": {value!r}"
    return ""


def _fill_standard_descriptors() -> None:
    """Put /dev/null where stdin, stdout or stderr is closed: the log must not end up in whatever is opened next.

    It is closed on exec: the command finds them as they were.
    """
    while (fd := os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)) <= 2:  # the lowest that is free
        pass
    os.close(fd)


def _fail(text: str, status: int = EX_USAGE) -> int:
    with suppress(OSError):
        print(f"preemptd: {printable(text)}", file=sys.stderr, flush=True)
    return status
