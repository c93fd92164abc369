"""Figures of `preemptd daemon` with many targets."""

import os
import signal
import subprocess
import time
from pathlib import Path

import psutil

from tests.test_serve_many import trainings
from tests.waiting import wait_until
from tests.watching import environment, read_lines

MARK = "targets"


def figures(preemptd: Path, scratch: Path, *, quick: bool) -> str:
    counts = (20, 100) if quick else (20, 100, 500)
    rows = [row(preemptd, scratch / str(count), count, 3 if quick else 30) for count in counts]
    return "\n".join(
        [
            "| targets | idle, % of a core | RSS, MiB | notice to the first told, ms | the last | last : that of 20 |",
            "|---|---|---|---|---|---|",
            *(
                f"| {count} | {cpu:.2f} | {rss:.1f} | {first:.0f} | {last:.0f} | {last / rows[0][4]:.1f} |"
                for count, cpu, rss, first, last in rows
            ),
        ]
    )


def row(preemptd: Path, directory: Path, count: int, idle: float) -> tuple[int, float, float, float, float]:
    """Measure the processor over *idle* seconds, and one notice."""
    directory.mkdir()
    log, journal, signals = directory / "told", directory / "journal", directory / "signals"
    signals.mkdir()
    with trainings(count, log) as pids:
        config = directory / "preemptd.toml"
        targets = "".join(f"[[target]]\npid = {pid}\n" for pid in pids)
        config.write_text(f'provider = ["file"]\ngrace = 60\nno_wandb = true\n{targets}')
        own = {name: str(directory) for name in ("XDG_RUNTIME_DIR", "XDG_STATE_HOME")}
        daemon = subprocess.Popen(
            [preemptd, "daemon", "--config", config, "--journal", journal],
            env=environment({**own, "PREEMPTD_SIGNAL_DIR": str(signals)}),
            stderr=subprocess.DEVNULL,
        )
        try:
            wait_until(lambda: len(events(journal, "target")) >= count, 120, "all targets are known", pause=0.1)
            process = psutil.Process(daemon.pid)
            before, began = process.cpu_times(), time.monotonic()
            time.sleep(idle)
            after, took = process.cpu_times(), time.monotonic() - began
            rss = process.memory_info().rss / 2**20
            new = signals / "new"
            new.touch()
            new.rename(signals / f"node-{os.uname().nodename}.preempt")
            wait_until(lambda: len(moments(log)) >= count, 120, "all are told", pause=0.05)
            notice = float(str(events(journal, "notice")[0]["mono"]))
        finally:
            daemon.send_signal(signal.SIGTERM)
            daemon.wait(30)
    cpu = 100 * (after.user + after.system - before.user - before.system) / took
    told = [1000 * (at - notice) for at in moments(log)]
    return count, cpu, rss, min(told), max(told)


def events(journal: Path, name: str) -> list[dict[str, object]]:
    return [line for line in read_lines(journal) if line["event"] == name]


def moments(log: Path) -> list[float]:
    return [float(line.split()[1]) for line in log.read_text().splitlines()] if log.exists() else []
