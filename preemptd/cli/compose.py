"""Makes everything that a job needs and starts its command: what can be wrong is found out before that."""

import os
import time
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

import preemptd
from preemptd.cli import misspelt
from preemptd.cli.environment import attempt_of, default_link, for_command, is_safe, passed_on, state_directory
from preemptd.cli.jobs import Ended, Job, Made, Providers
from preemptd.cli.observing import Latecomers, finish, observers
from preemptd.cli.resuming import look, resumption_of
from preemptd.cli.rounds import not_again
from preemptd.cli.saying import command_of, write_start
from preemptd.cli.syncing import syncing_among
from preemptd.config import PREFIX
from preemptd.errors import CommandError, ConfigError
from preemptd.events import Inbox, SignalArrived
from preemptd.journal import Journal
from preemptd.journal_file import JournalFile
from preemptd.ledger import JobLedger, Ledger, NoLedger, Record
from preemptd.link.server import Server
from preemptd.log import Log
from preemptd.procfs import Tree, boot_id, machine_life
from preemptd.provider import Requeue, Surroundings
from preemptd.registry import EXPECTED, build, check_tables, choose, installed, load, read_machine
from preemptd.resumption.keeper import NoResumption, Resumption
from preemptd.resumption.record import job_name
from preemptd.sightings import NoSightings, SightingFiles, Sightings
from preemptd.supervision import STOPS, Supervision, signals_to_catch
from preemptd.targets.attached import Attached
from preemptd.targets.child import Child
from preemptd.targets.reaping import Shielded
from preemptd.targets.scripts import Scripts, of_the_user

if TYPE_CHECKING:
    from preemptd.parts import Outer


def run(job: Job) -> Ended:
    """Watch over *job* to its end.

    Raises:
        PreemptdError: nothing was started, or the command cannot be executed.
    """
    if job.settings.sync:
        from preemptd.cli.syncing import named

        job = named(job)
    _check(job)
    journal = Journal()
    journal.add(Log(2, job.settings.log_format))
    if job.settings.journal:
        journal.add(JournalFile(job.settings.journal, journal.warn))
    for text in misspelt.warnings(job.environ):
        journal.warn(text)
    rehearsed = job.platform_environ is not None
    observing = observers(job.settings, job.environ, job.helpers, journal, rehearsed=rehearsed)
    job = replace(job, sinks=(*job.sinks, *observing))
    for sink in job.sinks:
        journal.add(sink)
    inbox = Inbox()
    try:
        ledger = _ledger(job, inbox, journal)
        try:
            ended = _watch_over(job, journal, inbox, ledger)
        finally:
            ledger.close()
        late = Latecomers(inbox)
        finish(journal, job.sinks, late.stopped)
        stops = [event.signum for event in late.taken() if isinstance(event, SignalArrived) and event.signum in STOPS]
        if stops and ended.again is not None:
            journal.warn(not_again(stops[0]))
        return ended.with_stops(stops)
    finally:
        journal.close()
        inbox.close()


def _check(job: Job) -> None:
    """Refuse what would be found out only when a checkpoint is looked for."""
    directory = job.settings.checkpoint_dir
    if directory is not None and os.path.exists(directory) and not os.path.isdir(directory):
        raise ConfigError(f"--checkpoint-dir {directory} is no directory: name the one that checkpoints are written to")


def _watch_over(job: Job, journal: Journal, inbox: Inbox, ledger: Ledger) -> Ended:
    settings, record = job.settings, ledger.record
    outer = _outer(job.environ)
    adopted = _adopted(job, record, inbox)
    inbox.catch(signals_to_catch())
    before = syncing_among(job.sinks).restore(inbox, fetch=adopted is None)
    attempt = record.attempt if adopted else _attempt(job, record, before)
    began = record.began if adopted else job.restarts.since or time.time()
    providers = Providers({}, {}, ()) if outer else providers_of(job, attempt, began, journal)
    link = None if outer else link_of(job, inbox, journal, attempt, settings.job_id)
    resumption = _resumption(job, journal, nested=outer is not None)
    try:
        path = link.path if link else job.environ.get(f"{PREFIX}LINK") if outer else None
        resumed = look(resumption, journal, adopted=adopted is not None)
        env = for_command(job.environ, path, attempt, settings.grace, resumed)
        target: Child | Attached = adopted or Child.prepare(job.argv, env, shielded=settings.shield_term)
        if adopted is None:
            futile = record.futile or job.restarts.futile
            ledger.write_now(Record(machine_life(), target.id, target.pid, attempt, futile, began))
        tree = _tree(target, record.group)
        argv = command_of(target.id, tree.snapshot(), job.argv) if adopted else job.argv
        say = partial(write_start, journal, argv, settings.job_id, target, link.path if link else None, ledger.record)
        supervision = Supervision(target, job.helpers, say)
        holds = settings.when_pending != "start" and any(p.holds_commands for p in providers.certain.values())
        if not settings.die_with_parent and not holds:
            supervision.release()  # before the rest of us is imported: no notice could hold it back
        from preemptd.cli.running import supervise

        return supervise(
            Made(job, inbox, journal, ledger, record, providers, link, outer, resumption, target, tree, supervision)
        )
    except CommandError:
        ledger.write(record)  # that was no attempt
        raise
    finally:
        for part in (resumption, link, outer):
            if part is not None:
                part.close()


