"""Puts the daemon together, runs it on one command, and settles: everything is validated before the command starts.

What few jobs need is imported where it is used: a wrapper is judged by how soon the command runs.
"""

import gc
import os
import time
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, closing, nullcontext
from dataclasses import dataclass, replace
from functools import partial

import preemptd
from preemptd.cli.environment import attempt_of, default_link, for_command, is_safe, state_directory
from preemptd.cli.resuming import look, overheard, resumption_of
from preemptd.cli.saying import command_of, warn_of_leftovers, write_end, write_start
from preemptd.config import PREFIX, Settings
from preemptd.daemon import Daemon
from preemptd.errors import CommandError, ConfigError
from preemptd.escalation import Killing, Timing
from preemptd.events import Inbox
from preemptd.journal import Journal, JournalFile, Log, Sink
from preemptd.ledger import JobLedger, Ledger, NoLedger, Record
from preemptd.link.server import Server
from preemptd.parts import Link, Marking, NoLink, NoMarker, NoOuter, Outer, Parts
from preemptd.procfs import Tree, machine_life
from preemptd.provider import Provider, Surroundings
from preemptd.registry import EXPECTED, build, check_tables, choose, installed, load, read_machine
from preemptd.resumption.keeper import NoResumption, Resumption
from preemptd.runs.marker import Marker
from preemptd.runs.roster import Roster
from preemptd.settling import Ending, Settled, settle
from preemptd.supervision import Supervision, signals_to_catch
from preemptd.targets.attached import Attached
from preemptd.targets.child import Child, Helpers
from preemptd.targets.scanner import Scanner
from preemptd.targets.selection import without
from preemptd.written import written_since


@dataclass(frozen=True, slots=True)
class Job:
    """One command to watch over."""

    argv: tuple[str, ...]
    environ: Mapping[str, str]
    settings: Settings
    helpers: Helpers
    """Knows our own commands, which are no part of the job."""
    platform_environ: Mapping[str, str] | None = None
    """The environment that providers see; None: the same. A rehearsal's server is no business of the command's."""
    killing: Killing = Killing.NEVER
    sinks: Sequence[Sink] = ()
    """Who reads the journal besides the log and ``--journal``."""


@dataclass(frozen=True, slots=True)
class _Providers:
    certain: Mapping[str, Provider]
    reasons: Mapping[str, str]
    candidates: Sequence[Provider]


@dataclass(frozen=True, slots=True)
class Ended:
    """How it went."""

    status: int
    """Our exit status."""
    interrupted: bool
    """Ctrl-C has ended the command, and nothing else is to be said: a loop around us is to end as well."""


def run(job: Job) -> Ended:
    """Watch over *job* to its end.

    Raises:
        PreemptdError: nothing was started, or the command cannot be executed.
    """
    journal = Journal()
    journal.add(Log(2, job.settings.log_format))
    if job.settings.journal:
        journal.add(JournalFile(job.settings.journal, journal.warn))
    for sink in job.sinks:
        journal.add(sink)
    inbox = Inbox()
    try:
        ledger = _ledger(job, inbox, journal)
        try:
            return _watch_over(job, journal, inbox, ledger)
        finally:
            ledger.close()
    finally:
        journal.close()
        inbox.close()


