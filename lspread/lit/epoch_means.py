"""Means over an epoch of what every step finds, summed where it was computed."""

from collections.abc import Mapping

from lightning.pytorch import LightningModule
from torch import Tensor

__all__ = ["EpochMeans"]


class EpochMeans:
    """Sums numbers of the steps of an epoch on their device, so that a step takes one launch for each and no wait.

    Lightning's `log` does the same with about a millisecond of bookkeeping for every number and step.
    """

    def __init__(self) -> None:
        self._sums: dict[str, Tensor] = {}
        self._weights: dict[str, int] = {}

    def add(self, values: Mapping[str, Tensor], weight: int) -> None:
        """Count each number, a tensor without dimensions, `weight` times."""
        for name, value in values.items():
            value = value.detach().float()
            total = self._sums.get(name)
            self._sums[name] = value * weight if total is None else total.add_(value, alpha=weight)
            self._weights[name] = self._weights.get(name, 0) + weight

    def log(self, module: LightningModule) -> None:
        """Log the means as metrics of the epoch, "train_loss" in the progress bar too, and begin anew."""
        for name, (mean, weight) in self.pop().items():
            is_shown = name == "train_loss"
            module.log(name, mean, prog_bar=is_shown, on_step=False, on_epoch=True, batch_size=weight)

    def pop(self) -> dict[str, tuple[Tensor, int]]:
        """Return the mean of each number and how much it counts, and begin anew."""
        means = {name: (total / self._weights[name], self._weights[name]) for name, total in self._sums.items()}
        self._sums, self._weights = {}, {}
        return means
