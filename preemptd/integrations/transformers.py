"""The Trainer of Hugging Face: all ranks save and stop at the same step when their machine is announced away.

from preemptd.integrations.transformers import PreemptionCallback, last_checkpoint

trainer = Trainer(..., callbacks=[PreemptionCallback()])
trainer.train(resume_from_checkpoint=last_checkpoint(trainer.args.output_dir))
"""

import contextlib
import json
import logging
import os
import sys
from collections.abc import Callable, Iterable

import torch.distributed as dist
from torch.utils.data import DataLoader
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

import preemptd
from preemptd.integrations.durable_files import sync
from preemptd.integrations.leaving import Preempted, exit_status, time_left_in_words
from preemptd.integrations.torch import agree, shield_worker

__all__ = ["Preempted", "PreemptionCallback", "last_checkpoint"]

STATE = "trainer_state.json"
"""What the first rank writes last into a checkpoint."""

logger = logging.getLogger(__name__)


class PreemptionCallback(TrainerCallback):  # type: ignore[misc]  # transformers is not there for mypy
    """Asks after each step, each micro-batch and each batch of an evaluation. All ranks have to have it.

    A script with more than one train() calls preemptd.done() by itself, after the last: *says_done* is False then.
    """

    def __init__(self, says_done: bool = True) -> None:
        self.preempted = False
        self._says_done = says_done
        self._trains = False
        self._kept: int | None = None
        """The step of the newest checkpoint that is whole."""
        self._jit: _JitManager | None = None
        preemptd.should_preempt()  # who has asked is told, also while it reads its data and compiles its first step

    def on_train_begin(
        self, _args: TrainingArguments, state: TrainerState, _control: TrainerControl, **_parts: object
    ) -> None:
        self._trains = True
        self._kept = state.global_step or None  # not 0: it was resumed, and nothing is new until a step is done
        trainer = _trainer()
        if trainer is None:
            return
        handler = trainer.callback_handler
        self._jit = _hushed(handler.callbacks)
        # What others wish for after a step comes before ours, and they have come to their end when we leave.
        handler.callbacks = [*(callback for callback in handler.callbacks if callback is not self), self]
        _shield(handler.train_dataloader)
        if not isinstance(trainer.get_eval_dataloader, _ShieldedLoaders):
            trainer.get_eval_dataloader = _ShieldedLoaders(trainer.get_eval_dataloader)

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_parts: object
    ) -> None:
        if agree():
            self._stop(args, state, control)

    on_substep_end = on_step_end

    def on_prediction_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_parts: object
    ) -> None:
        """Leave an evaluation by an exception, the only way out of its loop; what it has measured so far is dropped."""
        if not self._trains or not (self.preempted or agree()):
            return
        self._stop(args, state, control)
        trainer = _trainer()
        if trainer is None:
            return  # a loop that is not the Trainer's: it saves and stops when the evaluation is through
        if control.should_save:
            trainer._save_checkpoint(trainer.model, trial=getattr(trainer, "_trial", None))  # noqa: SLF001  # nothing public saves all
            trainer.callback_handler.on_save(args, state, control)
        trainer.callback_handler.on_train_end(args, state, control)

    def on_epoch_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_parts: object
    ) -> None:
        if self.preempted:  # others ask for an evaluation and one more checkpoint, now that the epoch is over
            self._stop(args, state, control)

    def on_save(self, args: TrainingArguments, state: TrainerState, _control: TrainerControl, **_parts: object) -> None:
        self._kept = state.global_step
        self._say_saved(args, state)

    def on_train_end(
        self, _args: TrainingArguments, state: TrainerState, _control: TrainerControl, **_parts: object
    ) -> None:
        self._trains = False
        if self.preempted:
            raise Preempted(exit_status())
        if self._says_done and not state.is_hyper_param_search and self._is_at_its_end(state):
            preemptd.done()

    def _stop(self, args: TrainingArguments, state: TrainerState, control: TrainerControl) -> None:
        """Have the Trainer save, unless this very step is saved, and leave its loops."""
        if not self.preempted:
            self.preempted = True
            logger.warning("preempted at step %d, %s", state.global_step, time_left_in_words())
            preemptd.saving()
            if self._kept == state.global_step:
                self._say_saved(args, state)
        control.should_save = self._kept != state.global_step
        control.should_evaluate = False
        control.should_training_stop = True

    def _say_saved(self, args: TrainingArguments, state: TrainerState) -> None:
        path = os.path.join(args.output_dir, f"{PREFIX_CHECKPOINT_DIR}-{state.global_step}")
        if self.preempted:
            _sync_all(path)
        if dist.is_available() and dist.is_initialized():
            dist.barrier()  # it is whole when all ranks have written theirs; and nobody leaves before
        preemptd.saved(state.global_step, path if os.path.isdir(path) else None)  # None: on another node's disk
        if self.preempted:
            # The Trainer would load the best checkpoint now, and with save_total_limit=1 delete the one just written.
            state.best_model_checkpoint = None

    def _is_at_its_end(self, state: TrainerState) -> bool:
        """Say whether the training ended by itself; where we cannot know, it did not."""
        if state.global_step >= state.max_steps:
            return True
        stopped_by_jit = self._jit is not None and self._jit.has_saved
        return not stopped_by_jit and not preemptd.should_preempt()  # what is left is early stopping