def _watch_over(job: Job, journal: Journal, inbox: Inbox, ledger: Ledger) -> Ended:
    settings, record = job.settings, ledger.record
    outer = _outer(job.environ)
    adopted = _adopted(record, inbox)
    attempt = record.attempt if adopted else attempt_of(job.environ, record.attempt + (record.began > 0))
    began = record.began if adopted else time.time()
    providers = _Providers({}, {}, ()) if outer else _providers(job, attempt, began, journal)
    link = None if outer else _link(job, inbox, journal, attempt)
    resumption, roster = _resumption(job, journal, nested=outer is not None), Roster()
    try:
        inbox.catch(signals_to_catch())
        path = link.path if link else job.environ.get(f"{PREFIX}LINK") if outer else None
        resumed = look(resumption, journal, adopted=adopted is not None)
        env = for_command(job.environ, path, attempt, settings.grace, resumed)
        target: Child | Attached = adopted or Child.prepare(job.argv, env)
        if adopted is None:
            ledger.write_now(Record(machine_life(), target.id, target.pid, attempt, record.futile, began))
        tree = _tree(target, record.group)
        parts = Parts(
            settings=settings,
            inbox=inbox,
            journal=journal,
            ledger=ledger,
            scanner=Scanner(tree.snapshot, inbox.put, lambda: job.helpers.pids),
            marker=_marker(settings, inbox, resumption, roster, nested=outer is not None),
            link=link or NoLink(),
            outer=outer or NoOuter(),
            providers=providers.certain,
            reasons=providers.reasons,
            candidates=providers.candidates,
        )
        argv = command_of(target.id, tree.snapshot(), job.argv) if adopted else job.argv
        say = partial(write_start, journal, argv, settings.job_id, target, link.path if link else None, ledger.record)
        settled = _supervise(job, parts, Supervision(target, job.helpers, say), resumption, roster, record)
        _leave(job, journal, target, tree, settled)
        return Ended(settled.status, isinstance(target, Child) and target.interrupted and not settled.preempted)
    finally:
        _close(resumption, roster, link or NoLink(), outer or NoOuter())


def _leave(job: Job, journal: Journal, target: Child | Attached, tree: Tree, settled: Settled) -> None:
    """See to what a finished command has left running."""
    if job.settings.sweep:
        from preemptd.targets.sweeping import sweep

        sweep(tree.snapshot)
    elif settled.status == 0 and isinstance(target, Child):  # one that was killed may leave anything for a moment
        warn_of_leftovers(journal, without(tree.snapshot(), job.helpers.pids), job.settings.signals)


def _close(*parts: Resumption | Roster | Link | Outer | NoOuter) -> None:
    for part in parts:
        part.close()


def _supervise(
    job: Job, parts: Parts, supervision: Supervision, resumption: Resumption, roster: Roster, before: Record
) -> Settled:
    settings, ledger = parts.settings, parts.ledger
    gc.freeze()
    gc.enable()
    timing = Timing(settings.grace, settings.reserve, Killing.AT_RESERVE if settings.kill else job.killing)
    with _guardian(job, parts.journal, supervision):
        try:
            ending = Daemon(parts, timing, supervision).run()
        except CommandError:
            ledger.write(before)
            raise
        supervision.finish()
    settled = _settle(ending, settings, ledger, before)
    if settled.preempted:
        from preemptd.cli.mending import mend_runs

        mend_runs(roster, parts.journal, ending, settings.code_for_wandb)
    done = settled.status == 0 or ending.done
    resumption.settle(done=done and not settled.preempted, failed=ending.started and not done and not ending.told)
    write_end(parts.journal, supervision.id, ending, settled)
    return settled


def _guardian(job: Job, journal: Journal, supervision: Supervision) -> AbstractContextManager[object]:
    """Arrange for the end of the command should we be killed, if that is wanted."""
    if job.settings.die_with_parent:
        from preemptd.targets.guardian import Guardian

        try:
            return closing(Guardian(supervision.id, job.helpers))
        except OSError as error:
            journal.warn(f"--die-with-parent has no effect ({error.strerror})")
    return nullcontext()


def _ledger(job: Job, inbox: Inbox, journal: Journal) -> Ledger:
    if job.settings.job_id is None:
        return NoLedger(inbox.put)
    directory = state_directory(job.environ, job.settings.state_dir)
    return JobLedger(directory, job.settings.job_id, inbox.put, journal.warn)


def _outer(environ: Mapping[str, str]) -> Outer | None:
    """Find the preemptd around us: it watches and tells, we only wrap."""
    path = environ.get(f"{PREFIX}LINK")
    if not path:
        return None
    from preemptd.link import nested

    return nested.Outer.join(path)


