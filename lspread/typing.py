"""Names shared by every room: constants and closed choices."""

from typing import Final, Literal

__all__ = ["UNLABELED", "ItemKind", "Metric", "Normalization", "OnFailure", "Symmetrize"]

UNLABELED: Final = -1
"""The class index of an item that nobody labelled."""

ItemKind = Literal["image", "text", "table"]
Metric = Literal["euclidean", "cosine"]
Normalization = Literal["none", "symmetric", "random_walk"]
OnFailure = Literal["raise", "warn", "ignore"]
Symmetrize = Literal["mean", "max", "mutual"]
