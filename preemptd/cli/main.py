"""The command line. The only package that prints or exits."""

import sys

import typer

from preemptd.cli import providers, rehearse, status, watch
from preemptd.errors import CommandError, PreemptdError

EX_USAGE = 2


def _version(asked: bool) -> None:
    if asked:
        import preemptd

        print(f"preemptd {preemptd.__version__}")
        raise typer.Exit


app = typer.Typer(
    name="preemptd",
    help="Tell training processes in time that their machine is about to be taken away.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)


@app.callback()
def _common(
    version: bool = typer.Option(False, "--version", callback=_version, is_eager=True, help="Print the version."),
) -> None:
    """Tell training processes in time that their machine is about to be taken away."""


# Options end where the command begins: `preemptd watch python train.py --grace 5` passes --grace to train.py.
_WRAPS = {"allow_interspersed_args": False}
app.command("watch", context_settings=_WRAPS)(watch.watch)
app.command("rehearse", context_settings=_WRAPS)(rehearse.rehearse)
app.command("providers")(providers.providers)
app.command("status")(status.status)


def main() -> None:
    """Run the command line: 2 and one line for what is the user's to mend, else what the command says."""
    try:
        status = app(standalone_mode=False)
    except CommandError as error:
        _say(str(error))
        sys.exit(error.status)
    except PreemptdError as error:
        _say(str(error))
        sys.exit(EX_USAGE)
    except (KeyboardInterrupt, typer.Abort):
        sys.exit(130)
    except Exception as error:
        # What click raises for a bad command line; typer has a copy of click of its own, or uses the one installed.
        text = getattr(error, "format_message", None)
        if text is None:
            raise
        _say(f"{text()} (preemptd --help)".replace("\n", " "))
        sys.exit(EX_USAGE)
    sys.exit(status or 0)


def _say(text: str) -> None:
    print(f"preemptd: {text}", file=sys.stderr)
