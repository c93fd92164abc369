"""`preemptd slurm-node`: what a daemon in a SLURM job starts on each node of it, by srun. Not for people."""

import gc
import os
from contextlib import closing
from typing import TYPE_CHECKING, Annotated

import typer

from preemptd.errors import ConfigError

if TYPE_CHECKING:
    from preemptd.config import Settings
    from preemptd.events import Inbox
    from preemptd.journal import Journal
    from preemptd.nodes.step_tree import Place
    from preemptd.parts import Parts
    from preemptd.runs.roster import Roster

MOST_WAITED = 0.5
"""Seconds at the end for lines that nobody reads."""


def slurm_node(given: Annotated[str, typer.Argument(metavar="JSON")]) -> int:
    """Tell the trainers of this node of a SLURM job what its preemptd says."""
    from preemptd.config import Settings
    from preemptd.nodes.wire import WireError, decode

    try:
        wishes = decode(given.encode())
        component = str(wishes.pop("component"))
        settings = Settings.model_validate(wishes)
    except (WireError, KeyError, ValueError) as error:
        raise ConfigError("slurm-node is started by preemptd itself, inside of a SLURM job") from error
    _serve(component, settings)
    os._exit(0)  # threads that look at processes may hang


def _serve(component: str, settings: "Settings") -> None:
    from preemptd.escalation import Killing, Timing
    from preemptd.events import Inbox
    from preemptd.journal import Journal
    from preemptd.nodes.agent import HEARD, Agent, Orders, Reports
    from preemptd.nodes.step_tree import Place
    from preemptd.runs.roster import Roster

    inbox, journal, place = Inbox(), Journal(), Place.of(os.environ, component)
    inbox.catch(HEARD)
    journal.add(Reports(1, place.node))
    killing = Killing.AT_RESERVE if settings.kill else Killing.NEVER
    with closing(Roster()) as roster:
        Orders(0, inbox.put).start()
        agent = Agent(_parts(settings, inbox, journal, roster, place), Timing(None, settings.reserve, killing))
        gc.freeze()
        gc.enable()  # `main` has switched it off, and a job may take weeks
        left = agent.run(place.node)
        if left.end is not None and left.end.preempted and left.told_at is not None:
            from preemptd.cli.mending import mend_runs
            from preemptd.runs.mending import Policy

            mend_runs(roster, journal, Policy(left.end.code, left.told_at), left.end.budget)
    journal.write("ended")
    journal.close(MOST_WAITED)


def _parts(settings: "Settings", inbox: "Inbox", journal: "Journal", roster: "Roster", place: "Place") -> "Parts":
    from preemptd.ledger import NoLedger
    from preemptd.nodes.step_tree import StepTree
    from preemptd.parts import NoLink, NoMarker, NoNodes, NoOuter, NoPulse, Parts
    from preemptd.runs.marker import Marker
    from preemptd.targets.scanner import Scanner

    silent = settings.no_wandb or settings.dry_run
    return Parts(
        settings=settings,
        inbox=inbox,
        journal=journal,
        ledger=NoLedger(inbox.put),
        scanner=Scanner(StepTree(place).snapshot, inbox.put, lambda: ()),
        marker=NoMarker(inbox.put) if silent else Marker(inbox.put, roster),
        link=NoLink(),
        outer=NoOuter(),
        nodes=NoNodes(covers=True),
        pulse=NoPulse(),
        providers={},
        reasons={},
        candidates=(),
    )
