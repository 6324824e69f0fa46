"""How far probabilities can be taken at their word, and one number that makes them better."""

import math

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

__all__ = ["calibration_error", "fit_temperature", "reliability", "sharpen", "stratified_folds"]

NUM_BINS = 10
TEMPERATURES = torch.logspace(math.log10(0.05), math.log10(20), 121, dtype=torch.float64).tolist()
"""Candidates; a grid cannot fail, and one number needs no optimizer."""
LEAST = 1e-6
"""Probabilities below count as this, or a single surprise would outweigh all else."""


def stratified_folds(label: Tensor, num_folds: int, generator: torch.Generator) -> Tensor:
    """Deal items into folds class by class, in random order.

    Args:
        label: Classes `(l,)` int64.
        num_folds: Number of folds.
        generator: Source of the order.

    Returns:
        Fold of each item `(l,)` int64 in `0..num_folds-1`; fold sizes differ by at most one in every class.
    """
    fold = torch.empty_like(label)
    start = 0
    for value in label.unique().tolist():
        rows = (label == value).nonzero().flatten()
        rows = rows[torch.randperm(len(rows), generator=generator)]
        # Going on where the last class stopped keeps the folds' total sizes even as well.
        fold[rows] = (torch.arange(len(rows)) + start) % num_folds
        start += len(rows)
    return fold


def sharpen(probability: Tensor, temperature: float) -> Tensor:
    """Return p^(1 / temperature), rows to sum one: `(n, c) -> (n, c)`."""
    return (probability.clamp(min=LEAST).log() / temperature).softmax(1)


def fit_temperature(probability: Tensor, number: Tensor) -> float:
    """Return the temperature that gives known classes the largest likelihood.

    Args:
        probability: `(m, c)`.
        number: Known classes `(m,)` int64.

    References:
        Guo et al., "On Calibration of Modern Neural Networks", ICML 2017, section 4.2.
    """
    log = probability.clamp(min=LEAST).log()
    return min(TEMPERATURES, key=lambda temperature: float(cross_entropy(log / temperature, number)))


def calibration_error(probability: Tensor, number: Tensor) -> float:
    """Return the expected calibration error, in [0, 1]: how far confidence is from accuracy, mean over ten bins.

    Args:
        probability: `(m, c)`.
        number: Known classes `(m,)` int64.
    """
    confidence, likeliest = probability.max(1)
    count, sure, right = reliability(confidence, likeliest == number)
    return float((count * (sure - right).abs()).sum() / count.sum())


def reliability(confidence: Tensor, is_right: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return how sure and how right answers are, in ten bins of confidence.

    Args:
        confidence: `(m,)` in [0, 1].
        is_right: `(m,)` bool.

    Returns:
        Answers, mean confidence and accuracy of each bin, `(10,)` each; the means of an empty bin are 0.
    """
    confidence = confidence.double()
    bin_of = (confidence * NUM_BINS).long().clamp(max=NUM_BINS - 1)

    def add_up(values: Tensor) -> Tensor:
        return values.new_zeros(NUM_BINS).index_add_(0, bin_of, values)

    count = add_up(torch.ones_like(confidence))
    each = count.clamp(min=1)
    return count, add_up(confidence) / each, add_up(is_right.double()) / each
