"""The machine that we are on: whether its platforms answer, and whether the preemptds that run would tell anybody."""

import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence

from preemptd.diagnosis import job
from preemptd.diagnosis.findings import Finding, JobDiagnosis, MachineDiagnosis, SeenProvider
from preemptd.diagnosis.watcher import Heard, Watcher
from preemptd.errors import PreemptdError
from preemptd.provider import Observation, Provider, State, Watch

_HOW = "docs/troubleshooting.md, Metadata is not reached"
ANSWER_WITHIN = 1.0
"""Seconds that each watch has for one look, all of them together."""


def diagnose(
    words: Mapping[str, str], here: Iterable[Provider], heard: Heard, slurm: Sequence[Finding] = ()
) -> MachineDiagnosis:
    """Put together what is known.

    Args:
        words: name of each installed provider to where it stands (``here: ...``, ``not here: ...``).
        here: those that are at home here; each is asked once.
        heard: what the running preemptds said.
        slurm: what was found about the cluster.
    """
    asked = {provider.name: _asked(provider) for provider in here}
    providers = [
        SeenProvider(name, name in asked, why.partition(": ")[2], *asked.get(name, ("", {}, frozenset())))
        for name, why in sorted(words.items())
    ]
    findings = [finding for provider in providers for finding in _of_provider(provider)]
    if not asked:
        text = "no platform that announces preemptions was found here"
        text += " (SLURM announces them inside of its jobs)" if slurm else ""
        findings.append(Finding("no-platform", text, "--provider names one; a signal file works everywhere"))
    jobs = [one for answer in heard.answers for one in _jobs(answer)]
    findings += heard.findings()
    if not jobs and not heard.mute:
        findings.append(Finding("no-preemptd", "no preemptd of yours runs here"))
    findings += slurm
    findings += (finding for one in jobs for finding in one.findings)
    return MachineDiagnosis(providers, jobs, list(dict.fromkeys(findings)))


def _jobs(answer: Mapping[str, object]) -> list[JobDiagnosis]:
    """Judge the job of one preemptd, or each target of a daemon."""
    watcher = Watcher.of(answer)
    if not watcher.is_daemon or not watcher.speaks_our_pids:
        return [_job(watcher, watcher.main_pid)]
    if not watcher.heads:
        return [
            JobDiagnosis(watcher.pid, "a daemon without a running target", [answer], (), (), list(watcher.findings()))
        ]
    return [_job(watcher, pid) for pid in sorted(watcher.heads)]


def _job(watcher: Watcher, pid: int) -> JobDiagnosis:
    """Judge the job of *pid*: what the preemptd says itself may be five seconds old."""
    answer = watcher.answer
    try:
        if watcher.speaks_our_pids:
            return job.diagnose(pid, job.snapshot(pid), Heard([answer]), watcher.policy)
    except PreemptdError:  # it has just ended
        return JobDiagnosis(pid, "", [answer], (), (), ())
    text = f"the preemptd of pid {pid} lives in another pid namespace: only `preemptd doctor {pid}` there can judge it"
    return JobDiagnosis(pid, "", [answer], (), (), [*watcher.findings(), Finding("silent-preemptd", text)])


def _of_provider(provider: SeenProvider) -> Iterator[Finding]:
    for name, (state, why) in provider.watches.items():
        if state == State.UNKNOWN.value and name not in provider.secondary:
            yield Finding("no-answer", f"a notice would not be heard: {name}: {why}", _HOW, loses=True)
        elif state == State.NOTICE.value:
            yield Finding("notice", f"{name}: {why}")


def _asked(provider: Provider) -> tuple[str, dict[str, tuple[str, str]], frozenset[str]]:
    """Let *provider* look once; return what it asked and heard, each watch's state and why, and who is secondary."""
    try:
        watches = provider.watches()
        seen = {name: _judged(observation) for name, observation in ask_once(watches, ANSWER_WITHIN).items()}
        return provider.describe(), seen, frozenset(watch.name for watch in watches if watch.secondary)
    except Exception as error:  # noqa: BLE001 - the plug-in border: a bug in one provider hides no other
        return "", {provider.name: (State.UNKNOWN.value, f"it failed: {error!r}")}, frozenset()


def _judged(observation: Observation | None) -> tuple[str, str]:
    if observation is None:
        return State.UNKNOWN.value, f"no answer within {ANSWER_WITHIN:g} s"
    if observation.notice is not None:
        notice = observation.notice
        return observation.state.value, f"{notice.kind}, {notice.level}: {notice.event_id}"
    return observation.state.value, str(observation.error or "")


def ask_once(watches: Sequence[Watch], limit: float) -> dict[str, Observation | None]:
    """Look at all *watches* at the same time; None: no answer within *limit* seconds. They are closed then."""
    answers: dict[str, Observation | None] = dict.fromkeys(watch.name for watch in watches)

    def ask(watch: Watch) -> None:
        try:
            answer = watch.observe()
        except Exception as error:  # noqa: BLE001 - the plug-in border
            answer = Observation.unknown(f"it failed: {error!r}")
        answers[watch.name] = answer

    threads = [threading.Thread(target=ask, args=(watch,), daemon=True) for watch in watches]
    for thread in threads:
        thread.start()
    end = time.monotonic() + limit
    for thread in threads:
        thread.join(max(0.0, end - time.monotonic()))
    found = dict(answers)
    for watch in watches:
        watch.close()
    return found
