"""A signal-file watch as the daemon would make it, for job 12 that started a minute ago."""

import time
from pathlib import Path

from preemptd.notices import Notice
from preemptd.provider import Surroundings, Watch
from preemptd_providers.file import FileOptions, SignalFile


def surroundings(directory: Path | str, **known: object) -> Surroundings:
    environ = {"PREEMPTD_SIGNAL_DIR": str(directory)}
    environ.update(known.pop("environ", {}))  # type: ignore[call-overload]  # a mapping
    return Surroundings(environ, **{"job_id": "12", "started": time.time() - 60, **known})  # type: ignore[arg-type]


def watch_of(directory: Path | str, options: FileOptions | None = None, **known: object) -> Watch:
    (watch,) = SignalFile(options or FileOptions(), surroundings(directory, **known)).watches()
    return watch


def notice_of(watch: Watch) -> Notice:
    observation = watch.observe()
    assert observation.notice is not None, observation
    return observation.notice
