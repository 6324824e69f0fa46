"""How good a run is: accuracies with intervals, and cross-validation on the given labels."""

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from lspread.data import Evaluator
from lspread.labels import reliability, stratified_folds
from lspread.typing import UNLABELED

__all__ = [
    "METHODS",
    "Method",
    "accuracy_row",
    "class_table",
    "cross_validate",
    "reliability_table",
    "wilson_interval",
]

Method = Callable[[Tensor, Tensor], Tensor]
"""Labels for some items: called with the visible labels `(n,)`, UNLABELED elsewhere, and the wanted rows `(m,)`;
returns `(m,)` int64, UNLABELED where the method has no answer."""

METHODS = {
    "classifier": "trained classifier",
    "graph": "label spreading on its embeddings",
    "knn": "kNN vote on the same embeddings",
    "logistic_regression": "logistic regression on the same embeddings",
}
"""Key of a method in results.json, and its name for people."""


def wilson_interval(num_right: int, num_items: int) -> tuple[float, float]:
    """95 % confidence interval of an accuracy, honest also near 0 and 1 and for few items.

    References:
        Wilson, "Probable inference, the law of succession, and statistical inference", JASA 1927.
    """
    z = 1.959963984540054  # the normal distribution's 97.5 % point
    share = num_right / num_items
    spread = z * math.sqrt(share * (1 - share) / num_items + z * z / (4 * num_items * num_items))
    center, scale = share + z * z / (2 * num_items), 1 + z * z / num_items
    # At 0 and 1 the formula's end is exact; rounding would leave it a hair off.
    low = 0.0 if num_right == 0 else (center - spread) / scale
    high = 1.0 if num_right == num_items else (center + spread) / scale
    return low, high


def accuracy_row(key: str, on: str, prediction: Tensor, index: Tensor, evaluator: Evaluator) -> dict[str, Any] | None:
    """One row of `scores` in results.json.

    Args:
        key: One of `METHODS`.
        on: "unlabeled", "val" or "test".
        prediction: Labels of all items, `(n,)` int64; UNLABELED counts as wrong.
        index: Rows of the items to judge, `(m,)` int64.
        evaluator: Holder of the true labels.

    Returns:
        The row, or None where no item of `index` has a known label.
    """
    if len(index) == 0 or not evaluator.has_truth(index):
        return None
    truth = evaluator.label(index)
    is_known = truth != UNLABELED
    num_items = int(is_known.sum())
    num_right = int((prediction[index] == truth)[is_known].sum())
    return {
        "key": key,
        "method": METHODS[key],
        "on": on,
        "accuracy": num_right / num_items,
        "num_items": num_items,
        "ci95": list(wilson_interval(num_right, num_items)),
    }


def cross_validate(
    methods: Mapping[str, Method], given_label: Tensor, *, max_folds: int = 5, seed: int = 0
) -> list[dict[str, Any]]:
    """Hide part of the given labels, predict them from the rest, and count: an accuracy that needs no other truth.

    Args:
        methods: Key (one of `METHODS`) and method.
        given_label: Given labels `(n,)` int64, UNLABELED elsewhere.
        max_folds: Most folds; fewer where a class has fewer labels.
        seed: Seed of the folds.

    Returns:
        Rows of `cross_validation` in results.json. `against_best` compares a method with the most accurate one, the
        first of equals, on the same hidden labels: `won` of them it alone got right, `lost` the best one alone, and
        `p` is the chance of a split at least as uneven between equally good methods (exact sign test); None for the
        best one itself. No rows where a class has a single label: hiding it would leave no trace of that class.
    """
    labeled = (given_label != UNLABELED).nonzero().flatten()
    label = given_label[labeled]
    if len(labeled) == 0:
        return []
    num_folds = min(max_folds, int(label.unique(return_counts=True)[1].min()))
    if num_folds < 2:
        return []
    fold = stratified_folds(label, num_folds, torch.Generator().manual_seed(seed))
    is_right: dict[str, Tensor] = {}
    for key, method in methods.items():
        is_right[key] = torch.zeros(len(labeled), dtype=torch.bool)
        for number in range(num_folds):
            hidden = labeled[fold == number]
            visible = given_label.clone()
            visible[hidden] = UNLABELED
            is_right[key][fold == number] = method(visible, hidden) == given_label[hidden]
    best = max(is_right, key=lambda key: int(is_right[key].sum()), default="")
    rows = []
    for key, right in is_right.items():
        num_right = int(right.sum())
        rows.append(
            {
                "key": key,
                "method": METHODS[key],
                "accuracy": num_right / len(labeled),
                "num_items": len(labeled),
                "ci95": list(wilson_interval(num_right, len(labeled))),
                "against_best": None if key == best else _duel(right, is_right[best]),
            }
        )
    return rows


def _duel(right: Tensor, best: Tensor) -> dict[str, Any]:
    from scipy.stats import binomtest

    won, lost = int((right & ~best).sum()), int((best & ~right).sum())
    return {"won": won, "lost": lost, "p": float(binomtest(won, won + lost).pvalue) if won + lost else 1.0}


def reliability_table(on: str, confidence: Tensor, is_right: Tensor) -> dict[str, Any] | None:
    """The part `reliability` of results.json: how sure and how right, bin by bin, and the mean distance of the two.

    Args:
        on: Which items: "unlabeled", "val", "test", or "given" for given labels that were hidden in turn.
        confidence: `(m,)` in [0, 1].
        is_right: `(m,)` bool.

    Returns:
        Lists over the bins that are not empty; None without any item.
    """
    if not len(confidence):
        return None
    count, sure, right = reliability(confidence, is_right)
    kept = count > 0
    return {
        "on": on,
        "count": count[kept].long().tolist(),
        "confidence": sure[kept].tolist(),
        "accuracy": right[kept].tolist(),
        "error": float((count * (sure - right).abs()).sum() / count.sum()),
    }


def class_table(on: str, probability: Tensor, truth: Tensor) -> dict[str, Any]:
    """The part `per_class` of results.json: how well each class is told from all others.

    Args:
        on: Which items.
        probability: `(m, c)` of items whose class is known; the likeliest class is the answer.
        truth: Their classes `(m,)` int64.

    Returns:
        Lists over the c classes: `count` of true items, `precision`, `recall` (sensitivity), `specificity`, `f1`, and
        `auroc`, the chance that an item of the class gets a larger probability of it than one of another class. None
        where a class, or what was taken for it, is empty.
    """
    from torchmetrics.functional.classification import binary_auroc, multiclass_stat_scores

    c = probability.shape[1]
    counts = multiclass_stat_scores(probability.argmax(1), truth, c, average="none").double()
    true_positive, false_positive, true_negative, false_negative, count = counts.unbind(1)

    def share(part: Tensor, whole: Tensor) -> list[float | None]:
        return [p / w if w else None for p, w in zip(part.tolist(), whole.tolist(), strict=True)]

    def auroc(k: int) -> float | None:
        is_class = truth == k
        if not is_class.any() or is_class.all():
            return None
        return min(1.0, float(binary_auroc(probability[:, k], is_class.long())))  # summed up in float32

    return {
        "on": on,
        "count": count.long().tolist(),
        "precision": share(true_positive, true_positive + false_positive),
        "recall": share(true_positive, true_positive + false_negative),
        "specificity": share(true_negative, true_negative + false_positive),
        "f1": share(2 * true_positive, 2 * true_positive + false_positive + false_negative),
        "auroc": [auroc(k) for k in range(c)],
    }