def _providers(job: Job, attempt: int, began: float, journal: Journal) -> _Providers:
    """Choose and construct the providers."""
    settings = job.settings
    entries = installed()
    check_tables(settings.providers, entries)
    loaded = load(entries, settings.provider)
    environ = job.environ if job.platform_environ is None else job.platform_environ
    choice = choose(loaded, settings.provider, read_machine(environ))
    surroundings = Surroundings(environ, settings.job_id, attempt, began, settings.grace, settings.lead)
    built = build(choice.chosen, settings.providers, surroundings)
    candidates = build(choice.to_probe, settings.providers, surroundings)
    left_out = {**entries.left_out, **choice.left_out, **loaded.left_out, **built.left_out, **candidates.left_out}
    for name, why in left_out.items():
        if why not in EXPECTED:
            journal.write("provider", provider=name, state="left-out", why=why)
    reasons = {chosen.provider.name: chosen.why for chosen in choice.chosen}
    return _Providers({provider.name: provider for provider in built.providers}, reasons, candidates.providers)


def _link(job: Job, inbox: Inbox, journal: Journal, attempt: int) -> Server | None:
    """Make our socket. One that the user named must work; ours of our own choice is done without if need be."""
    about = inbox.put, preemptd.__version__, attempt, attempt > 0
    if wish := job.settings.link:
        server = Server(wish, *about)
        try:
            server.open()
        except ConfigError as error:
            # Every command of a preemptd has this variable, and hands it to what it submits to other preemptds.
            if wish != job.environ.get(f"{PREFIX}LINK"):
                raise
            journal.warn(f"{error}: taking one of our own")
        else:
            return server
    path = default_link(job.environ, job.settings.job_id)
    if not is_safe(os.path.dirname(path)):
        journal.warn(f"{os.path.dirname(path)} is not only ours (choose a --link): trainers are told by signals only")
        return None
    server = Server(path, *about)
    try:
        server.open()
    except ConfigError as error:
        journal.warn(f"{error}: trainers are told by signals only")
        return None
    return server


def _marker(settings: Settings, inbox: Inbox, resumption: Resumption, roster: Roster, *, nested: bool) -> Marking:
    if settings.no_wandb or settings.dry_run or nested:
        return NoMarker(inbox.put)
    return Marker(overheard(resumption, inbox.put), roster)


def _resumption(job: Job, journal: Journal, *, nested: bool) -> Resumption:
    """Choose what keeps the W&B run: a rehearsal is no start of the job, and of two preemptds the outer one does it."""
    if nested or job.platform_environ is not None:
        return NoResumption()
    return resumption_of(job.environ, job.settings, job.argv, journal.warn)


def _adopted(record: Record, inbox: Inbox) -> Attached | None:
    """Take over the training that an earlier preemptd of this job started, if it or a member of its group lives."""
    if record.training is None or record.life != machine_life():
        return None
    members = Tree(record.training.pid, include_root=True, group=record.group).snapshot()
    if any(process.pid == record.training.pid and process.start != record.training.start for process in members):
        return None  # a pid is not used again while its group has members: all of this is somebody else's
    living = [process.id for process in members if process.state not in "ZX" and process.start >= record.training.start]
    if not living:
        return None
    training = record.training if record.training in living else min(living, key=lambda process: process.start)
    return Attached(training, record.group, inbox.put)


def _tree(target: Child | Attached, group: int) -> Tree:
    if isinstance(target, Child):
        return Tree(os.getpid(), include_root=False)
    return Tree(target.pid, include_root=True, group=group)


def _settle(ending: Ending, settings: Settings, ledger: Ledger, before: Record) -> Settled:
    """Decide on the exit status, and keep in the ledger what the next attempt needs."""
    record = ledger.record
    progress: bool | None = True if ending.saved else None
    if progress is None and settings.checkpoint_dir and ending.told and os.path.isdir(settings.checkpoint_dir):
        progress = any(file.complete for file in written_since(settings.checkpoint_dir, record.began))
    settled = settle(ending, settings, progress, record.futile)
    if not ending.started:
        ledger.write(before)  # that was no attempt
    elif settled.status == 0 and not settled.preempted:
        ledger.write(Record())
    else:
        ledger.write(replace(record, training=None, futile=settled.futile, told=()))
    return settled
