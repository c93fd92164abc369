"""What came of the jobs of a chaos run: read from what the trainings and preemptd wrote down, in its own order."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from tests.lab.slurm.chaos import CPUS, EVERY, NODES, STEP, Story
from tests.lab.slurm.jobs import Job
from tests.lab.slurm.supervised import notices

UNANNOUNCED = "nothing heard"


@dataclass(frozen=True)
class Attempt:
    """One copy of a training."""

    number: int
    began: int
    """The step that it found in the checkpoint."""
    trained: tuple[int, ...]
    """The steps that it recorded, in order."""
    kind: str
    """What ended it, by preemptd's last word; empty: no word."""
    told: bool
    saved: bool
    """After it was told."""

    @property
    def reached(self) -> int:
        return max(self.trained, default=self.began)


def attempts(job: Job) -> list[Attempt]:
    """List those that trained."""
    told = {line["event_id"] for line in job.lines("told")}
    saved = {note["attempt"] for note in job.notes("saved") if note["why"] == "told"}
    found = []
    for note in job.notes("ready"):
        number = _number(note, "attempt")
        kinds = [str(line["kind"]) for line in notices(job, number)]
        found.append(
            Attempt(
                number=number,
                began=_number(note, "step"),
                trained=tuple(step for attempt, step in job.steps() if attempt == number),
                kind=kinds[-1] if kinds else "",
                told=f"slurm:{job.id}:{number}" in told,
                saved=number in saved,
            )
        )
    return found


def fenced(job: Job) -> int:
    """Count the copies that found that their job runs elsewhere, and killed their training."""
    return sum(line["step"] == "fence" for line in job.lines("escalated"))


def unfinished(job: Job, steps: int) -> list[str]:
    """Say what is missing at the end of a job."""
    missing = sorted(set(range(1, steps + 1)) - {step for _, step in job.steps()})
    saved = job.file("checkpoints/checkpoint-0")
    # Whose last step ends between its time limit and SLURM's look at it, each 30 s, has a TIMEOUT and all its work.
    good = {"COMPLETED"} if missing or saved != str(steps) else {"COMPLETED", "TIMEOUT"}
    return [
        *([f"it ended as {job.state}"] if job.state not in good else []),
        *([f"steps {missing[:10]} were never trained"] if missing else []),
        *([f"the last checkpoint is at step {saved} of {steps}"] if saved != str(steps) else []),
    ]


def duplicated(job: Job) -> list[str]:
    """Say where two copies of a job lived at the same time, or one of them trained a step twice."""
    found = []
    for what, numbers in {
        "recorded a step": [attempt for attempt, _ in job.steps()],
        "noted something": [_number(note, "attempt") for note in job.notes()],
    }.items():
        late = {(earlier, later) for earlier, later in zip(numbers[1:], numbers, strict=False) if earlier < later}
        found += [f"attempt {earlier} {what} after attempt {later} had begun" for earlier, later in sorted(late)]
    copies = Counter(_number(note, "attempt") for note in job.notes("ready"))
    found += [f"attempt {number} was started {count} times" for number, count in copies.items() if count > 1]
    for attempt in attempts(job):
        expected = tuple(range(attempt.began + 1, attempt.began + 1 + len(attempt.trained)))
        if attempt.trained != expected:
            found.append(f"attempt {attempt.number} began after step {attempt.began} and trained {attempt.trained}")
    return found


def forgotten(job: Job) -> list[str]:
    """Say which attempts did not resume at the last step that was saved."""
    found, last, safe = [], 0, {0}
    every = attempts(job)
    for note in job.notes():
        if note["event"] == "saved":
            last = _number(note, "step")
            safe = {last}
        elif note["event"] == "ready":
            number, began = _number(note, "attempt"), _number(note, "step")
            before = [attempt for attempt in every if attempt.number < number]
            # Killed between the rename and the note: it is on disk, and better still.
            unnoted = {attempt.reached for attempt in before[-1:] if attempt.reached > last}
            unnoted |= {
                step for attempt in before[-1:] for step in attempt.trained if step % EVERY == 0 and step > last
            }
            if began not in safe | unnoted:
                found.append(f"attempt {number} resumed at step {began}, and {last} was saved")
    return found


def lost(job: Job) -> list[tuple[Attempt, int]]:
    """Return each attempt but the last, with the steps of it that had to be done again."""
    every = attempts(job)
    return [(attempt, attempt.reached - after.began) for attempt, after in pairwise(every)]


def summary(story: Story) -> str:
    """Tell the run in a few tables, as Markdown."""
    happened = Counter(event.kind for event in story.events)
    met = Counter(event.kind for event in story.events for _ in event.jobs)
    restarts = [job.restarts for job in story.jobs]
    head = (
        f"{len(story.jobs)} jobs of {story.plan.steps} steps of {STEP} s, a checkpoint each {EVERY} steps, on {NODES} "
        f"nodes of {CPUS} processors; {story.plan.seconds:.0f} s of chaos, seed {story.plan.seed}; all over after "
        f"{story.seconds:.0f} s. {sum(restarts)} restarts, {max(restarts)} of one job; "
        f"{sum(fenced(job) for job in story.jobs)} copies fenced themselves."
    )
    return "\n".join(
        [
            head,
            "",
            "| event | how often | jobs that ran there |",
            "|---|---|---|",
            *(f"| {kind} | {count} | {met[kind]} |" for kind, count in happened.most_common()),
            "",
            "| what ended an attempt | attempts | told | saved when told | steps lost, p50 | max | mean |",
            "|---|---|---|---|---|---|---|",
            *_lines(story),
        ]
    )


def _lines(story: Story) -> list[str]:
    ends: dict[str, list[tuple[Attempt, int]]] = {}
    for job in story.jobs:
        for attempt, steps in lost(job):
            ends.setdefault(attempt.kind or UNANNOUNCED, []).append((attempt, steps))
    return [_line(kind, ends[kind]) for kind in sorted(ends)]


def _line(kind: str, ends: Sequence[tuple[Attempt, int]]) -> str:
    steps = sorted(count for _, count in ends)
    told, saved = sum(attempt.told for attempt, _ in ends), sum(attempt.saved for attempt, _ in ends)
    mean = sum(steps) / len(steps)
    return f"| {kind} | {len(ends)} | {told} | {saved} | {steps[len(steps) // 2]} | {steps[-1]} | {mean:.1f} |"


def _number(note: dict[str, object], key: str) -> int:
    return int(str(note[key]))
