"""Weight averaging that is useful from the first steps on."""

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import WeightAveraging
from torch import Tensor

from lspread.errors import ConfigError

__all__ = ["RampedAveraging"]


def averaged_module(trainer: Trainer) -> LightningModule | None:
    """Return the copy of the module with averaged weights that a callback keeps, or None where none does."""
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        # Lightning 2.6 has no public way to the averaged model.
        average = getattr(callback, "_average_model", None) if isinstance(callback, WeightAveraging) else None
        if average is not None:
            module: LightningModule = average.module
            return module
    return None


@torch.no_grad()
def teach(trainer: Trainer, image: Tensor) -> Tensor:
    """Return the logits `(m, c)` that the averaged weights give normalized images, in eval mode.

    Raises:
        ConfigError: No callback averages weights.
    """
    teacher = averaged_module(trainer)
    if teacher is None:
        raise ConfigError(
            "teacher_weight > 0 needs a teacher: add a callback that averages weights, such as "
            "lspread.lit.RampedAveraging, or train with teacher_weight=0."
        )
    teacher.eval()
    logits: Tensor = teacher.head(teacher.backbone(image))  # type: ignore[operator]
    return logits


class RampedAveraging(WeightAveraging):
    """Lightning's weight averaging with an exponential moving average whose memory grows with the run.

    With a fixed decay of 0.99, the average of a run of a hundred steps still consists of random starting weights by
    a third. Here step t averages with decay min(decay, (1 + t) / (10 + t)), so the start is forgotten at once and long
    runs end with the full decay.

    Args:
        decay: Largest decay, in [0, 1); 0.99 averages over about the last hundred steps.

    Raises:
        ConfigError: `decay` lies outside [0, 1).
    """

    def __init__(self, decay: float = 0.99) -> None:
        if not 0 <= decay < 1:
            raise ConfigError(f"decay must lie in [0, 1); got {decay}.")

        def average(averaged: Tensor, current: Tensor, num_averaged: Tensor | int) -> Tensor:
            # A tensor all the way: torch calls this for every weight at every step, and a number would wait for a GPU.
            weight = (9 / (10 + torch.as_tensor(num_averaged))).clamp(min=1 - decay)
            # What does not change stays to the last bit; also for buffers that count in integers.
            return averaged + weight * (current - averaged)

        super().__init__(avg_fn=average)
