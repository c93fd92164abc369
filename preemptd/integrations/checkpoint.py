"""Checkpoints that survive a preemption: whole or not there, with all that a training needs to go on as if nothing was.

checkpointer = Checkpointer("checkpoints", model=model, optimizer=optimizer)
restored = checkpointer.load_latest()
for epoch in range(restored.step + 1 if restored else 0, epochs):
    train(epoch)
    checkpointer.step(epoch)  # saves, and leaves if this job is being preempted
checkpointer.remove()
"""

import contextlib
import logging
import os
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any, NamedTuple

import preemptd
from preemptd.integrations.generations import Generations, run_ids
from preemptd.integrations.leaving import EX_TEMPFAIL, Preempted, exit_status
from preemptd.integrations.manifest import CheckpointError, Fingerprint, Manifest, plain
from preemptd.integrations.ranks import Ranks
from preemptd.integrations.training_state import DamagedError, Stateful, TrainingState

__all__ = ["CheckpointError", "Checkpointer", "Preempted", "Restored", "run_ids"]

NO_RUN = "default"
"""Stands for the run id where there is none."""

logger = logging.getLogger(__name__)


class Restored(NamedTuple):
    """What was loaded."""

    step: int
    metadata: Mapping[str, Any]
    resumes: int
    """How many starts of this run came before this one, as far as they have saved anything."""
    run_id: str
    path: str


class _Part(NamedTuple):
    """What one rank has done for a checkpoint, and knows."""

    files: Mapping[str, Fingerprint]
    told: bool
    left: float | None


class _Saved(NamedTuple):
    path: str
    told: int | None
    """A rank that was told to leave."""
    left: float | None
    """Seconds, of the rank that has least."""


