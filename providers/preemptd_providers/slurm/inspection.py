"""What is said once at the start: settings of the job or the cluster with which something will not work."""

from collections.abc import Callable
from dataclasses import dataclass

from preemptd.errors import ProviderError
from preemptd_providers.slurm.attempt import Attempt
from preemptd_providers.slurm.batch_script import lost_signals
from preemptd_providers.slurm.controller import Configuration, Controller, Record


@dataclass(frozen=True, slots=True)
class Expectations:
    """What the user counts on."""

    wants_requeue: bool
    in_batch: bool
    """We are the batch script, or run below it."""
    has_canary: bool
    interval: float


class Inspection:
    """Asks for the job's and the cluster's settings until it has them, and says what is wrong with them."""

    def __init__(self, attempt: Attempt, expected: Expectations, warn: Callable[[str], None]) -> None:
        self._attempt = attempt
        self._expected = expected
        self._warn = warn
        self._configured = False

    def __call__(self, controller: Controller) -> bool:
        """Ask; False: SLURM does not answer, ask again."""
        try:
            if not self._configured:
                configuration = controller.configuration()
                self._attempt.kill_wait, self._attempt.knows_kill_wait = configuration.kill_wait, True
                self._configured = True
                self._say(about_cluster(configuration, self._expected))
            job_id = self._attempt.job_id
            record = controller.record(job_id)
            if record.batch is not False:
                self._say(lost_signals(self._attempt.job, job_id, controller))
            self._say(about_job(record, job_id, self._expected))
        except ProviderError:
            return False
        return True

    def _say(self, text: str) -> None:
        if text:
            self._warn(text)


def about_job(record: Record, job_id: str, expected: Expectations) -> str:
    """Say what keeps the job from being brought back; empty: nothing."""
    if not expected.wants_requeue:
        return ""
    if record.batch is False:
        return f"job {job_id} will not be requeued: it was started by srun or salloc, SLURM requeues batch jobs alone"
    if record.requeue is False:
        return f"job {job_id} will not be requeued: add `#SBATCH --requeue` to its script"
    return ""


def about_cluster(configuration: Configuration, expected: Expectations) -> str:
    """Say how late a preemption will be noticed; empty: at once."""
    if not expected.in_batch or expected.has_canary or configuration.signals_batch_scripts:
        return ""
    return (
        "this cluster tells a batch script nothing of a preemption (preempt_send_user_signal is not set), and there is "
        f"no canary step: it is noticed by asking each {expected.interval:g} s"
    )