class _JitManager:
    """What `enable_jit_checkpoint` asks: its SIGTERM counts while no notice is open, else it would save twice."""

    def __init__(self, manager: object) -> None:
        self._manager = manager
        self.has_saved = False

    def __getattr__(self, name: str) -> object:
        return getattr(self._manager, name)

    @property
    def is_checkpoint_requested(self) -> bool:
        return bool(getattr(self._manager, "is_checkpoint_requested", False)) and not preemptd.should_preempt()

    def execute_jit_checkpoint(self) -> None:
        self._manager.execute_jit_checkpoint()  # type: ignore[attr-defined]  # see TrainerCallback
        self.has_saved = True


def last_checkpoint(output_dir: str | os.PathLike[str]) -> str | None:
    """Return the path of the newest checkpoint that was written to its end. None: there is none yet."""
    found = []
    for name in os.listdir(output_dir) if os.path.isdir(output_dir) else ():
        prefix, _, step = name.rpartition("-")
        if prefix == PREFIX_CHECKPOINT_DIR and step.isdecimal() and _is_whole(os.path.join(output_dir, name)):
            found.append((int(step), os.path.join(output_dir, name)))
    return max(found, default=(0, None))[1]


def _is_whole(checkpoint: str) -> bool:
    try:
        with open(os.path.join(checkpoint, STATE), encoding="utf-8") as file:
            json.load(file)
    except (OSError, ValueError):
        return False
    return True


def _trainer() -> Trainer | None:
    """Return the Trainer that calls us: it hands a callback all that it has, but not itself."""
    frame = sys._getframe(1)  # noqa: SLF001  # there is no other way to one's callers
    while frame is not None:
        found = frame.f_locals.get("self")
        if isinstance(found, Trainer):
            return found
        frame = frame.f_back  # type: ignore[assignment]
    return None


def _hushed(callbacks: Iterable[object]) -> _JitManager | None:
    """Put us in between the Trainer's own SIGTERM checkpoint and its callback. None: it is not enabled."""
    for callback in callbacks:
        manager = getattr(callback, "jit_manager", None)
        if manager is not None:
            ours = manager if isinstance(manager, _JitManager) else _JitManager(manager)
            vars(callback)["jit_manager"] = ours
            return ours
    return None


class _ShieldedWorkers:
    """Stands for a DataLoader's worker_init_fn; a class, so that spawned workers can be sent it."""

    def __init__(self, init: Callable[[int], object] | None) -> None:
        self._init = init

    def __call__(self, worker_id: int) -> None:
        shield_worker(worker_id)
        if self._init is not None:
            self._init(worker_id)


class _ShieldedLoaders:
    """Stands for the Trainer's get_eval_dataloader: each evaluation may have new workers."""

    def __init__(self, get: Callable[..., object]) -> None:
        self._get = get

    def __call__(self, *given: object, **named: object) -> object:
        loader = self._get(*given, **named)
        _shield(loader)
        return loader


def _shield(loader: object) -> None:
    """Have the workers of *loader* live through a SIGTERM to all of the job, such as SLURM's: we need them to save."""
    loader = getattr(loader, "base_dataloader", loader)  # what accelerate has wrapped
    init = getattr(loader, "worker_init_fn", None)
    if isinstance(loader, DataLoader) and not isinstance(init, _ShieldedWorkers):
        loader.worker_init_fn = _ShieldedWorkers(init)


def _sync_all(checkpoint: str) -> None:
    """Have what this rank has written on the disk: the machine may be switched off."""
    for folder, _, names in os.walk(checkpoint):
        for path in (folder, *(os.path.join(folder, name) for name in names)):
            with contextlib.suppress(FileNotFoundError):  # another rank's, under the name it had while it was written
                sync(path)
