"""Random changes of vectors of features, as augmentation changes images."""

import torch
from torch import Tensor, nn

from lspread.data.augmentation import check_range
from lspread.errors import DataError

__all__ = ["RandomCorruption"]


class RandomCorruption(nn.Module):
    """Exchange, drop and blur some features of each vector.

    Args:
        exchange: Probability, for each feature of each vector, of the value that another vector of the batch has there.
        drop: Probability of 0, the mean of a scaled feature, instead.
        noise: Deviation of Gaussian noise, as a share of each feature's own deviation in the batch.

    Raises:
        ConfigError: A probability outside [0, 1], or noise outside [0, 10].

    References:
        Bahri et al., "SCARF: Self-Supervised Contrastive Learning using Random Feature Corruption", ICLR 2022,
        section 3: values from the feature's marginal, here that of the batch.
    """

    def __init__(self, exchange: float = 0.3, drop: float = 0.0, noise: float = 0.0) -> None:
        super().__init__()
        check_range("exchange", exchange, 0, 1)
        check_range("drop", drop, 0, 1)
        check_range("noise", noise, 0, 10)
        self.exchange, self.drop, self.noise = exchange, drop, noise

    def forward(self, feature: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Change each vector.

        Args:
            feature: `(m, d)` or, as in batches of `VectorData`, `(m, d, 1, 1)` float.
            generator: Source of randomness on the features' device; None takes torch's global one.

        Returns:
            The same shape, dtype and device.
        """
        value = feature.flatten(1)
        if not feature.is_floating_point() or feature.numel() != len(feature) * feature.shape[1]:
            raise DataError(
                f"RandomCorruption needs float vectors (m,d) or (m,d,1,1); got shape {tuple(feature.shape)}, "
                f"{feature.dtype}. Images are changed by WeakAugmentation and StrongAugmentation."
            )
        draw = torch.rand(2, *value.shape, device=value.device, generator=generator)
        partner = torch.randint(len(value), value.shape, device=value.device, generator=generator)
        changed = torch.where(draw[0] < self.exchange, value.gather(0, partner), value)
        if self.noise:
            blur = torch.randn(value.shape, device=value.device, generator=generator).to(value.dtype)
            changed = changed + self.noise * value.std(0, correction=0) * blur
        return changed.masked_fill(draw[1] < self.drop, 0).view_as(feature)

    def extra_repr(self) -> str:
        """Return the options for `repr`."""
        return f"exchange={self.exchange}, drop={self.drop}, noise={self.noise}"
