"""How often each class should come out, and how to make it so."""

import math
from typing import Literal

import torch
from torch import Tensor

from lspread.autograd import is_readable
from lspread.errors import ConfigError
from lspread.typing import UNLABELED

__all__ = [
    "ClassPrior",
    "check_frequencies",
    "class_prior",
    "graph_of_node",
    "match_prior",
    "mean_shift",
    "normalize_scores",
    "sum_graph",
]

ClassPrior = Literal["none", "uniform", "labeled"] | Tensor
"""No prior, equal classes, the frequencies among given labels, or frequencies `(c,)`."""


def check_frequencies(name: str, value: Tensor) -> None:
    """Raise `ConfigError` for negative numbers, infinity and NaN, looked for where that costs nothing."""
    if not is_readable(value):
        return
    wrong = value[~(torch.isfinite(value) & (value >= 0))]
    if len(wrong):
        raise ConfigError(
            f"{name} must be finite and not negative; got {wrong.tolist()[:3]} among {value.numel()} numbers."
        )


def class_prior(prior: ClassPrior, label: Tensor, num_classes: int) -> Tensor | None:
    """Return class frequencies `(c,)` that sum to one, or None for "none".

    Args:
        prior: "none", "uniform", "labeled", or numbers >= 0 `(c,)`, not all zero.
        label: Given labels `(n,)` int64, `UNLABELED` elsewhere; read for "labeled".
        num_classes: Number of classes c.

    Raises:
        ConfigError: An unknown name, or a tensor of another shape or (checked where it is on the CPU) with negative
            numbers, infinity or NaN, or of zeros only.
    """
    if isinstance(prior, Tensor):
        if prior.shape != (num_classes,):
            raise ConfigError(
                f"a prior must hold one frequency per class, shape ({num_classes},); got {tuple(prior.shape)}."
            )
        if is_readable(prior) and not bool((prior >= 0).all() & (prior.sum() > 0) & (prior.sum() < math.inf)):
            raise ConfigError(f"a prior must be finite and not negative, its sum positive; got {prior.tolist()}.")
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
    positive = scores.relu()
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


def mean_shift(scores: Tensor, *, ptr: Tensor | None = None) -> Tensor:
    """Subtract from every class its mean score: what is left is how much more than elsewhere a node leans to it.

    With few labels, harmonic scores are almost one constant per class, which alone would decide for most nodes.

    Args:
        scores: `(n, c)` whose rows sum to one where something arrived, as from `propagate_labels` or
            `normalize_scores`; then shifted rows sum to zero and the largest score of a row is positive. Rows of zeros
            (nothing arrived) are left out and stay zero.
        ptr: Boundaries of a batch of graphs `(b + 1,)`, each with its own means; default: one graph.

    Returns:
        `(n, c)`, differentiable in `scores`.

    References:
        Calder et al., "Poisson Learning: Graph Based Semi-Supervised Learning At Very Low Label Rates", ICML 2020,
        section 2 (on the constant in Laplace learning).
    """
    is_reached = (scores.detach() != 0).any(1, keepdim=True)
    ptr = one_graph(scores) if ptr is None else ptr
    wide = torch.promote_types(scores.dtype, torch.float32)  # sums of many rows need more than half precision
    count = sum_graph(is_reached.to(wide), ptr)
    mean = (sum_graph(scores.to(wide), ptr) / count.clamp(min=1)).to(scores.dtype)
    return torch.where(is_reached, scores - mean[graph_of_node(ptr, len(scores))], 0)


def graph_of_node(ptr: Tensor, num_nodes: int) -> Tensor:
    """Return the graph number of every node `(n,)`."""
    return torch.repeat_interleave(ptr.diff(), output_size=num_nodes)


def sum_graph(x: Tensor, ptr: Tensor) -> Tensor:
    """Return the sum of the rows of every graph: `(n, c) -> (b, c)`."""
    if len(ptr) == 2:
        return x.sum(0, keepdim=True)
    return x.new_zeros(len(ptr) - 1, x.shape[1]).index_add(0, graph_of_node(ptr, len(x)), x)


def one_graph(x: Tensor) -> Tensor:
    """Return the boundaries of a batch of one graph of all rows; made on the device, since sending them would wait."""
    return torch.arange(2, device=x.device) * len(x)
