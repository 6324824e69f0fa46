"""What images are normalized by."""

from collections.abc import Sequence

import torch
from torch import Tensor

from lspread.errors import ConfigError

__all__ = ["ImageMoments"]


class ImageMoments:
    """Mean and standard deviation of each channel, once they are known, on the device of the images.

    No module, so that weight averaging, which copies modules before they see the data, leaves it alone.
    """

    def __init__(self) -> None:
        self._both: Tensor | None = None

    def set(self, mean: Sequence[float], std: Sequence[float]) -> None:
        """Set both, one number per channel, in [0, 1] units."""
        self._both = torch.tensor([list(mean), list(std)])

    def as_lists(self) -> tuple[list[float], list[float]] | None:
        """Return both, or None before they are known."""
        return None if self._both is None else (self._both[0].tolist(), self._both[1].tolist())

    def normalize(self, image: Tensor) -> Tensor:
        """Return images `(m, ch, h, w)` in [0, 1] with zero mean and unit deviation per channel, channels last.

        Raises:
            ConfigError: The moments are not known yet.
        """
        if self._both is None:
            raise ConfigError(
                "the model does not know the mean and deviation of its images yet; train it, load a checkpoint, or "
                "call set_moments(mean, std)."
            )
        if self._both.device != image.device:
            self._both = self._both.to(image.device)
        mean, std = self._both[:, :, None, None]
        return ((image - mean) / std).contiguous(memory_format=torch.channels_last)
