"""Lightning's Trainer: all ranks save and leave after the same batch when their machine is announced away.

from preemptd.integrations.lightning import PreemptionCallback, last_checkpoint

trainer = Trainer(..., callbacks=[PreemptionCallback()])
trainer.fit(model, ckpt_path=last_checkpoint(trainer))
"""

import importlib
import logging
import os
import re
import shutil
import sys
import time
from importlib.util import find_spec
from typing import Any

from fsspec.core import url_to_fs
from fsspec.implementations.local import LocalFileSystem

import preemptd
from preemptd.integrations.durable_files import sync
from preemptd.integrations.leaving import Preempted, exit_status, why_in_words
from preemptd.integrations.stopping import Stop
from preemptd.integrations.torch import agree, shield

__all__ = ["Preempted", "PreemptionCallback", "last_checkpoint"]

CHECKPOINT = "last-preempted.ckpt"
"""One of those that ``ckpt_path="last"`` chooses from, as the ``last.ckpt`` that `ModelCheckpoint` writes."""
PART = ".part"
UNKNOWN = 30.0
"""Seconds to the end where nobody says: what schedulers give at least."""
VALIDATION = "epoch_loop.val_loop.batch_progress"
"""Where a checkpoint's ``loops`` keep how far the validation has come."""

logger = logging.getLogger(__name__)


def _callbacks() -> tuple[type, ...]:
    """List what the Trainers of the two packages take for a callback: they are copies that do not know each other."""
    installed = [name for name in ("lightning.pytorch", "pytorch_lightning") if find_spec(name.partition(".")[0])]
    if not installed:
        raise ModuleNotFoundError("neither lightning nor pytorch-lightning is installed")
    return tuple(importlib.import_module(name).Callback for name in installed)


_Callback: Any = type("_Callback", _callbacks(), {})


