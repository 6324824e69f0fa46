"""How sure a prediction must be to be learned from, and how predictions are kept in balance: both follow training."""

import torch
from torch import Tensor, nn

from lspread.errors import ConfigError
from lspread.labels import align_distribution

__all__ = ["AdaptiveThreshold", "DistributionAlignment"]


class AdaptiveThreshold(nn.Module):
    """Thresholds per class that rise as the classifier becomes sure, and stay low for classes it rarely predicts.

    With moving averages t of the largest probability and p of all probabilities, both starting at 1 / c, the threshold
    of class j is t p_j / max p.

    Args:
        num_classes: Number of classes c.
        momentum: Of both averages, in [0, 1).

    References:
        Wang et al., "FreeMatch: Self-adaptive Thresholding for Semi-supervised Learning", ICLR 2023, equations 5 to 7.
    """

    level: Tensor
    frequency: Tensor

    def __init__(self, num_classes: int, *, momentum: float = 0.999) -> None:
        super().__init__()
        _check(num_classes, momentum)
        self.momentum = momentum
        self.register_buffer("level", torch.tensor(1 / num_classes))
        self.register_buffer("frequency", torch.full((num_classes,), 1 / num_classes))

    @torch.no_grad()
    def forward(self, probability: Tensor) -> Tensor:
        """Return thresholds `(c,)`; in training, after taking in `probability` `(m, c)`."""
        if self.training:
            share = 1 - self.momentum
            self.level.lerp_(probability.max(1).values.mean().to(self.level.dtype), share)
            self.frequency.lerp_(probability.mean(0).to(self.frequency.dtype), share)
        return self.frequency / self.frequency.max() * self.level


class DistributionAlignment(nn.Module):
    """Scales predictions so that on the average all classes are predicted equally often.

    Helps where classes are equally frequent in truth, and hurts where they are not.

    Args:
        num_classes: Number of classes c.
        momentum: Of the running mean of predictions, in [0, 1).

    References:
        Berthelot et al., "ReMixMatch", ICLR 2020, section 3.1, with a moving average for the last 128 batches.
    """

    mean: Tensor

    def __init__(self, num_classes: int, *, momentum: float = 0.99) -> None:
        super().__init__()
        _check(num_classes, momentum)
        self.momentum = momentum
        self.register_buffer("mean", torch.full((num_classes,), 1 / num_classes))

    @torch.no_grad()
    def forward(self, probability: Tensor) -> Tensor:
        """Return aligned rows `(m, c)`; in training, after taking in `probability` `(m, c)`."""
        if self.training:
            self.mean.lerp_(probability.mean(0).to(self.mean.dtype), 1 - self.momentum)
        return align_distribution(probability, self.mean.to(probability.dtype))


def _check(num_classes: int, momentum: float) -> None:
    if num_classes < 2 or not 0 <= momentum < 1:
        raise ConfigError(
            f"num_classes must be 2 or more and momentum must lie in [0, 1); got {num_classes} and {momentum}."
        )
