"""What the journal says at the start and at the end of a job."""

import shlex
from collections.abc import Sequence
from typing import TYPE_CHECKING

import preemptd
from preemptd.discretion import discreet
from preemptd.journal import Journal
from preemptd.ledger import Record
from preemptd.model import Process, ProcessId
from preemptd.targets.attached import Attached
from preemptd.targets.child import Child

if TYPE_CHECKING:
    from preemptd.settling import Ending, Settled


def write_start(
    journal: Journal,
    argv: Sequence[str],
    job_id: str | None,
    target: Child | Attached,
    link: str | None,
    record: Record,
) -> None:
    journal.write(
        "started",
        pid=target.pid,
        start=target.id.start,
        command=discreet(shlex.join(argv)),
        attempt=record.attempt,
        job_id=job_id,
        adopted=isinstance(target, Attached),
        link=link,
        version=preemptd.__version__,
    )


def command_of(process: ProcessId, snapshot: Sequence[Process], otherwise: Sequence[str]) -> Sequence[str]:
    """Find the command line of *process*, for a training that somebody else started."""
    found = next((other.cmdline for other in snapshot if other.id == process), ())
    return found or otherwise


def write_end(journal: Journal, process: ProcessId, ending: "Ending", settled: "Settled", done: Sequence[str]) -> None:
    journal.write(
        "exited",
        pid=process.pid,
        status=None if ending.running else ending.outcome.status,
        preempted=settled.preempted,
        told=ending.told,
        ms=None if ending.since_notice is None else round(ending.since_notice * 1000, 1),
        spare=None if ending.spare is None else round(ending.spare, 2),
    )
    why = "; ".join((settled.why, *done))
    announced = ending.told or bool(done)
    journal.write("settled", status=settled.status, preempted=settled.preempted, announced=announced, why=why)