class PreemptionCallback(_Callback):  # type: ignore[misc]  # Lightning is not there for mypy
    """Asks after each batch, also of a validation. All ranks have to have it.

    Args:
        dirpath: where its checkpoint goes. None: to that of the first `ModelCheckpoint` that was given one, else to
            the Trainer's ``default_root_dir``.
        says_done: whether the end of fit() is the end of the training. A script with more than one fit() says
            preemptd.done() by itself, after the last.
    """

    def __init__(self, dirpath: str | os.PathLike[str] | None = None, says_done: bool = True) -> None:
        super().__init__()
        self.preempted = False
        self._dirpath = None if dirpath is None else os.fspath(dirpath)
        self._says_done = says_done
        self._patience = 0.0
        """The monotonic time until which a better moment to save is waited for."""
        self._validates_anew = False
        """Whether a checkpoint of now is one from within a validation."""
        self._is_done = False
        self._stop = Stop()
        self._is_stop = False
        """Whether it leaves for somebody's SIGTERM, and no notice was there."""

    # -- what Lightning calls ------------------------------------------------------------------------------------

    def setup(self, trainer: Any, _module: object, stage: str) -> None:
        self._is_done = self._is_done and stage != "fit"
        if stage == "fit":
            preemptd.undone()  # an earlier fit() of this script was
        # Here already: later `ModelCheckpoint` makes up a directory. What a save was killed over is not to be added to.
        trainer.strategy.remove_checkpoint(self._path(trainer) + PART)
        # What others do after a batch belongs into the checkpoint, such as an average of the weights: we come last.
        trainer.callbacks = [*(callback for callback in trainer.callbacks if callback is not self), self]
        _hush(trainer)
        if not isinstance(trainer.strategy.process_dataloader, _Shielding):
            trainer.strategy.process_dataloader = _Shielding(trainer)
        preemptd.should_preempt()  # who has asked is told, also while it reads its data and compiles its first step
        self._stop.catch()

    def teardown(self, _trainer: object, _module: object, stage: str) -> None:  # noqa: ARG002  # called by its name
        self._stop.release()

    def on_exception(self, _trainer: object, _module: object, _exception: BaseException) -> None:
        self._stop.release()  # nobody calls teardown() then

    def on_train_start(self, trainer: Any, _module: object) -> None:
        if trainer.ckpt_path and self._is_told():  # nothing is new since then
            preemptd.saved(trainer.global_step, trainer.ckpt_path)
            self._leave(trainer)

    def on_train_batch_end(self, trainer: Any, _module: object, _outputs: object, _batch: object, _index: int) -> None:
        if self._is_told() and self._is_the_moment(trainer):
            self._save(trainer)
            self._leave(trainer)

    def on_validation_batch_end(self, trainer: Any, *_: object) -> None:
        if not self._is_told():
            return
        if trainer.state.fn == "fit" and not trainer.sanity_checking:
            self._validates_anew = True
            self._save(trainer)
        self._leave(trainer)

    def on_test_batch_end(self, trainer: Any, *_: object) -> None:
        if self._is_told():
            self._leave(trainer)

    on_predict_batch_end = on_test_batch_end

    def on_save_checkpoint(self, _trainer: object, _module: object, checkpoint: dict[str, Any]) -> None:
        """Have the next run begin the validation anew: Lightning would take one that was begun for done."""
        progress = checkpoint["loops"]["fit_loop"].get(VALIDATION) if self._validates_anew else None
        if progress is not None:
            completed = progress["total"]["completed"]
            begun = {"ready": completed + 1, "started": completed + 1, "processed": completed, "completed": completed}
            progress.update(total=begun, current=dict.fromkeys(begun, 0), is_last_batch=False)

    def on_fit_end(self, trainer: Any, _module: object) -> None:
        trainer.strategy.remove_checkpoint(self._path(trainer))  # one of an earlier run: nobody is to resume from it
        if self._says_done:
            self.preempted, self._is_done = False, True
            preemptd.done()

    # -- what a script may ask -----------------------------------------------------------------------------------

    def directory(self, trainer: Any) -> str:
        """Return where the checkpoint goes, the same at each start of a script."""
        if self._dirpath is None:
            given = (getattr(callback, "dirpath", None) for callback in trainer.checkpoint_callbacks)
            self._dirpath = next((os.fspath(path) for path in given if path), str(trainer.default_root_dir))
        return self._dirpath

    # -- leaving -------------------------------------------------------------------------------------------------

    def _path(self, trainer: Any) -> str:
        return os.path.join(self.directory(trainer), CHECKPOINT)

    def _is_told(self) -> bool:
        """Say whether all ranks are to leave. Nobody disturbs what comes after the end of a training."""
        if self.preempted or self._is_done:
            return self.preempted
        is_notice = agree()
        if is_notice or self._stop.agreed():
            self.preempted, self._is_stop = True, not is_notice
            left = preemptd.time_left()
            self._patience = time.monotonic() + (UNKNOWN if left is None else left) / 2
        return self.preempted

    def _is_the_moment(self, trainer: Any) -> bool:
        """Say whether a checkpoint of now loses nothing, or can wait no longer; the same on all ranks."""
        fit, epoch = trainer.fit_loop, trainer.fit_loop.epoch_loop
        # Gradients that were not applied are not in a checkpoint, what is due at the end of an epoch and a validation
        # would be left out. The next batch is not far, and a validation asks after its first one.
        is_between = (
            trainer.is_last_batch
            or epoch._should_accumulate()  # noqa: SLF001  # nothing public says it
            or (trainer.enable_validation and epoch._should_check_val_fx(fit._data_fetcher))  # noqa: SLF001
        )
        is_now = not is_between or time.monotonic() > self._patience
        return bool(trainer.strategy.reduce_boolean_decision(is_now, all=False))

    def _save(self, trainer: Any) -> None:
        path = self._path(trainer)
        why, left = why_in_words(stopped=self._is_stop)
        logger.warning("%s at step %d, %s", why, trainer.global_step, left)
        preemptd.saving()
        is_local = isinstance(url_to_fs(path)[0], LocalFileSystem)
        try:
            trainer.save_checkpoint(path + PART if is_local else path)
            trainer.strategy.checkpoint_io.teardown()  # of AsyncCheckpointIO, which has only begun
            if is_local and trainer.is_global_zero:
                _complete(path)
        except Exception:  # the disk is full: what lies there is of no use to anybody
            trainer.strategy.remove_checkpoint(path + PART)
            raise
        trainer.strategy.barrier("preempted")  # it is whole; and nobody leaves before
        is_here = not is_local or os.path.exists(path)  # not on another node's disk
        preemptd.saved(trainer.global_step, path if is_here else None)

    def _leave(self, trainer: Any) -> None:
        stopped = self._is_stop and not preemptd.should_preempt()
        raise Preempted(0 if trainer.local_rank > 0 else exit_status(stopped=stopped))  # else its launcher kills rank 0


