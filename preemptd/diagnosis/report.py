"""Puts a diagnosis into words that are understood at a glance, and into JSON (docs/doctor.md)."""

from collections.abc import Iterable, Iterator, Mapping, Sequence

from preemptd.diagnosis.findings import Finding, JobDiagnosis, MachineDiagnosis, Seen, SeenRun, losses
from preemptd.log import printable
from preemptd.targets.reachability import brief

_OTHERS = ("mute-preemptd", "silent-preemptd")
VERSION = 1
"""Of the JSON's shape: grows when a field changes its meaning or goes."""


def verdict(diagnosis: JobDiagnosis | MachineDiagnosis) -> str:
    """Say on one line what would be lost if a notice came now."""
    lost = losses(diagnosis.findings)
    rest = [finding for finding in lost if finding.kind != "not-watched"]
    if lost and not rest:
        return f"LOST as it runs now: {lost[0].text}. Under preemptd nothing would be lost{_if(diagnosis)}"
    if rest:
        more = f" (and {len(lost) - 1} more)" if len(lost) > 1 else ""
        return f"LOST: {rest[0].text}{more}"
    if isinstance(diagnosis, MachineDiagnosis) and not diagnosis.watchers:
        return "NOTHING would be lost: nothing is watched over here"
    return f"NOTHING would be lost{_if(diagnosis)}"


def _if(diagnosis: JobDiagnosis | MachineDiagnosis) -> str:
    """Own up to what nobody can see from outside: what a handler does."""
    told = [one for one in diagnosis.processes if one.how] if isinstance(diagnosis, JobDiagnosis) else []
    by_signal = [str(one.process.pid) for one in told if one.how != "link"]
    order = ", if the preemptd there is in order" if any(one.kind in _OTHERS for one in diagnosis.findings) else ""
    if any(one.kind == "unseen-nodes" for one in diagnosis.findings):
        order += ", if it is the same on the other nodes"
    if not by_signal:
        return order
    pids = ", ".join(by_signal[:5]) + (", ..." if len(by_signal) > 5 else "")
    return f"{order}, if what catches the signal in pid {pids} saves: only `preemptd rehearse` can show that"


def as_json(diagnosis: JobDiagnosis | MachineDiagnosis) -> dict[str, object]:
    job = machine = None
    if isinstance(diagnosis, JobDiagnosis):
        job = _job_as_json(diagnosis)
    else:
        machine = {
            "providers": [provider.as_json() for provider in diagnosis.providers],
            "jobs": [_job_as_json(one) for one in diagnosis.jobs],
        }
    return {
        "v": VERSION,
        "verdict": "lost" if losses(diagnosis.findings) else "nothing-lost",
        "text": verdict(diagnosis),
        "findings": [finding.as_json() for finding in diagnosis.findings],
        "preemptds": list(diagnosis.watchers),
        "machine": machine,
        "job": job,
    }


def _job_as_json(diagnosis: JobDiagnosis) -> dict[str, object]:
    return {
        "pid": diagnosis.pid,
        "command": diagnosis.command,
        "processes": [one.as_json() for one in diagnosis.processes],
        "runs": [run.as_json() for run in diagnosis.runs],
        "idle_wandb_services": list(diagnosis.idle_services),
    }


def render_job(diagnosis: JobDiagnosis) -> str:
    watched = [line for answer in diagnosis.watchers for line in _watched(answer)]
    runs = [*map(_run, diagnosis.runs), *(f"pid {pid}: a wandb-core without a run" for pid in diagnosis.idle_services)]
    others = [finding.text for finding in diagnosis.findings if finding.kind in _OTHERS]
    watched = watched or others[:1] or ["by nobody"]
    head = _rows([("job", [f"pid {diagnosis.pid}: {diagnosis.command}"]), ("watched", watched)])
    return "\n".join([*head, "", *_table(diagnosis.processes), "", *_tail(diagnosis, [("W&B", runs or ["no run"])])])


