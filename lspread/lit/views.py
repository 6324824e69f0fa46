"""The views of a batch that the pieces of the loss look at, all for one pass through the backbone."""

from collections.abc import Collection
from typing import Literal

import torch
from torch import Tensor, nn

from lspread.data import mix_images
from lspread.errors import ConfigError
from lspread.labels import PseudoLabels, pseudo_label_loss

__all__ = ["ON_SECOND", "ON_STRONG", "make_views", "mixed_pseudo_loss"]

ON_STRONG = frozenset(
    ("confident", "teacher", "entropy", "contrastive", "graph_contrastive", "spread", "consistency", "agreement")
)
"""Pieces of the loss that look at strongly changed pool images, beside "pseudo", for which they may be mixed."""
ON_SECOND = frozenset(("contrastive", "graph_contrastive", "agreement"))
"""Pieces that look at a second such view as well."""


def make_views(
    labeled: Tensor,
    pool: Tensor,
    weak: nn.Module,
    strong: nn.Module,
    pieces: Collection[str],
    *,
    mixup: float = 0.0,
    cutmix: float = 0.0,
) -> tuple[dict[str, Tensor], list[Tensor] | None]:
    """Change the images of a batch as its pieces need them, and nothing else.

    Args:
        labeled: Labeled images `(l, ch, h, w)` in [0, 1].
        pool: Pool images `(m, ch, h, w)`.
        weak: Changes labeled images, and pool images for "confident" and "teacher".
        strong: Changes pool images.
        pieces: Names of the pieces of the loss that count.
        mixup: As in `mix_images`, for "pseudo"; where both are 0, nothing is mixed.
        cutmix: The same.

    Returns:
        Views by name, of "labeled", "weak", "strong", "mixed" and "second" those that are needed; and partner and share
        of the mixing, None where nothing is mixed.

    Raises:
        ConfigError: The views differ in shape.
    """
    views, mixing = {"labeled": weak(labeled)}, None
    if {"confident", "teacher"} & set(pieces):
        views["weak"] = weak(pool)
    needs_strong = bool(ON_STRONG & set(pieces))
    if needs_strong or "pseudo" in pieces:
        view = strong(pool)
        if "pseudo" in pieces and (mixup or cutmix):
            views["mixed"], *mixing = mix_images(view, mixup, cutmix)
        if needs_strong or mixing is None:
            views["strong"] = view
    if ON_SECOND & set(pieces):
        views["second"] = strong(pool)
    shapes = {name: tuple(view.shape[1:]) for name, view in views.items()}
    if len(set(shapes.values())) > 1:
        raise ConfigError(
            f"All views of a step go through the network together and need one shape, but weak and strong give "
            f"{shapes}. Set the same size in both."
        )
    return views, mixing


def mixed_pseudo_loss(
    logits: Tensor,
    pseudo: PseudoLabels,
    index: Tensor,
    mixing: list[Tensor] | None,
    reduction: Literal["mean", "weighted_mean"],
) -> Tensor:
    """Return the loss to pseudo-labels, of images alone or mixed with a partner."""
    loss = pseudo_label_loss(logits, pseudo, index, reduction=reduction)
    if mixing is None:
        return loss
    partner, share = mixing
    return torch.lerp(pseudo_label_loss(logits, pseudo, index[partner], reduction=reduction), loss, share)
