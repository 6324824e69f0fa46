"""What becomes of scores: answers where no label arrives, and how sure answers may be."""

from collections.abc import Callable

import torch
from torch import Tensor

from lspread.labels import calibration_error, fit_temperature, sharpen, stratified_folds
from lspread.nn import InductiveHead
from lspread.typing import Metric

__all__ = ["calibrate", "fill", "nearest_class"]

DOUBT = 1e-3
"""What the favored class gets above all others where no label arrives."""
NUM_FOLDS = 5
ROWS = 1024
"""Rows that are compared with all labeled ones together."""


def fill(probability: Tensor, is_reached: Tensor, favored: Tensor) -> Tensor:
    """Return probabilities in which a class is ahead by next to nothing where no label arrived.

    Args:
        probability: `(n, c)`.
        is_reached: `(n,)` bool.
        favored: Class of every row that is not reached `(m,)` int64, or of all of them, 0-dimensional.
    """
    c = probability.shape[1]
    is_favored = favored.unsqueeze(-1) == torch.arange(c, device=favored.device)
    filled = probability.clone()
    filled[~is_reached] = ((1 - DOUBT) / c + DOUBT * is_favored).to(probability.dtype)
    return filled


def nearest_class(z: Tensor, targets: Tensor, is_asked: Tensor, *, metric: Metric) -> Tensor:
    """Return the class of the nearest labeled row of z `(n, d)` for each row that is asked for `(m,)`.

    Args:
        z: `(n, d)`.
        targets: `(n, c)`, rows of zeros without a label.
        is_asked: `(n,)` bool.
        metric: "euclidean" or "cosine".
    """
    is_given = (targets != 0).any(1)
    head = InductiveHead(z[is_given], targets[is_given], k=1, weight="uniform", metric=metric)
    return torch.cat([head(part).argmax(1) for part in z[is_asked].split(ROWS)])


def calibrate(answer: Callable[[Tensor], Tensor], targets: Tensor) -> tuple[float, float] | None:
    """Find the temperature at which the answers to hidden labels are as right as they are sure.

    Args:
        answer: From targets `(n, c)`, some of them hidden, to probabilities `(n, c)`.
        targets: `(n, c)`, rows of zeros without a label.

    Returns:
        The temperature and the expected calibration error that is left; None where a class has fewer than two labels.
    """
    is_given = (targets != 0).any(1)
    node, number = is_given.nonzero().flatten(), targets[is_given].argmax(1)
    num_folds = min(NUM_FOLDS, int(torch.bincount(number, minlength=targets.shape[1]).min()))
    if num_folds < 2:
        return None
    fold = stratified_folds(number.cpu(), num_folds, torch.Generator().manual_seed(0)).to(node.device)
    probability = torch.empty(len(node), targets.shape[1], dtype=targets.dtype, device=node.device)
    for one in range(num_folds):
        hidden = fold == one
        probability[hidden] = answer(targets.index_fill(0, node[hidden], 0))[node[hidden]]
    probability, number = probability.double().cpu(), number.cpu()
    temperature = fit_temperature(probability, number)
    return temperature, calibration_error(sharpen(probability, temperature), number)
