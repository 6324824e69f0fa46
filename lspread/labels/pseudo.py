"""From scores to pseudo-labels with weights that say how far to trust them."""

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from lspread.errors import ConfigError, GraphError
from lspread.labels.priors import ClassPrior, class_prior, match_prior, normalize_scores
from lspread.labels.targets import check_label
from lspread.typing import UNLABELED

__all__ = ["PseudoLabels", "certainty", "pseudo_labels", "sharpen_pseudo_labels"]


@dataclass(frozen=True, eq=False)
class PseudoLabels:
    """A label for every node, and how much it is worth.

    Attributes:
        label: `(n,)` int64; the given label where there is one.
        weight: `(n,)` in [0, 1]: 1 where given, 0 where nothing arrived, certainty 1 - H / log c elsewhere.
        class_weight: `(c,)`, larger for classes with fewer pseudo-labels; 1 for a class of average size.
        is_given: `(n,)` bool.
        is_reached: `(n,)` bool; False where no score arrived: no path leads there, or one so long that the solve ended
            before.
        probability: `(n, c)`, rows sum to one; uniform where nothing arrived.
    """

    label: Tensor
    weight: Tensor
    class_weight: Tensor
    is_given: Tensor
    is_reached: Tensor
    probability: Tensor

    @property
    def num_unreached(self) -> Tensor:
        """How many nodes no label reaches, a 0-dimensional int64 tensor on the device."""
        return (~self.is_reached).sum()


def certainty(probability: Tensor) -> Tensor:
    """Return 1 - H(p) / log c per row, in [0, 1]: `(n, c) -> (n,)`; 1 where there is one class only."""
    if probability.shape[1] < 2:
        return torch.ones_like(probability[:, 0])
    entropy = -torch.special.xlogy(probability, probability).sum(1)
    return (1 - entropy / math.log(probability.shape[1])).clamp(0, 1)


def pseudo_labels(
    scores: Tensor, label: Tensor, *, prior: ClassPrior = "none", balance_floor: float = 0.1
) -> PseudoLabels:
    """Return the most likely class of every node with its certainty.

    Args:
        scores: F `(n, c)` from `spread_labels`.
        label: Given labels `(n,)` int64, `UNLABELED` (-1) elsewhere.
        prior: Class frequencies to match: "none", "uniform", "labeled" or a tensor `(c,)`. It helps balanced data
            and hurts when it is wrong, so it is off unless asked for.
        balance_floor: Class sizes below this fraction of the average count as this fraction, so `class_weight` is at
            most 1 / balance_floor, also for a class that nobody is in.

    Returns:
        `PseudoLabels`, detached, on the same device; nothing is read from a GPU.

    Raises:
        GraphError: Shapes do not fit, or a label lies outside the classes (checked where it is on the CPU).
        ConfigError: `prior` is no class prior, or `balance_floor` is not above 0.

    References:
        Iscen et al., "Label Propagation for Deep Semi-supervised Learning", CVPR 2019, equations 7, 11 and 12.
    """
    if scores.ndim != 2 or label.shape != scores.shape[:1] or label.dtype != torch.int64:
        raise GraphError(
            f"pseudo_labels needs scores (n, c) and int64 labels (n,); got {tuple(scores.shape)} and "
            f"{tuple(label.shape)} {label.dtype}."
        )
    check_label(label, scores.shape[1])
    if not balance_floor > 0:
        raise ConfigError(
            f"balance_floor must be greater than 0, or an empty class weighs infinity; got {balance_floor}."
        )
    num_classes = scores.shape[1]
    probability, is_reached = normalize_scores(scores.detach())
    frequencies = class_prior(prior, label, num_classes)
    if frequencies is not None:
        probability = match_prior(probability, is_reached, frequencies)
    is_given = label != UNLABELED
    is_reached = is_reached | is_given
    best = torch.where(is_given, label, probability.argmax(1))
    one_hot = best[:, None] == torch.arange(num_classes, device=best.device)
    weight = torch.where(is_given, 1.0, certainty(probability) * is_reached)
    # Counted apart from the scores' dtype: half precision knows no 65,520, and adds no one to 2,048.
    count = (one_hot & is_reached[:, None]).sum(0).to(torch.promote_types(probability.dtype, torch.float32))
    average = count.mean().clamp(min=1)
    class_weight = (average / torch.maximum(count, balance_floor * average)).to(probability.dtype)
    return PseudoLabels(
        label=best,
        weight=weight.to(probability.dtype),
        class_weight=class_weight,
        is_given=is_given,
        is_reached=is_reached,
        probability=probability,
    )


def sharpen_pseudo_labels(pseudo: PseudoLabels, temperature: float) -> PseudoLabels:
    """Return pseudo-labels of probabilities p^(1/T), rows summing to one, and certainties of those.

    Args:
        pseudo: From `pseudo_labels`.
        temperature: T > 0: below 1 all are surer, and near 0 every reached item without a tie counts fully; above 1
            only the surest are heard; 1 changes nothing.

    Returns:
        The same labels. Given ones keep weight 1, and what nothing reached weight 0.

    Raises:
        ConfigError: The temperature is not positive.

    References:
        Berthelot et al., "MixMatch: A Holistic Approach to Semi-Supervised Learning", NeurIPS 2019, equation 7.
    """
    if not temperature > 0:
        raise ConfigError(f"temperature must be greater than 0; got {temperature}.")
    if temperature == 1:
        return pseudo
    # Logarithms, since powers of small numbers may be zero for a whole row.
    is_possible = pseudo.probability > 0
    log = torch.where(is_possible, pseudo.probability, 1).log() / temperature
    probability = log.masked_fill(~is_possible, -math.inf).softmax(1)
    weight = torch.where(pseudo.is_given, 1.0, certainty(probability) * pseudo.is_reached).to(pseudo.weight.dtype)
    return replace(pseudo, probability=probability, weight=weight)
