"""Random states in checkpoints, so that a resumed run draws what it would have drawn."""

import random
from typing import Any

import numpy as np
import torch
from lightning.pytorch import Callback

__all__ = ["RandomState"]


class RandomState(Callback):
    """Saves the states of torch's, CUDA's, NumPy's and Python's global generators and restores them on resuming.

    Everything is stored as tensors, numbers and strings, so that checkpoints load with `weights_only=True`.
    A resumed run continues the random sequences; a checkpoint from inside an epoch restarts that epoch's shuffle.
    """

    def state_dict(self) -> dict[str, Any]:
        """Return the states as they are now."""
        version, words, gauss = random.getstate()
        kind, keys, position, has_gauss, cached = np.random.get_state(legacy=True)  # noqa: NPY002 - others may draw from it
        return {
            "torch": torch.get_rng_state(),
            "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
            "python": [version, list(words), gauss],
            "numpy": [str(kind), torch.from_numpy(np.asarray(keys, dtype=np.int64)), position, has_gauss, cached],
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the states; Lightning calls this before it creates the first iterator over the data."""
        torch.set_rng_state(state_dict["torch"].cpu())
        if torch.cuda.is_available() and len(state_dict["cuda"]) == torch.cuda.device_count():
            torch.cuda.set_rng_state_all([state.cpu() for state in state_dict["cuda"]])
        version, words, gauss = state_dict["python"]
        random.setstate((version, tuple(words), gauss))
        kind, keys, position, has_gauss, cached = state_dict["numpy"]
        np.random.set_state((kind, keys.cpu().numpy().astype(np.uint32), position, has_gauss, cached))  # noqa: NPY002
