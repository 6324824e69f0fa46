"""Two baselines that every run prints beside its own result: a kNN vote and logistic regression."""

from typing import NamedTuple

import torch
from torch import Tensor

from lspread.errors import ConfigError, DataError

__all__ = ["BaselinePrediction", "fit_linear", "knn_vote", "logistic_regression"]

NEVER = -1e4
"""Bias of a class without a label: its softmax probability is 0."""
_ELEMENTS_PER_TILE = 2**24  # 64 MiB of float32 distances at a time


class BaselinePrediction(NamedTuple):
    """What a baseline says about m items: `label (m,)` int64 and `probability (m,c)` float32, rows summing to 1."""

    label: Tensor
    probability: Tensor


@torch.no_grad()
def knn_vote(z_labeled: Tensor, label: Tensor, z: Tensor, k: int = 5, *, num_classes: int) -> BaselinePrediction:
    """Let the k nearest labeled items vote, each with weight 1/distance.

    Args:
        z_labeled: Embeddings of the labeled items, `(l,d)` float.
        label: Their classes, `(l,)` int64 in `0..num_classes-1`.
        z: Embeddings of the items to classify, `(m,d)`, on the same device.
        k: Number of voters; all labeled items where there are fewer.
        num_classes: Number of classes c.

    Returns:
        Labels and vote shares. Labeled items at distance zero decide alone, as in scikit-learn's
        `KNeighborsClassifier(weights="distance")`. No gradient; O(m l d) time, tiled memory.

    Raises:
        ConfigError: `k` is below one.
        DataError: Shapes do not fit, or a label lies outside the classes.
    """
    if k < 1:
        raise ConfigError(f"knn_vote needs k >= 1; got k={k}.")
    _check(z_labeled, label, z, num_classes)
    z_labeled, z = z_labeled.float(), z.float()
    k = min(k, len(z_labeled))
    rows = max(1, _ELEMENTS_PER_TILE // max(len(z_labeled), k * z.shape[1]))
    votes = []
    for tile in z.split(rows):
        candidates = torch.cdist(tile, z_labeled).topk(k, dim=1, largest=False).indices
        # cdist goes through a matrix product, which blurs small distances; the k that vote are measured again.
        distance = (tile[:, None] - z_labeled[candidates]).norm(dim=2)
        is_same = distance == 0
        weight = torch.where(is_same.any(dim=1, keepdim=True), is_same.to(distance.dtype), 1 / distance)
        vote = weight.new_zeros(len(tile), num_classes).scatter_add_(1, label[candidates], weight)
        votes.append(vote / vote.sum(dim=1, keepdim=True))
    probability = torch.cat(votes) if votes else z.new_zeros(0, num_classes)
    return BaselinePrediction(probability.argmax(dim=1), probability)


@torch.no_grad()
def logistic_regression(
    z_labeled: Tensor,
    label: Tensor,
    z: Tensor,
    *,
    num_classes: int,
    inverse_penalty: float = 1.0,
    reference: Tensor | None = None,
    max_steps: int = 1000,
) -> BaselinePrediction:
    """Fit scikit-learn's logistic regression (a linear probe) on standardized embeddings.

    Args:
        z_labeled: Embeddings of the labeled items, `(l,d)` float.
        label: Their classes, `(l,)` int64 in `0..num_classes-1`.
        z: Embeddings of the items to classify, `(m,d)`.
        num_classes: Number of classes c. Classes without a label get probability 0.
        inverse_penalty: scikit-learn's C, the inverse weight of the squared norm.
        reference: Embeddings `(r,d)` whose mean and deviation standardize all others. No label is involved, so a
            run gives its whole pool here: ten labeled items alone estimate a deviation badly. Default: `z_labeled`.
        max_steps: Most L-BFGS steps.

    Returns:
        Labels and class probabilities on the device of `z`.

    Raises:
        DataError: Shapes do not fit, or a label lies outside the classes.
    """
    _check(z_labeled, label, z, num_classes)
    center, scale = _center_and_scale(z_labeled if reference is None else reference)
    present, target = label.unique(return_inverse=True)  # sync: scikit-learn works on the CPU anyway
    probability = torch.zeros(len(z), num_classes, dtype=torch.float64)
    if len(z) == 0:
        pass
    elif len(present) == 1:
        probability[:, int(present[0])] = 1.0
    else:
        from sklearn.linear_model import LogisticRegression

        model = LogisticRegression(C=inverse_penalty, max_iter=max_steps)
        model.fit(((z_labeled.double() - center) / scale).cpu().numpy(), target.cpu().numpy())
        found = model.predict_proba(((z.double() - center) / scale).cpu().numpy())
        probability[:, present.cpu()] = torch.from_numpy(found)
    probability = probability.float().to(z.device)
    return BaselinePrediction(probability.argmax(dim=1), probability)


@torch.no_grad()
def fit_linear(z_labeled: Tensor, label: Tensor, *, num_classes: int, reference: Tensor) -> tuple[Tensor, Tensor]:
    """Return the weight `(c, d)` and bias `(c,)` of `logistic_regression`, float32, for embeddings as they are.

    Args:
        z_labeled: Embeddings of the labeled items, `(l,d)` float.
        label: Their classes, `(l,)` int64 in `0..num_classes-1`, of two classes or more.
        num_classes: Number of classes c. A class without a label gets a bias that makes its probability 0.
        reference: Embeddings `(r,d)` whose mean and deviation standardize all others.

    Raises:
        DataError: Shapes do not fit, or a label lies outside the classes.
    """
    from sklearn.linear_model import LogisticRegression

    _check(z_labeled, label, reference, num_classes)
    center, scale = _center_and_scale(reference)
    present, target = label.unique(return_inverse=True)  # sync: scikit-learn works on the CPU anyway
    model = LogisticRegression(max_iter=1000)
    model.fit(((z_labeled.double() - center) / scale).cpu().numpy(), target.cpu().numpy())
    axes, offset = torch.from_numpy(model.coef_).to(center), torch.from_numpy(model.intercept_).to(center)
    if len(present) == 2:  # one row for two classes: how far the second is ahead
        axes, offset = torch.cat([torch.zeros_like(axes), axes]), torch.cat([torch.zeros_like(offset), offset])
    weight = center.new_zeros(num_classes, len(center))
    bias = center.new_full((num_classes,), NEVER)
    weight[present] = axes / scale
    bias[present] = offset - weight[present] @ center
    return weight.float(), bias.float()


def _center_and_scale(base: Tensor) -> tuple[Tensor, Tensor]:
    base = base.double()
    center, scale = base.mean(dim=0), base.std(dim=0, correction=0)
    return center, torch.where(scale > 0, scale, torch.ones_like(scale))


def _check(z_labeled: Tensor, label: Tensor, z: Tensor, num_classes: int) -> None:
    if z_labeled.ndim != 2 or z.ndim != 2 or z.shape[1] != z_labeled.shape[1] or label.shape != z_labeled.shape[:1]:
        raise DataError(
            "A baseline needs z_labeled (l,d), label (l,) and z (m,d); got "
            f"{tuple(z_labeled.shape)}, {tuple(label.shape)} and {tuple(z.shape)}."
        )
    if len(label) == 0:
        raise DataError("A baseline needs at least one labeled item; got none.")
    low, high = int(label.min()), int(label.max())  # sync: baselines run once, after training
    if low < 0 or high >= num_classes:
        raise DataError(f"Labels must lie in 0..{num_classes - 1}; got values from {low} to {high}.")
