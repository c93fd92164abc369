"""The command line: the only package that prints or exits."""

import gc
import signal


def main() -> None:
    """Start `preemptd`, without the collector: imports make 100,000 objects and free none of them (7 ms)."""
    gc.disable()
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C before the command runs: an end, no traceback
    from preemptd.cli.main import main as start

    start()