def last_checkpoint(trainer: Any) -> str | None:
    """Return the newest ``last*.ckpt`` where the `PreemptionCallback` of *trainer* has its own. None: there is none.

    Raises:
        ValueError: *trainer* has none.
    """
    ours = next((callback for callback in trainer.callbacks if isinstance(callback, PreemptionCallback)), None)
    if ours is None:
        raise ValueError("give the Trainer our callback, an instance of it: Trainer(callbacks=[PreemptionCallback()])")
    files, root = url_to_fs(ours.directory(trainer))
    names = files.ls(root, detail=False) if files.isdir(root) else []
    found = [name for name in names if re.fullmatch(r"last.*\.ckpt", os.path.basename(name.rstrip("/")))]
    newest = max(found, key=files.modified, default=None)
    return newest if newest is None or isinstance(files, LocalFileSystem) else files.unstrip_protocol(newest)


def _hush(trainer: Any) -> None:
    """Keep Lightning from catching signals itself, and from asking rank 0 for its SIGTERM before each batch.

    Its handler of SIGTERM broadcasts, whatever the other ranks are at, and hangs unless each of them gets the signal
    exactly once; that of SLURM's signal requeues the job itself, says that the run is finished, and trains on.
    """
    trainer._signal_connector.register_signal_handlers = _nothing  # noqa: SLF001  # there is no option
    trainer.fit_loop.epoch_loop._broadcast_sigterm_tensor = _nothing  # noqa: SLF001
    environment = getattr(trainer.strategy, "cluster_environment", None)
    if getattr(environment, "auto_requeue", False) and "PREEMPTD_LINK" not in os.environ and trainer.is_global_zero:
        logger.warning("Lightning's own requeueing is off: start the job by `preemptd watch`, which requeues it")


def _nothing() -> None:
    pass


class _Shielding:
    """Stands for the strategy's process_dataloader, which is given each loader before it starts its workers.

    A SIGTERM to all of the job, such as torchrun's, ends them else, and we need them to save.
    """

    def __init__(self, trainer: Any) -> None:
        self._process = trainer.strategy.process_dataloader
        self._rank = trainer.global_rank
        connector = sys.modules[type(trainer._data_connector).__module__]  # noqa: SLF001  # of one of two packages
        self._seed = getattr(connector, "_auto_add_worker_init_fn", None)
        """What Lightning does next, to a loader without a worker_init_fn, for ``seed_everything(workers=True)``."""

    def __call__(self, loader: object) -> object:
        if self._seed is not None:
            self._seed(loader, self._rank)
        shield(loader)
        return self._process(loader)


def _complete(path: str) -> None:
    """Give the checkpoint that was written beside *path* its name, when it is on the disk."""
    part = path + PART
    files = [os.path.join(folder, name) for folder, _, names in os.walk(part) for name in names]
    for name in files or [part]:
        sync(name)
    if os.path.isdir(path):  # of a strategy that shards: a directory is not replaced
        shutil.rmtree(path)
    os.replace(part, path)
    sync(os.path.dirname(path))
