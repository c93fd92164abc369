"""What a training consists of, as files of a checkpoint: rank 0 writes what all ranks have in common, each its own."""

import logging
import os
from collections.abc import Iterable, Mapping
from typing import Any, Protocol

import torch

from preemptd.integrations import random_state
from preemptd.integrations.durable_files import fault_of, opened, write
from preemptd.integrations.manifest import SHARED, CheckpointError, Fingerprint, rank_file

SAME_ON_ALL_RANKS = {"Module", "Optimizer", "LRScheduler", "GradScaler"}
"""Classes of torch whose state is the same on all ranks; everything else is each rank's own."""
SPREAD_OVER_RANKS = {"FullyShardedDataParallel", "FSDPModule", "ZeroRedundancyOptimizer", "DTensor"}
WRAPPERS = {"DistributedDataParallel": "module", "DataParallel": "module", "OptimizedModule": "_orig_mod"}

logger = logging.getLogger(__name__)


class Stateful(Protocol):
    """What can be saved: torch's modules, optimizers, schedulers and scalers, torchdata's loaders, and your own."""

    def state_dict(self) -> Any: ...  # each has its own

    def load_state_dict(self, state_dict: Any, /) -> object: ...


class DamagedError(Exception):
    """A file is not the one that was written."""


class TrainingState:
    """The objects by their names."""

    def __init__(self, stateful: Mapping[str, Stateful], *, weights_only: bool) -> None:
        self._parts = {name: _unwrapped(name, part) for name, part in stateful.items()}
        self._shared = {name for name, part in self._parts.items() if _classes(part) & SAME_ON_ALL_RANKS}
        self._weights_only = weights_only
        self._read: dict[str, Mapping[str, Any]] = {}

    def write(self, path: str, rank: int) -> dict[str, Fingerprint]:
        """Write this rank's files into the directory *path*."""
        if not os.path.isdir(path):
            raise CheckpointError(f"rank {rank} does not find {path}: all ranks have to see one and the same directory")
        own: dict[str, Any] = {"random": random_state.state()}  # before a state_dict() can draw a number
        own["stateful"] = self._states(self._parts.keys() - self._shared)
        files = {rank_file(rank): self._dump(path, rank_file(rank), own)}
        if rank == 0:
            files[SHARED] = self._dump(path, SHARED, self._states(self._shared))
        return files

    def read(self, path: str, files: Mapping[str, Fingerprint], rank: int, size: int) -> None:
        """Verify this rank's share of the *files* in *path*, and keep what is in those that are for it.

        Raises DamagedError; CheckpointError: a file is as it was written, and cannot be loaded all the same.
        """
        wanted = {SHARED, rank_file(rank)} if len(files) == 1 + size else {SHARED}
        self._read = {}
        name = ""
        try:
            for name in {*wanted, *sorted(files)[rank::size]}:
                with opened(os.path.join(path, name)) as file:
                    if fault := fault_of(file, files[name]):
                        raise DamagedError(f"{name}: {fault}")
                    if name in wanted:
                        self._read[name] = self._load(name, file)
        except OSError as error:
            raise DamagedError(f"{name}: {error.strerror}") from error

    def apply(self, rank: int) -> None:
        """Put every object, and the random number generators, into the state that was read."""
        own = self._read.get(rank_file(rank))
        states = {**self._read[SHARED], **(own["stateful"] if own else {})}
        parts = {name: part for name, part in self._parts.items() if own or name in self._shared}
        if missing := parts.keys() - states.keys():
            raise CheckpointError(f"it has no state of {_names(missing)}")
        if unknown := states.keys() - parts.keys():
            logger.warning("the checkpoint's state of %s is left out: there is no such object", _names(unknown))
        name = ""
        try:
            for name, part in parts.items():
                part.load_state_dict(states[name])
        except Exception as error:
            raise CheckpointError(f"its state does not fit {name}: {_line(error)}") from error
        self._read = {}
        if own:
            random_state.restore(own["random"])  # last: who loads a state may draw a number
        else:
            begin_anew = ["the random numbers", *(name for name in self._parts if name not in self._shared)]
            logger.warning("saved by another number of ranks: %s begin anew", _names(begin_anew))

    def _states(self, names: Iterable[str]) -> dict[str, Any]:
        name, states = "", {}
        try:
            for name in sorted(names):
                states[name] = self._parts[name].state_dict()
        except Exception as error:
            raise CheckpointError(f"{name} does not give its state: {_line(error)}") from error
        return states

    def _dump(self, path: str, name: str, states: Mapping[str, Any]) -> Fingerprint:
        place = os.path.join(path, name)
        try:
            fingerprint = write(place, lambda file: torch.save(states, file))
        except OSError:
            raise
        except Exception as error:
            raise CheckpointError(f"{name} cannot be written: {_line(error)}") from error
        if self._weights_only:
            try:  # the file is mapped, so this reads the pickle alone
                torch.load(place, map_location="cpu", mmap=True, weights_only=True)
            except Exception as error:
                raise CheckpointError(f"{name} could not be loaded with weights_only=True: {_line(error)}") from error
        return fingerprint

    def _load(self, name: str, file: Any) -> Mapping[str, Any]:  # BinaryIO, to a torch that mypy skips
        try:
            # On the CPU: the new machine may have fewer GPUs, and load_state_dict() moves what is to be moved.
            states: Mapping[str, Any] = torch.load(file, map_location="cpu", weights_only=self._weights_only)
        except Exception as error:
            raise CheckpointError(f"{name} cannot be loaded: {_line(error)}") from error
        return states


def _unwrapped(name: str, part: Any) -> Stateful:  # anybody's class
    """Return what *part* wraps, so that its state fits with and without the wrapper."""
    while wraps := next((WRAPPERS[kind] for kind in _classes(part) if kind in WRAPPERS), None):
        part = getattr(part, wraps)
    if not (callable(getattr(part, "state_dict", None)) and callable(getattr(part, "load_state_dict", None))):
        raise TypeError(f"{name} is of type {type(part).__name__}, which has no state_dict() and load_state_dict()")
    kinds = _classes(part)
    if "Module" in kinds:
        kinds |= {type(parameter).__name__ for parameter in part.parameters()}
    spread = kinds & SPREAD_OVER_RANKS
    if spread:
        raise CheckpointError(
            f"{name} is spread over the ranks ({min(spread)}): save it by torch.distributed.checkpoint"
        )
    stateful: Stateful = part
    return stateful


def _classes(part: object) -> set[str]:
    """Name the classes of *part* that are torch's: by name, for they have moved between its versions."""
    return {kind.__name__ for kind in type(part).__mro__ if kind.__module__.partition(".")[0] == "torch"}


def _names(names: Iterable[str]) -> str:
    return ", ".join(sorted(names))


def _line(error: Exception) -> str:
    """Make one line of torch's paragraphs; what it refuses to unpickle comes after advice on how to load it anyway."""
    _, _, refused = str(error).partition("WeightsUnpickler error:")
    return " ".join((refused or str(error)).split())[:300]
