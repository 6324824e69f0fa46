"""How far probabilities can be taken at their word, and one number that makes them better."""

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

__all__ = ["calibration_error", "fit_temperature", "folds", "sharpen"]

NUM_BINS = 10
TEMPERATURES = np.exp(np.linspace(np.log(0.05), np.log(20), 121))
"""Candidates; a grid cannot fail, and one number needs no optimizer."""
LEAST = 1e-6
"""Probabilities below count as this, or a single surprise would outweigh all else."""


def folds(number: Tensor, num_folds: int) -> Tensor:
    """Return the fold of each label `(m,)`, each class spread over all folds.

    Args:
        number: Classes of the labels `(m,)` int64.
        num_folds: How many folds.
    """
    fold = torch.empty_like(number)
    for c in number.unique():
        member = (number == c).nonzero().flatten()
        fold[member] = torch.arange(len(member)) % num_folds
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
    return float(TEMPERATURES[int(np.argmin([cross_entropy(log / t, number).item() for t in TEMPERATURES]))])


def calibration_error(probability: Tensor, number: Tensor) -> float:
    """Return the expected calibration error, in [0, 1]: how far confidence is from accuracy, mean over ten bins.

    Args:
        probability: `(m, c)`.
        number: Known classes `(m,)` int64.
    """
    confidence, likeliest = probability.max(1)
    is_right = (likeliest == number).to(confidence.dtype)
    bin_of = (confidence * NUM_BINS).long().clamp(max=NUM_BINS - 1)
    gap = torch.zeros(NUM_BINS, dtype=confidence.dtype).index_add_(0, bin_of, confidence - is_right)
    return float(gap.abs().sum() / len(confidence))