def render_machine(diagnosis: MachineDiagnosis) -> str:
    lines = []
    for provider in diagnosis.providers:
        lines.append(f"{provider.name}: {'' if provider.here else 'not '}here: {provider.why}")
        lines += [f"  {provider.where}"] if provider.where else []
        lines += [f"  {name}: {state}{f': {why}' if why else ''}" for name, (state, why) in provider.watches.items()]
    preemptds = [line for job in diagnosis.jobs for line in _preemptd(job)]
    return "\n".join(_tail(diagnosis, [("platforms", lines or ["none installed"]), ("preemptds", preemptds)]))


def _tail(diagnosis: JobDiagnosis | MachineDiagnosis, rows: Sequence[tuple[str, Sequence[str]]]) -> list[str]:
    lost = losses(diagnosis.findings)
    notes = [finding for finding in diagnosis.findings if not finding.loses]
    return _rows([*rows, ("note", _words(notes)), ("lost", _words(lost)), ("verdict", [verdict(diagnosis)])])


def _rows(rows: Iterable[tuple[str, Sequence[str]]]) -> list[str]:
    return [
        f"{'' if number else name:11} {printable(entry)}"
        for name, entries in rows
        for number, entry in enumerate(entries)
    ]


def _words(findings: Iterable[Finding]) -> list[str]:
    lines = []
    for finding in findings:
        lines.append(finding.text)
        lines += [f"  -> {finding.advice}"] if finding.advice else []
    return lines


def _table(processes: Sequence[Seen]) -> Iterator[str]:
    signals = list(dict.fromkeys(name for one in processes for name in one.signals))
    rows = [["PID", "ROLE", *signals, "A NOTICE WOULD", "COMMAND"]]
    depths: dict[int, int] = {}
    for one in processes:
        depths[one.process.pid] = depths.get(one.process.ppid, -1) + 1
        command = f"{'  ' * min(depths[one.process.pid], 8)}{printable(brief(one.process))}"
        rows.append([str(one.process.pid), one.role, *one.signals.values(), printable(_fate(one)), command])
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for row in rows:
        yield "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()


def _fate(one: Seen) -> str:
    where = "" if one.pid_inside is None else f" [pid {one.pid_inside} in its container]"
    if not one.how:
        return f"leave it alone: {one.why}{where}"
    if one.how == "link":
        return f"tell it over the link{where}"
    return f"tell it by SIG{one.how} ({one.purpose}){', then SIGTERM' if one.then else ''}{where}"


def _watched(answer: Mapping[str, object]) -> Iterator[str]:
    yield f"by preemptd {answer.get('preemptd') or '?'}, link {answer.get('link')}"
    for watch in _items(answer.get("watches")):
        good = watch.get("last_good_s")
        age = "no good answer yet" if good is None else f"last good answer {good} s ago"
        yield f"  {watch.get('watch')}: {watch.get('state') or 'not asked yet'}, {age}"


def _preemptd(job: JobDiagnosis) -> Iterator[str]:
    yield f"over pid {job.pid}: {job.command}"
    yield from (f"  {line}" for answer in job.watchers for line in _watched(answer))
    tell = [f"pid {one.process.pid} ({one.how})" for one in job.processes if one.how]
    runs = ", ".join(run.run_id for run in job.runs)
    yield f"  would tell: {', '.join(tell) or 'nobody'}; W&B runs: {runs or 'none'}"


def _run(run: SeenRun) -> str:
    version = f"wandb {run.version}" if run.version else "version unknown"
    mode = "offline" if run.offline else "online"
    sweep = f", sweep {run.sweep}" if run.sweep else ""
    key = f"API key {'found' if run.key else 'not found'}"
    mark = f"would be marked (answered in {run.ms} ms)" if run.undeliverable is None else "would NOT be marked"
    return f"run {run.run_id} of pid {run.owner_pid}: {mark}; {mode}, {version}, {key}{sweep}"


def _items(value: object) -> list[Mapping[str, object]]:
    return [item for item in value if isinstance(item, Mapping)] if isinstance(value, list) else []
