"""Losses that ask for the same answer to two views of one image, and what they are told to be sure of."""

import math

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, log_softmax, mse_loss

from lspread.errors import GraphError
from lspread.labels.priors import check_frequencies

__all__ = [
    "align_distribution",
    "confident_loss",
    "fairness_loss",
    "is_confident",
    "mean_entropy_loss",
    "mean_teacher_loss",
]


def is_confident(probability: Tensor, threshold: float | Tensor) -> Tensor:
    """Return where the most likely class reaches its threshold `(m,)` bool.

    Args:
        probability: `(m, c)`, rows sum to one.
        threshold: A number, or one number per class `(c,)`.
    """
    largest, label = probability.max(1)
    return largest >= (threshold[label] if isinstance(threshold, Tensor) and threshold.ndim else threshold)


def confident_loss(logits: Tensor, probability: Tensor, *, threshold: float | Tensor = 0.95) -> Tensor:
    """Return cross entropy to the classes that another view is sure of, averaged over all rows.

    Args:
        logits: Of the strongly changed views `(m, c)`, any floating dtype.
        probability: What the weakly changed views are taken for `(m, c)`; no gradient flows to it.
        threshold: How sure is sure enough: a number, or one number per class `(c,)`. With 0 every row counts, which is
            plain pseudo-labeling.

    Returns:
        Scalar float32 (float64 for float64 logits): 1/m sum over rows with max q >= threshold of CE(argmax q, logits).
        Rows that are not sure add nothing but are counted in m.

    Raises:
        GraphError: Shapes do not fit.

    References:
        Sohn et al., "FixMatch", NeurIPS 2020, equation 4; Lee, "Pseudo-Label", ICML workshop 2013, equation 15. A
        threshold per class: Wang et al., "FreeMatch", ICLR 2023, equation 8; Zhang et al., "FlexMatch", NeurIPS 2021.
    """
    _check("confident_loss", logits, probability)
    logits = logits if logits.dtype == torch.float64 else logits.float()
    probability = probability.detach()
    loss = cross_entropy(logits, probability.argmax(1), reduction="none")
    return torch.where(is_confident(probability, threshold), loss, 0).mean()


def fairness_loss(logits: Tensor, is_sure: Tensor, usual: Tensor) -> Tensor:
    """Return how the surest rows divide their probability among classes, against how that usually is.

    With p the mean of the sure rows' probabilities and h the share of sure rows predicted as each class, both measured
    on the same views, the loss is the sum of u log v, where v is p / h scaled to sum one and u is `usual`.

    Args:
        logits: Of the strongly changed views `(m, c)`, any floating dtype.
        is_sure: Rows that count `(m,)` bool, where `is_confident` of the weakly changed views.
        usual: The same quotient over training so far `(c,)`, sums to one; from `lspread.nn.UsualFairness`. No gradient.

    Returns:
        Scalar of at most 0, float32 (float64 for float64 logits); gradient to `logits`. Zero if no row is sure.
        Classes that no sure row is predicted as add nothing.

    Raises:
        GraphError: Shapes do not fit.

    References:
        Wang et al., "FreeMatch", ICLR 2023, self-adaptive fairness; the published code adds the constant u log 1e-12
        for classes without a row.
    """
    m, c = logits.shape if logits.ndim == 2 else (-1, -1)
    if is_sure.shape != (m,) or usual.shape != (c,):
        raise GraphError(
            "fairness_loss needs logits (m, c), is_sure (m,) and usual (c,); got "
            f"{tuple(logits.shape)}, {tuple(is_sure.shape)} and {tuple(usual.shape)}."
        )
    logits = logits if logits.dtype == torch.float64 else logits.float()
    sure = is_sure.to(logits.dtype)
    total = (sure[:, None] * logits.softmax(1)).sum(0)
    count = torch.zeros_like(usual, dtype=logits.dtype).index_add(0, logits.argmax(1), sure)
    quotient = torch.where(count > 0, total / count.clamp(min=1), 0)
    share = quotient / quotient.sum().clamp(min=torch.finfo(quotient.dtype).tiny)
    return (usual.detach().to(share.dtype) * torch.where(count > 0, share, 1).log()).sum()


def mean_teacher_loss(logits: Tensor, probability: Tensor) -> Tensor:
    """Return the mean squared difference between the student's probabilities and the teacher's.

    Args:
        logits: Of the student `(m, c)`.
        probability: Of the teacher on another view `(m, c)`; no gradient flows to it.

    Returns:
        Scalar: mean over rows and classes, gradient to `logits`.

    References:
        Tarvainen and Valpola, "Mean teachers are better role models", NeurIPS 2017, equation 1.
    """
    _check("mean_teacher_loss", logits, probability)
    student = (logits if logits.dtype == torch.float64 else logits.float()).softmax(1)
    return mse_loss(student, probability.detach().to(student.dtype))


def mean_entropy_loss(logits: Tensor) -> Tensor:
    """Return log c minus the entropy of the mean prediction: 0 when all classes are predicted equally often.

    It keeps a classifier that learns from its own answers from giving one answer to everything. Where classes are not
    equally frequent it pulls the wrong way; give it a small weight there, or none.

    Args:
        logits: `(m, c)`, any floating dtype.

    Returns:
        Scalar in [0, log c], float32 (float64 for float64 logits); gradient to `logits`.

    References:
        Assran et al., "Semi-Supervised Learning of Visual Features by Non-Parametrically Predicting View Assignments
        with Support Samples", ICCV 2021, section 3.2 (mean entropy maximization).
    """
    logits = logits if logits.dtype == torch.float64 else logits.float()
    log_mean = log_softmax(logits, 1).logsumexp(0) - math.log(len(logits))
    return math.log(logits.shape[1]) + (log_mean.exp() * log_mean).sum()


def align_distribution(probability: Tensor, mean: Tensor, prior: Tensor | None = None) -> Tensor:
    """Return the rows scaled by wanted over usual class frequencies, and to sum one again.

    Args:
        probability: `(m, c)`, rows sum to one.
        mean: How often the classes are usually predicted `(c,)`, e.g. a running mean of `probability`.
        prior: How often they should be `(c,)`; all alike if left out.

    Returns:
        `(m, c)`; differentiable. Rows that have only classes of prior zero stay as they are.

    Raises:
        ConfigError: `prior` (looked at where it is on the CPU) holds negative numbers, infinity or NaN.

    References:
        Berthelot et al., "ReMixMatch", ICLR 2020, section 3.1; used with FixMatch in its section 2.4.
    """
    if prior is not None:
        check_frequencies("prior", prior)
    wanted = 1 / mean.shape[0] if prior is None else prior
    aligned = probability * (wanted / mean.clamp(min=torch.finfo(mean.dtype).tiny))
    total = aligned.sum(1, keepdim=True)
    return torch.where(total > 0, aligned / torch.where(total > 0, total, 1), probability)


def _check(name: str, logits: Tensor, probability: Tensor) -> None:
    if logits.ndim != 2 or logits.shape != probability.shape:
        raise GraphError(
            f"{name} needs logits and probability of one shape (m, c); got {tuple(logits.shape)} and "
            f"{tuple(probability.shape)}."
        )
