"""What a training step is given."""

from typing import TypedDict

import torch
from torch import Tensor

__all__ = ["Batch", "ImageBatch", "to_float"]


class ImageBatch(TypedDict):
    """Images `(m, ch, h, w)` uint8 or float in [0, 1], and which items they are `(m,)` int64."""

    image: Tensor
    index: Tensor


class Batch(TypedDict):
    """One training step's images: some that carry given labels, and some of the whole pool."""

    labeled: ImageBatch
    pool: ImageBatch


def to_float(image: Tensor) -> Tensor:
    """Return images as float32 in [0, 1]."""
    return image.float().div_(255) if image.dtype == torch.uint8 else image.float()
