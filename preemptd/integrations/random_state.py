"""Where this process's random number generators stand, so that a resumed training draws what it would have drawn."""

import contextlib
import random
import sys
from collections.abc import Mapping
from typing import Any

import torch


def state() -> dict[str, Any]:
    """Collect it, of types that ``torch.load(weights_only=True)`` accepts.

    NumPy's only if the script has imported it; of the GPUs the current one, if it is in use.
    """
    states: dict[str, Any] = {"python": random.getstate(), "torch": torch.get_rng_state()}
    if "numpy" in sys.modules:
        states["numpy"] = _lists(sys.modules["numpy"].random.get_state(legacy=False))
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        states["cuda"] = torch.cuda.get_rng_state()
    return states


def restore(states: Mapping[str, Any]) -> None:
    """Put the generators where *states* says; those that this process does not have are left out."""
    version, numbers, gauss = states["python"]
    random.setstate((version, tuple(numbers), gauss))
    torch.set_rng_state(states["torch"].cpu())
    if "numpy" in states:
        with contextlib.suppress(ImportError):
            import numpy as np

            np.random.set_state(states["numpy"])
    if "cuda" in states and torch.cuda.is_available():
        torch.cuda.set_rng_state(states["cuda"].cpu())


def _lists(value: Any) -> Any:
    """Turn arrays into lists: NumPy's pickles are refused by ``weights_only=True``."""
    if isinstance(value, dict):
        return {str(key): _lists(part) for key, part in value.items()}
    return value.tolist() if hasattr(value, "tolist") else value
