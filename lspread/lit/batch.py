"""What a training step is given."""

from typing import TypedDict

from torch import Tensor

__all__ = ["Batch", "ImageBatch"]


class ImageBatch(TypedDict):
    """Images `(m, ch, h, w)` uint8 or float in [0, 1], and which items they are `(m,)` int64."""

    image: Tensor
    index: Tensor


class Batch(TypedDict):
    """One training step's images: some that carry given labels, and some of the whole pool."""

    labeled: ImageBatch
    pool: ImageBatch