class Checkpointer:
    """Saves and loads the checkpoints of one run. Under torch.distributed all ranks make each call together.

    *run_id* names the run, by default W&B's if there is one. *keep* is how many checkpoints stay. *grace* is how many
    seconds the platform gives: a save that takes longer is warned of. What is None among *stateful* is left out.
    """

    def __init__(
        self,
        directory: "str | os.PathLike[str]",
        *,
        run_id: str | None = None,
        keep: int = 2,
        grace: float = 30.0,
        weights_only: bool = True,
        **stateful: Stateful | None,
    ) -> None:
        if keep < 1:
            raise ValueError(f"keep={keep}: one checkpoint has to stay")
        if not grace >= 0:
            raise ValueError(f"grace={grace}: it is seconds, 0 or more")
        self.seconds: float | None = None
        """How long a save takes: the last one, or that of the checkpoint that was loaded; None: nobody knows."""
        self._directory = os.path.abspath(directory)
        self._run_id = run_id
        self._keep = keep
        self._grace = grace
        there = {name: part for name, part in stateful.items() if part is not None}
        self._state = TrainingState(there, weights_only=weights_only)
        self._attempt: int | None = None
        self._damaged: set[int] = set()
        self._ranks: Ranks | None = None
        preemptd.advice()  # joins the daemon, if there is one: it is to know early that this process listens

    def load_latest(self) -> Restored | None:
        """Take over the latest checkpoint that is whole on all ranks; None: nothing was ever saved.

        Raises CheckpointError: there are some, and none of them can be loaded.
        """
        with _clearly(f"nothing is loaded from {self._directory}"):
            ranks, generations = self._joined()
            found = self._find(ranks, generations)
            attempt = ranks.first(generations.next_attempt)
        if found is None:
            if ranks.rank == 0:
                self._mention_others(generations)
            return None
        path, manifest = found
        with _clearly(f"{path} is not loaded"):
            ranks.together(lambda: self._state.apply(ranks.rank))
        self._attempt, self.seconds = attempt, manifest.seconds
        return Restored(manifest.step, manifest.metadata, attempt - 1, manifest.run_id, path)

    def save(self, step: int, metadata: Mapping[str, object] | None = None) -> str:
        """Write a checkpoint, remove the oldest one, and return the new one's directory.

        Raises CheckpointError: it was not written, and those that were there are still there.
        """
        # Without a daemon asking means catching SIGTERM, which is not for those who never ask what came of it.
        return self._save(step, metadata or {}, asks="PREEMPTD_LINK" in os.environ).path

    def step(self, step: int, metadata: Mapping[str, object] | None = None) -> None:
        """Save; and if any rank of the job was told to leave, end the W&B run and leave, with the right exit status."""
        saved = self._save(step, metadata or {}, asks=True)
        if saved.told is None:
            return
        if not preemptd.should_preempt():  # another node's preemptd was told: ours has to know why this rank leaves
            preemptd.notify(deadline_s=saved.left, reason=f"rank {saved.told} has been told")
        logger.warning("preempted: step %d is saved in %s, leaving", step, saved.path)
        _end_wandb_run(30.0 if saved.left is None else max(1.0, saved.left - 1.0))
        raise Preempted(exit_status())

    def remove(self) -> None:
        """Remove all checkpoints of this run, and nothing else: when its training has reached its end."""
        with _clearly(f"the checkpoints in {self._directory} are not removed"):
            ranks, generations = self._joined()
            ranks.first(generations.remove)

    def _joined(self) -> tuple[Ranks, Generations]:
        if self._ranks is None or self._ranks.stale:
            self._ranks = Ranks()
        if self._run_id is None:  # W&B's run is often known to rank 0 alone
            self._run_id = self._ranks.first(lambda: _wandb_run_id() or NO_RUN)
        return self._ranks, Generations(self._directory, self._run_id)

    def _find(self, ranks: Ranks, generations: Generations) -> tuple[str, Manifest] | None:
        """Read the latest checkpoint that no rank finds a fault in; return its path and manifest."""
        candidates = generations.latest_first()
        while found := ranks.first(lambda: next(candidates, None)):
            path, manifest = found
            fault = next(filter(None, ranks.together(partial(self._fault, path, manifest, ranks))), None)
            if fault is None:
                break
            self._damaged.add(manifest.generation)
            if ranks.rank == 0:
                logger.warning("%s is skipped: %s", path, fault)
        ranks.first(lambda: generations.account(found and found[1].generation, self._damaged))
        return found

    def _fault(self, path: str, manifest: Manifest, ranks: Ranks) -> str | None:
        try:
            self._state.read(path, manifest.files, ranks.rank, ranks.size)
        except DamagedError as error:
            return str(error)
        return None

    def _save(self, step: int, metadata: Mapping[str, object], *, asks: bool) -> _Saved:
        began = time.monotonic()
        left = preemptd.time_left() if asks else None
        if self.seconds is not None and left is not None and left < self.seconds:
            logger.warning("a save takes about %.1f s, and only %.1f s are left", self.seconds, left)
        preemptd.saving()
        with _clearly(f"step {step} is not saved in {self._directory}"):
            ranks, generations = self._joined()
            if self._attempt is None:
                self._attempt = ranks.first(generations.next_attempt)
            content, number, path = ranks.first(lambda: (plain(metadata), *generations.claim()))
            try:
                parts = ranks.together(lambda: self._write(path, ranks.rank, asks=asks))
                manifest = Manifest(
                    run_id=generations.run_id,
                    generation=number,
                    attempt=self._attempt,
                    step=int(step),
                    world_size=ranks.size,
                    seconds=time.monotonic() - began,
                    metadata=content,
                    files={name: file for part in parts for name, file in part.files.items()},
                )
                ranks.first(lambda: generations.commit(manifest))
            except BaseException:
                if ranks.rank == 0:
                    generations.abandon(number)
                raise
        preemptd.saved(manifest.step, path)
        self._took(time.monotonic() - began)
        if ranks.rank == 0:
            generations.prune(self._keep, manifest, self._damaged)
        told = next((rank for rank, part in enumerate(parts) if part.told), None)
        return _Saved(path, told, min((part.left for part in parts if part.left is not None), default=None))

    def _write(self, path: str, rank: int, *, asks: bool) -> _Part:
        files = self._state.write(path, rank)
        return _Part(files, asks and preemptd.should_preempt(), preemptd.time_left() if asks else None)

    def _mention_others(self, generations: Generations) -> None:
        """Say so if a run that begins anew is only called by another name than before."""
        others = [run_id for run_id in run_ids(self._directory) if run_id != generations.run_id]
        if others and "WANDB_SWEEP_ID" not in os.environ:  # there each start may be another run's
            few = ", ".join([*others[:5], *(["..."] if others[5:] else [])])
            logger.warning("run %s has no checkpoint in %s; these have: %s", generations.run_id, self._directory, few)

    def _took(self, seconds: float) -> None:
        if seconds > self._grace >= (self.seconds or 0.0):
            logger.warning("this save took %.1f s, a platform may give %.0f s", seconds, self._grace)
        self.seconds = seconds


@contextlib.contextmanager
def _clearly(what: str) -> Iterator[None]:
    """Make one line of what goes wrong."""
    try:
        yield
    except OSError as error:
        place = f": {error.filename}" if error.filename else ""
        raise CheckpointError(f"{what}: {error.strerror}{place}") from None
    except CheckpointError as error:
        raise CheckpointError(f"{what}: {error}") from error.__cause__


def _wandb_run() -> Any:
    run = getattr(sys.modules.get("wandb"), "run", None)  # what the script has not loaded has no run
    return None if getattr(run, "disabled", False) else run  # such a one gets a new id at each start


def _wandb_run_id() -> str | None:
    run = _wandb_run()
    return os.environ.get("WANDB_RUN_ID") if run is None else str(run.id)


def _end_wandb_run(patience: float) -> None:
    """Let W&B know why this process ends, within *patience* seconds: its server may be out of reach."""
    run = _wandb_run()
    if run is None:
        return

    def end() -> None:
        try:
            run.mark_preempting()
            run.finish(exit_code=EX_TEMPFAIL)
        except Exception as error:  # noqa: BLE001  # wandb's insides; the checkpoint is what counts
            logger.warning("the W&B run was not ended: %r", error)

    thread = threading.Thread(target=end, name="preemptd-wandb-end", daemon=True)
    thread.start()
    thread.join(patience)