def _attempt(job: Job, record: Record, before: int) -> int:
    if job.attempt is not None:
        return job.attempt
    if job.settings.job_id is None:  # a SLURM job's script may start the same command twice in one attempt
        return attempt_of(job.environ, 0)
    return attempt_of(job.environ, max(before, record.attempt + (record.began > 0)))


def _ledger(job: Job, inbox: Inbox, journal: Journal) -> Ledger:
    directory = state_directory(job.environ, job.settings.state_dir)
    if job.settings.job_id is not None:
        return JobLedger(directory, job.settings.job_id, inbox.put, journal.warn)
    name = job_name(job.environ, None, job.argv, os.getcwd())
    if name is None:
        return NoLedger(inbox.put)
    try:  # a SLURM job is itself from one start to the next; nobody asked for this, so nobody hears what it lacks
        return JobLedger(directory, name.name, inbox.put, lambda _: None)
    except ConfigError:
        return NoLedger(inbox.put)


def _outer(environ: Mapping[str, str]) -> "Outer | None":
    """Find the preemptd around us: it watches and tells, we only wrap."""
    path = environ.get(f"{PREFIX}LINK")
    if not path:
        return None
    from preemptd.link import nested

    return nested.Outer.join(path)


def providers_of(job: Job, attempt: int, began: float, journal: Journal) -> Providers:
    """Choose and construct the providers."""
    settings = job.settings
    entries = installed()
    check_tables(settings.tables, entries)
    loaded = load(entries, settings.provider)
    environ = job.environ if job.platform_environ is None else job.platform_environ
    choice = choose(loaded, settings.provider, read_machine(environ))
    surroundings = Surroundings(
        environ,
        settings.job_id,
        attempt,
        began,
        settings.grace,
        settings.lead,
        Requeue(frozenset(settings.requeue_on), settings.max_requeues, settings.requeue_delay),
        Shielded(job.helpers),
        journal.warn,
        Scripts(of_the_user(job.helpers, job.environ), passed_on(job.environ)),
        _sightings(job),
    )
    built = build(choice.chosen, settings.tables, surroundings)
    candidates = build(choice.to_probe, settings.tables, surroundings)
    left_out = {**entries.left_out, **choice.left_out, **loaded.left_out, **built.left_out, **candidates.left_out}
    for name, why in left_out.items():
        if why not in EXPECTED:
            journal.write("provider", provider=name, state="left-out", why=why)
    reasons = {chosen.provider.name: chosen.why for chosen in choice.chosen}
    return Providers({provider.name: provider for provider in built.providers}, reasons, candidates.providers)


def _sightings(job: Job) -> Sightings:
    if job.platform_environ is not None:  # what is rehearsed is seen by nobody
        return NoSightings()
    return SightingFiles(state_directory(job.environ, job.settings.state_dir), boot_id())


def link_of(job: Job, inbox: Inbox, journal: Journal, attempt: int, name: str | None) -> Server | None:
    """Make our socket, of this *name* if nobody chose a path.

    One that the user named must work; ours of our own choice is done without if need be.
    """
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
    path = default_link(job.environ, name)
    if not is_safe(os.path.dirname(path)):
        journal.warn(f"{os.path.dirname(path)} is not only ours (choose a --link): trainers are told by signals only")
        return None
    # Containers that share the directory have pids of their own: the same number may be taken.
    others = [] if name else [default_link(job.environ, f"{os.getpid()}-{os.urandom(4).hex()}")]
    complaints = []
    for candidate in (path, *others):
        server = Server(candidate, *about)
        try:
            server.open()
        except ConfigError as error:
            complaints.append(error)
        else:
            return server
    journal.warn(f"{complaints[0]}: trainers are told by signals only")
    return None


def _resumption(job: Job, journal: Journal, *, nested: bool) -> Resumption:
    """Choose what keeps the W&B run: a rehearsal is no start of the job, and of two preemptds the outer one does it."""
    if nested or job.platform_environ is not None:
        return NoResumption()
    return resumption_of(job.environ, job.settings, job.argv, journal.warn, job.restarts.memory)


def _adopted(job: Job, record: Record, inbox: Inbox) -> Attached | None:
    """Take over the training that an earlier preemptd of this job started, if it or a member of its group lives."""
    if record.training is None or record.life != machine_life():
        return None
    if job.settings.job_id is None and record.attempt != attempt_of(job.environ, 0):
        return None  # SLURM has started the job anew: what is left of the last time is about to be killed
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
