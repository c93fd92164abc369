"""Brings the job back: whether, and how. After `scontrol requeue` SLURM ends everything within 20 ms."""

import math
import time

from preemptd.errors import ProviderError
from preemptd.notices import Kind, Meaning
from preemptd.provider import Conclusion, Requeue
from preemptd_providers.slurm.classifier import Bringing, Verdict
from preemptd_providers.slurm.controller import LIMIT, Answer, Controller, NoAnswerError

TRIES = 3
PAUSE = 0.2
"""Seconds between two tries."""
SHORTEST_DELAY = 5.0
"""Seconds after which a requeued job may start at the earliest. SLURM forgets a start time that has come before the job
has left its nodes (22.05: one of a second always does), and then counts its own, longer delay from there."""
WISHES = {
    Kind.PREEMPT: "preempt",
    Kind.NODE_FAILURE: "preempt",
    Kind.TIME_LIMIT: "timelimit",
    Kind.REQUESTED: "request",
}


def refusal(verdict: Verdict, conclusion: Conclusion, wishes: Requeue, restart: int) -> str | None:
    """Say why the job is not to be brought back by us; empty: for a reason that is no news; None: it is."""
    if verdict.meaning is Meaning.STOPPED:
        return f"not requeued: {verdict.kind}" if verdict.kind is Kind.CANCELLED else "not requeued"
    if verdict.meaning is not Meaning.PREEMPTED:
        return ""
    if verdict.bringing is not Bringing.OURS:
        return f"SLURM requeues the job itself ({verdict.kind})"
    return _unwanted(verdict, conclusion, wishes, restart) if conclusion.preempted else ""


def _unwanted(verdict: Verdict, conclusion: Conclusion, wishes: Requeue, restart: int) -> str | None:
    wish = WISHES.get(verdict.kind)
    if wish is None or wish not in wishes.on:
        return f"not requeued: {verdict.kind} is not in --requeue-on {','.join(sorted(wishes.on)) or '(nothing)'}"
    if conclusion.stuck:
        return "not requeued: several attempts in a row have saved nothing new"
    if wishes.at_most is not None and restart >= wishes.at_most:
        return f"not requeued: this was restart {restart}, and --max-requeues is {wishes.at_most}"
    return None


def requeue(controller: Controller, job_id: str, budget: float) -> None:
    """Have SLURM requeue the job.

    Raises:
        NoAnswerError: it may do so later, or has done so. By then somebody may have cancelled the job.
        ProviderError: it will not.
    """
    end = time.monotonic() + budget
    why = f"job {job_id} is not requeued: there was no time left"
    for _ in range(TRIES):
        left = end - time.monotonic()
        if left < PAUSE:
            break
        answer = controller.requeue(job_id, min(LIMIT, left))
        if answer.status == 0 or "pending execution" in answer.complaint.lower():
            return
        why = f"job {job_id} is not requeued: {_explained(answer)}"
        if answer.is_silence:
            raise NoAnswerError(why)
        if _is_final(answer):
            break
        time.sleep(min(PAUSE, max(0.0, end - time.monotonic())))
    raise ProviderError(why)


def delay(controller: Controller, job_id: str, seconds: float) -> str:
    """Move the start of the job that was just requeued; return what came of it, for people."""
    start = math.ceil(max(seconds, SHORTEST_DELAY))
    try:
        answer = controller.start_in(job_id, start, LIMIT)
        if answer.status < 0:  # SLURM's SIGTERM, which follows a requeue, was there before the command ignored it
            answer = controller.start_in(job_id, start, LIMIT)
    except ProviderError as error:
        return f"; --requeue-delay has no effect: {error}"
    return f"; starts in {start} s" if answer.status == 0 else f"; --requeue-delay has no effect: {answer.complaint}"


_EXPLANATIONS = {
    "presently disabled": (
        "it was submitted with --no-requeue, or the cluster's JobRequeue is 0: add `#SBATCH --requeue` to its script"
    ),
    "only batch jobs": "SLURM requeues batch jobs alone: submit it with sbatch, not with srun or salloc",
    "permission denied": "it belongs to another user",
    "not heterogeneous job leader": "only the leader of a heterogeneous job can be requeued",
    "invalid job id": "SLURM does not know it any more",
    "already completed": "it is over",
}


def _explained(answer: Answer) -> str:
    text = answer.complaint.lower()
    why = next((said for words, said in _EXPLANATIONS.items() if words in text), "")
    return f"{why} ({answer.complaint})" if why else f"scontrol requeue: status {answer.status}, {answer.complaint}"


def _is_final(answer: Answer) -> bool:
    return any(words in answer.complaint.lower() for words in _EXPLANATIONS)
