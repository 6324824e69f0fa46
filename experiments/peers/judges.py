"""How good an answer is, in float64 and by other means than the contestants use."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
from scipy.sparse import csr_array

Answer = dict[str, np.ndarray]
Judge = Callable[[Answer, int], dict[str, float]]
"""Reads an answer and the number of its turn; where all turns ask the same, only the first is looked at."""
TIE = 1e-6
"""Relative difference of squared distances that float32 does not resolve: at the k-th place either is right."""


def recall_judge(z: np.ndarray, k: int, *, num_rows: int) -> Judge:
    """Compare with a float64 search for some rows: which share of the neighbors is as near as the true k-th."""
    rows = np.random.default_rng(0).choice(len(z), min(num_rows, len(z)), replace=False)
    rows.sort()
    limit = np.empty(len(rows))
    # Centered, |x|^2 - 2 x y + |y|^2 loses fewer digits; in float64 none that matter here.
    mean = z.mean(0, dtype=np.float64)
    asked = z[rows] - mean
    best = np.full((len(rows), k + 1), np.inf)
    for start in range(0, len(z), 20_000):
        part = z[start : start + 20_000] - mean
        squared = (asked**2).sum(1)[:, None] - 2 * asked @ part.T + (part**2).sum(1)
        inside = (rows >= start) & (rows < start + len(part))
        squared[inside, rows[inside] - start] = np.inf
        best = np.partition(np.concatenate([best, squared], 1), k, axis=1)[:, : k + 1]
    best.sort(axis=1)
    limit[:] = best[:, k - 1]

    def judge(answer: Answer, turn: int) -> dict[str, float]:
        if turn:
            return {}
        index = answer["index"][rows]
        near = z[index.clip(min=0)].astype(np.float64)
        squared = ((near - z[rows].astype(np.float64)[:, None]) ** 2).sum(-1)
        ordered = np.sort(index, 1)
        is_again = np.zeros(index.shape, dtype=bool)
        is_again[:, 1:] = ordered[:, 1:] == ordered[:, :-1]
        right = (squared <= limit[:, None] * (1 + TIE) + 1e-12) & (index >= 0) & (index != rows[:, None])
        return {"recall": float((right.sum() - is_again.sum()) / index.size)}

    return judge


def residual_judge(graph: Path, targets: np.ndarray, alpha: float) -> Judge:
    """Measure max over classes of |b - A F| / |b| in float64; the graph is read when the first answer is judged."""

    def judge(answer: Answer, turn: int) -> dict[str, float]:
        if turn:
            return {}
        with np.load(graph) as arrays:
            size = len(targets)
            s = csr_array((arrays["data"].astype(np.float64), arrays["indices"], arrays["indptr"]), shape=(size, size))
        worst = 0.0
        for column in range(targets.shape[1]):
            scores, rhs = answer["scores"][:, column].astype(np.float64), (1 - alpha) * targets[:, column].astype(float)
            worst = max(worst, float(np.linalg.norm(rhs - scores + alpha * (s @ scores)) / np.linalg.norm(rhs)))
        return {"residual": worst}

    return judge


def accuracy_judge(true: np.ndarray, given: np.ndarray) -> Judge:
    """Share of right labels among the items that this draw did not give."""

    def judge(answer: Answer, turn: int) -> dict[str, float]:
        hidden = given[turn % len(given)] < 0
        return {"accuracy": float((answer["label"][hidden] == true[hidden]).mean())}

    return judge


def gradient_judge(reference: np.ndarray) -> Judge:
    """Relative difference in the 2-norm to the gradient of the float64 dense solve; nothing for other functions."""

    def judge(answer: Answer, turn: int) -> dict[str, float]:
        if turn or "gradient" not in answer:
            return {}
        difference = answer["gradient"].astype(np.float64) - reference
        return {"gradient error": float(np.linalg.norm(difference) / np.linalg.norm(reference))}

    return judge
