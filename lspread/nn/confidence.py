"""How sure a prediction must be to be learned from, and how predictions are kept in balance: both follow training."""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn.functional import one_hot

from lspread.errors import ConfigError
from lspread.labels import align_distribution
from lspread.typing import UNLABELED

__all__ = ["AdaptiveThreshold", "CurriculumThreshold", "DistributionAlignment", "UsualFairness"]


class _RunningMeans(nn.Module):
    """Moving averages as buffers that stay in float32 or wider: in half precision, running means stand still."""

    def __init__(self, num_classes: int, momentum: float) -> None:
        super().__init__()
        if num_classes < 2 or not 0 <= momentum < 1:
            raise ConfigError(
                f"num_classes must be 2 or more and momentum must lie in [0, 1); got {num_classes} and {momentum}."
            )
        self.momentum = momentum

    def _follow(self, mean: Tensor, value: Tensor) -> None:
        """Move a mean towards the value of this batch."""
        mean.lerp_(value.to(mean.dtype), 1 - self.momentum)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "_RunningMeans":
        super()._apply(fn, recurse)
        for name, buffer in self._buffers.items():
            if buffer is not None:
                self._buffers[name] = buffer.to(torch.promote_types(buffer.dtype, torch.float32))
        return self


class AdaptiveThreshold(_RunningMeans):
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
        super().__init__(num_classes, momentum)
        self.register_buffer("level", torch.tensor(1 / num_classes))
        self.register_buffer("frequency", torch.full((num_classes,), 1 / num_classes))

    @torch.no_grad()
    def forward(self, probability: Tensor) -> Tensor:
        """Return thresholds `(c,)`; in training, after taking in `probability` `(m, c)`."""
        if self.training:
            self._follow(self.level, probability.max(1).values.mean())
            self._follow(self.frequency, probability.mean(0))
        return self.frequency / self.frequency.max() * self.level


class CurriculumThreshold:
    """Thresholds per class that are lower for classes of which fewer items were ever predicted surely.

    With s_j items whose latest sure prediction is j, out of n, and b_j = s_j / max(max s, n - sum s), the threshold of
    class j is `threshold` b_j / (2 - b_j): zero for all at first, and `threshold` for the class learned best.

    No module, so that weight averaging leaves the items alone: whoever trains keeps `label` for a resumed run.

    Args:
        num_classes: Number of classes c.
        threshold: From which probability on a prediction is sure, in [0, 1].

    Attributes:
        label: The latest sure prediction of each item `(n,)` int64, `UNLABELED` (-1) where there was none.

    References:
        Zhang et al., "FlexMatch: Boosting Semi-Supervised Learning with Curriculum Pseudo Labeling", NeurIPS 2021,
        sections 3.1 to 3.3.
    """

    def __init__(self, num_classes: int, threshold: float = 0.95) -> None:
        if num_classes < 2 or not 0 <= threshold <= 1:
            raise ConfigError(
                "num_classes must be 2 or more and threshold a probability in [0, 1]; got "
                f"{num_classes} and {threshold}."
            )
        self.num_classes, self.threshold = num_classes, threshold
        self.start(0, 0)

    def start(self, num_items: int, num_pool: int) -> None:
        """Forget all predictions; `num_pool` of the `num_items` items are trained on."""
        self.label = torch.full((num_items,), UNLABELED)
        self._num_pool = num_pool

    @torch.no_grad()
    def __call__(self, probability: Tensor, index: Tensor) -> Tensor:
        """Return thresholds `(c,)` by what was predicted so far, then take in another batch.

        Args:
            probability: What the items are predicted as `(m, c)`, rows sum to one.
            index: Which items they are `(m,)` int64.

        Raises:
            ConfigError: `start` was never called, so that nobody knows how many items there are.
        """
        if not len(self.label):
            raise ConfigError(
                "CurriculumThreshold counts items: call start(num_items, num_pool) before the first batch."
            )
        self.label = self.label.to(index.device)
        count = torch.zeros(self.num_classes + 1, dtype=torch.int64, device=index.device)
        count = count.index_add(0, self.label - UNLABELED, torch.ones_like(self.label))[1:]
        share = count.to(torch.promote_types(probability.dtype, torch.float32))
        share = share / torch.maximum(count.max(), self._num_pool - count.sum())
        largest, label = probability.max(1)
        self.label[index] = torch.where(largest > self.threshold, label, self.label[index])
        return (self.threshold * share / (2 - share)).to(probability.dtype)


class DistributionAlignment(_RunningMeans):
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
        super().__init__(num_classes, momentum)
        self.register_buffer("mean", torch.full((num_classes,), 1 / num_classes))

    @torch.no_grad()
    def forward(self, probability: Tensor) -> Tensor:
        """Return aligned rows `(m, c)`; in training, after taking in `probability` `(m, c)`."""
        if self.training:
            self._follow(self.mean, probability.mean(0))
        return align_distribution(probability, self.mean.to(probability.dtype))


class UsualFairness(_RunningMeans):
    """How sure predictions of each class usually are, as what `fairness_loss` compares a batch with.

    With moving averages p of all probabilities and h of the share of rows predicted as each class, both starting at
    1 / c, it is p / h, scaled to sum one.

    Args:
        num_classes: Number of classes c.
        momentum: Of both averages, in [0, 1).

    References:
        Wang et al., "FreeMatch", ICLR 2023, self-adaptive fairness.
    """

    frequency: Tensor
    share: Tensor

    def __init__(self, num_classes: int, *, momentum: float = 0.999) -> None:
        super().__init__(num_classes, momentum)
        self.register_buffer("frequency", torch.full((num_classes,), 1 / num_classes))
        self.register_buffer("share", torch.full((num_classes,), 1 / num_classes))

    @torch.no_grad()
    def forward(self, probability: Tensor) -> Tensor:
        """Return quotients `(c,)` that sum to one; in training, after taking in `probability` `(m, c)`."""
        if self.training:
            predicted = one_hot(probability.argmax(1), probability.shape[1]).to(self.share.dtype)
            self._follow(self.frequency, probability.mean(0))
            self._follow(self.share, predicted.mean(0))
        quotient = self.frequency / self.share.clamp(min=torch.finfo(self.share.dtype).eps)
        return quotient / quotient.sum()
