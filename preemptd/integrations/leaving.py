"""How a training that was preempted, or stopped, leaves when all is saved."""

import os
import signal

import preemptd

EX_TEMPFAIL = 75


class Preempted(SystemExit):
    """What the training loop of a preempted training raises when all is saved.

    Uncaught, it ends the script without a word. Evaluations, models and uploads that come after the loop are not begun
    on a machine that is going away.
    """


def exit_status(*, stopped: bool = False) -> int:
    """Return 75: not done, try again; 143 where it was somebody's SIGTERM; and 0 below torchrun.

    torchrun takes any other status for a failure, and starts the ranks again on the machine that goes away.
    """
    if "TORCHELASTIC_RUN_ID" in os.environ:
        return 0
    return 128 + signal.SIGTERM if stopped else EX_TEMPFAIL


def why_in_words(*, stopped: bool) -> tuple[str, str]:
    """Say why it leaves, and what time there is for it."""
    left = preemptd.time_left()
    return "stopped" if stopped else "preempted", "no time is named" if left is None else f"{left:.0f} s are left"
