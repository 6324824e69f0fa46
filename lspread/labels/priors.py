"""How often each class should come out, and how to make it so."""

from typing import Literal

import torch
from torch import Tensor

from lspread.errors import ConfigError
from lspread.typing import UNLABELED

__all__ = ["ClassPrior", "class_prior", "match_prior", "normalize_scores"]

ClassPrior = Literal["none", "uniform", "labeled"] | Tensor
"""No prior, equal classes, the frequencies among given labels, or frequencies `(c,)`."""


def class_prior(prior: ClassPrior, label: Tensor, num_classes: int) -> Tensor | None:
    """Return class frequencies `(c,)` that sum to one, or None for "none".

    Args:
        prior: "none", "uniform", "labeled", or numbers >= 0 `(c,)`, not all zero.
        label: Given labels `(n,)` int64, `UNLABELED` elsewhere; read for "labeled".
        num_classes: Number of classes c.

    Raises:
        ConfigError: An unknown name, or a tensor of another shape or (checked where it is on the CPU) sign.
    """
    if isinstance(prior, Tensor):
        if prior.shape != (num_classes,):
            raise ConfigError(
                f"a prior must hold one frequency per class, shape ({num_classes},); got {tuple(prior.shape)}."
            )
        if prior.device.type == "cpu" and not (bool((prior >= 0).all()) and bool(prior.sum() > 0)):
            raise ConfigError(f"a prior must be not negative, its sum positive; got {prior.tolist()}.")
        prior = prior.to(label.device, torch.get_default_dtype() if not prior.is_floating_point() else prior.dtype)
        return prior / prior.sum()
    if prior == "none":
        return None
    if prior == "uniform":
        return torch.full((num_classes,), 1 / num_classes, device=label.device)
    if prior == "labeled":
        is_class = (label[:, None] == torch.arange(num_classes, device=label.device)) & (label != UNLABELED)[:, None]
        count = is_class.sum(0)
        return count / count.sum().clamp(min=1)
    raise ConfigError(f"prior must be 'none', 'uniform', 'labeled' or a tensor of frequencies; got {prior!r}.")


def normalize_scores(scores: Tensor) -> tuple[Tensor, Tensor]:
    """Return class probabilities `(n, c)`, uniform where nothing arrived, and where something did `(n,)` bool.

    Scores below zero, which only rounding can make, count as zero. Differentiable in `scores`.
    """
    positive = scores.clamp(min=0)
    mass = positive.sum(1, keepdim=True)
    is_reached = mass > 0
    safe = torch.where(is_reached, mass, torch.ones_like(mass))
    return torch.where(is_reached, positive / safe, 1 / scores.shape[1]), is_reached.squeeze(1)


def match_prior(probability: Tensor, is_reached: Tensor, prior: Tensor) -> Tensor:
    """Scale classes so that their mean probability over reached nodes is the prior, then rows to sum one.

    Args:
        probability: `(n, c)`.
        is_reached: Nodes that count `(n,)` bool.
        prior: Frequencies `(c,)`.

    Returns:
        `(n, c)`; rows of other nodes stay as they are. A class without mass stays without. One pass of class mass
        normalization, so the means match the prior before the rows are scaled.

    References:
        Zhu et al., "Semi-Supervised Learning Using Gaussian Fields and Harmonic Functions", ICML 2003, equation 9.
    """
    mass = (probability * is_reached[:, None]).sum(0)
    factor = torch.where(mass > 0, prior.to(probability) / torch.where(mass > 0, mass, torch.ones_like(mass)), 0)
    scaled, has_mass = normalize_scores(probability * factor)
    return torch.where((is_reached & has_mass)[:, None], scaled, probability)
