"""Twenty jobs on eight nodes, and a preemption, a time limit, a slurmctld restart or a slurmd kill every few seconds.

CHAOS_SEED makes the choices of a run again; CHAOS_SECONDS makes it shorter or longer. The soak plays half an hour of
it, and puts the summary into docs/benchmarks.md.
"""

import os
import random
import time
from collections.abc import Callable

import pytest

from tests.bench.page import put
from tests.lab.slurm.chaos import CPUS, CRED_EXPIRE, NODES, SLURMD_TIMEOUT, Chaos, Plan, Story
from tests.lab.slurm.chaos_report import duplicated, forgotten, summary, unfinished
from tests.lab.slurm.cluster import Cluster
from tests.lab.slurm.configuration import Options
from tests.lab.slurm.jobs import Job
from tests.lab.slurm.side_by_side import SideBySide, cases

SHORT, LONG = 180, 1800
"""Seconds of chaos; the jobs then need about half as long again to finish."""
pytestmark = [pytest.mark.xdist_group("slurm-chaos"), pytest.mark.long, pytest.mark.timeout(1200)]
each_length = pytest.mark.parametrize(
    "length", [SHORT, pytest.param(LONG, marks=[pytest.mark.soak, pytest.mark.timeout(5400)])]
)


@pytest.fixture(scope="module")
def stories(make_cluster: Callable[[Options], Cluster], request: pytest.FixtureRequest) -> SideBySide[int, Story]:
    return SideBySide(lambda length: story(make_cluster, length), cases(request, int, "length"))


def story(make_cluster: Callable[[Options], Cluster], length: int) -> Story:
    seed = int(os.environ.get("CHAOS_SEED", random.SystemRandom().randrange(1_000_000)))
    seconds = float(os.environ.get("CHAOS_SECONDS", length))
    print(f"CHAOS_SEED={seed} CHAOS_SECONDS={seconds:g}")
    more = (f"SlurmdTimeout={SLURMD_TIMEOUT}",)
    cluster = make_cluster(Options(nodes=NODES, cpus=CPUS, cred_expire=CRED_EXPIRE, extra=more))
    return Chaos(cluster, Plan(seed, seconds)).run()


def fail_if_any(story: Story, found: dict[Job, list[str]]) -> None:
    """Fail with all that is known of the run, and of the jobs of which something was found."""
    wrong = {job: what for job, what in found.items() if what}
    if wrong:
        events = "\n".join(map(str, story.events))
        jobs = "\n\n".join(f"{what}\n{job.describe()}" for job, what in wrong.items())
        pytest.fail(f"{summary(story)}\n\n{events}\n\n{jobs}", pytrace=False)


@each_length
def test_every_job_finishes_all_its_steps(stories: SideBySide[int, Story], length: int) -> None:
    story = stories[length]

    print(summary(story))
    fail_if_any(story, {job: unfinished(job, story.plan.steps) for job in story.jobs})


@each_length
def test_no_two_copies_of_a_job_live_at_the_same_time(stories: SideBySide[int, Story], length: int) -> None:
    story = stories[length]

    fail_if_any(story, {job: duplicated(job) for job in story.jobs})


@each_length
def test_no_step_that_was_saved_is_lost(stories: SideBySide[int, Story], length: int) -> None:
    story = stories[length]

    fail_if_any(story, {job: forgotten(job) for job in story.jobs})


@each_length
def test_all_of_it_happened(stories: SideBySide[int, Story], length: int) -> None:
    story = stories[length]

    kinds = {event.kind for event in story.events}
    assert kinds >= {"preemption", "time limit", "slurmctld restart", "slurmd kill"}, f"seed {story.plan.seed}"
    assert sum(job.restarts for job in story.jobs) >= len(story.jobs) // 2, summary(story)


@pytest.mark.soak
@pytest.mark.timeout(5400)
@pytest.mark.parametrize("length", [LONG])
def test_the_summary_goes_into_the_documentation(stories: SideBySide[int, Story], length: int) -> None:
    put("slurm-chaos", f"{time.strftime('%Y-%m-%d')}: {summary(stories[length])}")
