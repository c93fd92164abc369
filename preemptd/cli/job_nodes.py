"""Whether the job has processes that are in nobody's tree of ours, and what tells them."""

import os

from preemptd.cli.jobs import Made
from preemptd.nodes.wanted import is_wanted
from preemptd.parts import Nodes, NoNodes
from preemptd.targets.reaping import Shielded


def nodes_of(made: Made) -> Nodes:
    """Make what tells the tasks of srun's steps, on all nodes of the job; with ``main`` the user wants nobody told."""
    job = made.job
    if made.outer is not None or job.settings.signal_target == "main" or not is_wanted(job.environ):
        return NoNodes()
    from preemptd.nodes.steps import JobSteps, expected_nodes

    eager = os.path.basename(job.argv[0]) == "srun"
    try:
        return JobSteps(job.environ, job.settings, Shielded(job.helpers), made.journal, eager=eager)
    except FileNotFoundError:
        if eager or expected_nodes(job.environ) > 1:
            made.journal.warn("there is no srun here: trainers in steps, and on other nodes, are not told")
        return NoNodes()
