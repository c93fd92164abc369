"""How a training that was preempted leaves, when all is saved."""

import os

import preemptd

EX_TEMPFAIL = 75


class Preempted(SystemExit):
    """What the training loop of a preempted training raises when all is saved.

    Uncaught, it ends the script without a word. Evaluations, models and uploads that come after the loop are not begun
    on a machine that is going away.
    """


def exit_status() -> int:
    """Return 75: not done, try again; and 0 below torchrun.

    torchrun takes any other status for a failure, and starts the ranks again on the machine that goes away.
    """
    return 0 if "TORCHELASTIC_RUN_ID" in os.environ else EX_TEMPFAIL


def time_left_in_words() -> str:
    left = preemptd.time_left()
    return "no time is named" if left is None else f"{left:.0f} s are left"
