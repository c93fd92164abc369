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
from types import FrameType

import torch.distributed as dist
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR, IntervalStrategy

import preemptd
from preemptd.integrations.durable_files import sync
from preemptd.integrations.leaving import Preempted, exit_status, why_in_words
from preemptd.integrations.stopping import Stop
from preemptd.integrations.torch import agree, shield

__all__ = ["Preempted", "PreemptionCallback", "last_checkpoint"]

STATE = "trainer_state.json"
"""What the first rank writes last into a checkpoint."""
OWED = "preemptd"
"""Where a TrainerState keeps the step whose evaluation was broken off, or not begun, for a notice."""

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
        self._stops = Stop(_is_training)
        self._is_stop = False
        """Whether it leaves for somebody's SIGTERM, and no notice was there."""
        preemptd.should_preempt()  # who has asked is told, also while it reads its data and compiles its first step

    def on_init_end(self, *_: object, **_parts: object) -> None:
        self._comes_last(_trainer())

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_parts: object
    ) -> None:
        self._trains = True
        self._kept = state.global_step or None  # not 0: it was resumed, and nothing is new until a step is done
        preemptd.undone()  # an earlier train() of this script was
        trainer = _trainer()
        if trainer is None or not self._comes_last(trainer):
            return
        handler = trainer.callback_handler
        self._jit = _hushed(handler.callbacks)
        if self._jit is None:
            self._stops.catch()
        _shield(handler.train_dataloader)
        if not isinstance(trainer.get_eval_dataloader, _ShieldedLoaders):
            trainer.get_eval_dataloader = _ShieldedLoaders(trainer.get_eval_dataloader)
        is_owed = state.stateful_callbacks.pop(OWED, {}).get("step") == state.global_step
        if is_owed and args.eval_strategy != IntervalStrategy.NO:
            _evaluate(trainer)
        if control.should_training_stop or 0 < state.max_steps <= state.global_step:
            control.should_training_stop = True
            trainer.get_batch_samples = _no_batches  # the Trainer asks only after a step whether it is to stop

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_parts: object
    ) -> None:
        if self._is_told():
            epoch = state.epoch or 0.0
            is_due = args.eval_strategy == IntervalStrategy.EPOCH and epoch >= args.eval_delay and epoch % 1 == 0
            control.should_evaluate = control.should_evaluate or is_due
            self._stop(args, state, control)

    def on_substep_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_parts: object
    ) -> None:
        if self._is_told():
            self._stop(args, state, control)

    def on_prediction_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_parts: object
    ) -> None:
        """Leave an evaluation by an exception, the only way out of its loop; what it has measured so far is dropped."""
        if not self._trains or not (self.preempted or self._is_told()):
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
            raise Preempted(exit_status(stopped=self._is_stop and not preemptd.should_preempt()))
        self._stops.release()
        trainer = _trainer()
        if trainer is not None and vars(trainer).get("get_batch_samples") is _no_batches:
            del trainer.get_batch_samples
        if self._says_done and not state.is_hyper_param_search and self._is_at_its_end(state):
            preemptd.done()

    def _comes_last(self, trainer: Trainer | None) -> bool:
        """Move behind the other callbacks: what they wish for comes before ours, and they have ended when we leave.

        False: there is another one of us, which comes last.
        """
        if trainer is None:
            return False
        callbacks = trainer.callback_handler.callbacks
        if next((callback for callback in callbacks if isinstance(callback, PreemptionCallback)), self) is not self:
            return False
        others = (callback for callback in callbacks if not isinstance(callback, PreemptionCallback))
        trainer.callback_handler.callbacks = [*others, self]
        return True

    def _is_told(self) -> bool:
        """Say whether all ranks are to leave."""
        is_notice = agree()
        if not is_notice and not self._stops.agreed():
            return False
        self._is_stop = not is_notice
        return True

    def _stop(self, args: TrainingArguments, state: TrainerState, control: TrainerControl) -> None:
        """Have the Trainer save, unless this very step is saved, and leave its loops."""
        if not self.preempted:
            self.preempted = True
            why, left = why_in_words(stopped=self._is_stop)
            logger.warning("%s at step %d, %s", why, state.global_step, left)
            if control.should_evaluate:
                state.stateful_callbacks[OWED] = {"step": state.global_step}
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


def _is_training(frame: FrameType | None) -> bool:
    while frame is not None:
        if frame.f_code.co_name == "_inner_training_loop":
            return True
        frame = frame.f_back
    return False


def _evaluate(trainer: Trainer) -> None:
    """Do what a notice has kept the Trainer from, after the step from which it goes on."""
    trial, state = getattr(trainer, "_trial", None), trainer.state
    trainer._determine_best_metric(trainer._evaluate(trial, None), trial)  # noqa: SLF001  # nothing public does all of it
    kept = os.path.join(trainer._get_output_dir(trial), f"{PREFIX_CHECKPOINT_DIR}-{state.global_step}")  # noqa: SLF001
    if state.best_global_step == state.global_step and os.path.isdir(kept):
        state.best_model_checkpoint = kept


def _no_batches(*_: object) -> tuple[list[object], None]:
    return [], None


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
    shield(getattr(loader, "base_dataloader", loader))  # what accelerate has wrapped


def _sync_all(checkpoint: str) -> None:
    """Have what this rank has written on the disk: the machine may be switched off."""
    for folder, _, names in os.walk(checkpoint):
        for path in (folder, *(os.path.join(folder, name) for name in names)):
            with contextlib.suppress(FileNotFoundError):  # another rank's, under the name it had while it was written
                sync(path)
