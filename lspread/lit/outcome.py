"""What a finished run has to say about every item, and how good that is."""

import time
import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from lightning.pytorch import Trainer
from torch import Tensor
from torch.nn.functional import normalize

from lspread.data import FewLabelData
from lspread.graph import Graph
from lspread.labels import PseudoLabels
from lspread.lit.baselines import fit_linear, knn_vote, logistic_regression
from lspread.lit.module import FewLabelClassifier
from lspread.lit.refresh import RefreshPseudoLabels, Spread
from lspread.lit.scores import Method, accuracy_row, class_table, cross_validate, reliability_table
from lspread.nn import embed
from lspread.typing import UNLABELED

__all__ = ["STATUSES", "Outcome", "draw_map", "final_label", "judge", "run_outcome", "status_of"]

STATUSES = ("given", "pseudo", "unreached", "held_out")
"""What `predictions.csv` says about an item: its label was given; it was in the pool, and labels reached it through
the graph; it was in the pool, but no label reached it; it was kept out of training for validation or test."""

FEW_AXES = 512
"""Up to so many embeddings or dimensions, the map takes its two directions from a whole eigendecomposition."""
_ORDER = ("unlabeled", "test", "val")  # the order in which the report looks for a set to speak of


@dataclass(frozen=True, eq=False)
class Outcome:
    """A trained classifier's view of all n items, on the CPU.

    Attributes:
        embedding: `(n,d)` float32.
        probability: The classifier's softmax `(n, c)`.
        predicted: The classifier's class `(n,)` int64, also where a label was given.
        label: The class to go by `(n,)`: the given one, else the predicted one.
        confidence: `(n,)` in [0, 1]: 1 where given, else the classifier's softmax probability.
        status: `(n,)` int64, an index into `STATUSES`.
        pseudo: What was spread over the final embeddings, of all items, on the run's device; None for a run without a
            graph.
        graph_label: Spreading on the final embeddings `(n,)`, `UNLABELED` where nothing arrived or outside the pool;
            None for a run without a graph.
        graph: The normalized graph of the pool's final embeddings, on the run's device; None for a run without one.
        facts: About the graph and its solve; None for a run without a graph.
        seconds: Time of each stage.
    """

    embedding: Tensor
    probability: Tensor
    predicted: Tensor
    label: Tensor
    confidence: Tensor
    status: Tensor
    pseudo: PseudoLabels | None
    graph_label: Tensor | None
    graph: Graph | None
    facts: dict[str, Any] | None
    seconds: dict[str, float]


def run_outcome(
    trainer: Trainer, model: FewLabelClassifier, data: FewLabelData, refresh: RefreshPseudoLabels | None
) -> Outcome:
    """Embed and classify all items with the final weights, and spread the given labels over them once more.

    The classifier's answer is what counts for unlabeled items: it was trained on the graph's pseudo-labels, it has
    an answer everywhere, and it is the model that the run leaves behind. The graph's own answer is scored beside it.
    """
    start = time.perf_counter()
    with trainer.precision_plugin.forward_context():
        z = embed(model.backbone, data.predict_dataloader(), preprocess=model.normalize)
    if model.is_head_trained is False:
        _fit_head(model, z[data.split.pool.to(z.device)], data)
    with torch.no_grad():
        probability = torch.cat([model.head(part).float().softmax(1).cpu() for part in z.split(65536)])
    seconds = {"embed": time.perf_counter() - start}
    given = data.given_label.cpu()
    confidence, predicted = probability.max(dim=1)
    label, confidence = final_label(predicted, confidence, given)
    spread: Spread | None = None
    if refresh is not None:
        spread = refresh.spread(z[data.split.pool.to(z.device)], data)
        seconds.update(spread.seconds)
    is_reached, graph_label = None, None
    if spread is not None:
        is_reached = spread.pseudo.is_reached.cpu()
        graph_label = torch.where(is_reached, spread.pseudo.label.cpu(), UNLABELED)
    return Outcome(
        embedding=z.cpu(),
        probability=probability,
        predicted=predicted,
        label=label,
        confidence=confidence,
        status=status_of(data, is_reached),
        pseudo=None if spread is None else spread.pseudo,
        graph_label=graph_label,
        graph=None if spread is None else spread.graph,
        facts=None if spread is None else spread.facts,
        seconds=seconds,
    )


@torch.no_grad()
def _fit_head(model: FewLabelClassifier, z: Tensor, data: FewLabelData) -> None:
    """Give the classifier of a run that ended in its warm-up a head: logistic regression on the pool's embeddings."""
    label = data.given_label[data.split.pool].to(z.device)
    is_given = label != UNLABELED
    weight, bias = fit_linear(z[is_given], label[is_given], num_classes=data.num_classes, reference=z)
    model.head.weight.copy_(weight)
    model.head.bias.copy_(bias)
    model.is_head_trained = True
    warnings.warn(
        "training ended within the warm-up, before the classifier was trained: it is a logistic regression on the "
        "embeddings of the given labels. Go on with more epochs to train it.",
        stacklevel=2,
    )


def final_label(predicted: Tensor, confidence: Tensor, given: Tensor) -> tuple[Tensor, Tensor]:
    """Keep given labels, with confidence 1; everything else `(n,)` is the classifier's."""
    is_given = given != UNLABELED
    return torch.where(is_given, given, predicted), torch.where(is_given, 1.0, confidence)


def status_of(data: FewLabelData, is_reached: Tensor | None = None) -> Tensor:
    """Index into `STATUSES` of each item `(n,)`; without a graph, no item is unreached."""
    status = torch.full((len(data.items),), STATUSES.index("held_out"))
    unlabeled = data.split.unlabeled
    status[unlabeled] = STATUSES.index("pseudo")
    if is_reached is not None:
        status[unlabeled[~is_reached[unlabeled]]] = STATUSES.index("unreached")
    status[data.split.labeled] = STATUSES.index("given")
    return status


def judge(outcome: Outcome, data: FewLabelData, refresh: RefreshPseudoLabels | None, *, seed: int) -> dict[str, Any]:
    """Scores, baselines, cross-validation, class counts and confusion, as results.json has them."""
    split, evaluator = data.split, data.evaluator
    given = data.given_label.cpu()
    sets = {"unlabeled": split.unlabeled, "test": split.test, "val": split.val}
    methods = _baselines(outcome.embedding, data)
    start = time.perf_counter()
    scores = []
    for on, index in sets.items():
        predictions = {"classifier": outcome.predicted}
        if outcome.graph_label is not None and on == "unlabeled":
            predictions["graph"] = outcome.graph_label
        if len(index) and evaluator.has_truth(index):
            for key, method in methods.items():
                predictions[key] = torch.full_like(given, UNLABELED)
                predictions[key][index] = method(given, index)
        rows = [accuracy_row(key, on, prediction, index, evaluator) for key, prediction in predictions.items()]
        scores += [row for row in rows if row is not None]
    if refresh is not None and outcome.graph is not None:
        methods = {"graph": _graph_method(outcome.graph, data, refresh), **methods}
    checks = cross_validate(methods, given, seed=seed)
    seconds = time.perf_counter() - start
    shown = next((name for name in _ORDER if len(sets[name]) and evaluator.has_truth(sets[name])), None)
    truth = evaluator.label(split.unlabeled)
    is_known = len(truth) > 0 and bool((truth != UNLABELED).all())

    def count(label: Tensor) -> list[int]:
        return torch.bincount(label, minlength=data.num_classes).tolist()

    return {
        "scores": scores,
        "cross_validation": checks,
        **({} if shown is None else _judge_probability(outcome.probability, shown, sets[shown], data)),
        # Predicted and true counts are of the unlabeled items, which the given ones are not part of.
        "class_counts": {
            "given": count(given[split.labeled]),
            "predicted": count(outcome.predicted[split.unlabeled]),
            "true": count(truth) if is_known else None,
        },
        "confusion": None
        if shown is None
        else {"on": shown, "matrix": evaluator.confusion(outcome.predicted, sets[shown]).tolist()},
        "seconds": {"baselines": seconds},
    }


def _judge_probability(probability: Tensor, on: str, index: Tensor, data: FewLabelData) -> dict[str, Any]:
    """How far the classifier's probabilities can be taken at their word, all in all and by class."""
    truth = data.evaluator.label(index)
    index, truth = index[truth != UNLABELED], truth[truth != UNLABELED]
    confidence, answer = probability[index].max(1)
    return {
        "reliability": reliability_table(on, confidence, answer == truth),
        "per_class": class_table(on, probability[index], truth),
    }


def draw_map(
    embedding: Tensor,
    label: Tensor,
    confidence: Tensor,
    is_given: Tensor,
    pool: Tensor,
    *,
    seed: int,
    max_points: int = 2000,
) -> dict[str, Any] | None:
    """Place pool items in the plane by the two main directions (PCA) of their unit-length embeddings.

    Args:
        embedding: Of all items `(n, d)`.
        label: `(n,)` int64, `UNLABELED` where there is none.
        confidence: `(n,)` in [0, 1].
        is_given: Whose label was given `(n,)` bool.
        pool: Items to place `(p,)` int64, ascending.
        seed: Of the choice of points, where there are more than `max_points`.
        max_points: Most points; given ones take up to a quarter.
    """
    if len(pool) < 3 or embedding.shape[1] < 2:
        return None
    labeled, others = pool[is_given[pool]], pool[~is_given[pool]]
    generator = torch.Generator().manual_seed(seed)
    z = normalize(embedding[pool].double(), dim=1)
    center = z.mean(dim=0)
    main, share = _main_directions(z - center)
    # An eigenvector has no sign; its largest entry made positive, the same data give the same picture.
    main = main * main.gather(0, main.abs().argmax(dim=0, keepdim=True)).sign()
    kept = labeled[torch.randperm(len(labeled), generator=generator)[: max_points // 4]]
    others = others[torch.randperm(len(others), generator=generator)[: max_points - len(kept)]]
    rows = torch.cat([kept, others]).sort().values
    place = (normalize(embedding[rows].double(), dim=1) - center) @ main
    return {
        "x": [round(value, 5) for value in place[:, 0].tolist()],
        "y": [round(value, 5) for value in place[:, 1].tolist()],
        "label": label[rows].tolist(),
        "confidence": [round(value, 4) for value in confidence[rows].tolist()],
        "given": is_given[rows].tolist(),
        "explained": share,
    }


def _main_directions(centered: Tensor) -> tuple[Tensor, float]:
    """Return the two directions of the largest variance `(d, 2)`, and their share of all variance."""
    total = float(centered.square().sum())
    n, d = centered.shape
    if total == 0:
        return torch.eye(d, 2, dtype=centered.dtype), 1.0
    if min(n, d) <= FEW_AXES:
        # The smaller of the two products: with few points in a wide space, the one between points.
        spectrum, direction = torch.linalg.eigh(centered.T @ centered if d <= n else centered @ centered.T)
        main, variance = direction[:, [-1, -2]], float(spectrum[-2:].clamp(min=0).sum())
        if n < d:
            main = normalize(centered.T @ main, dim=0)
    else:
        # All directions of a wide space would take far longer than two.
        from scipy.sparse.linalg import svds

        # Not all ones: these are orthogonal to everything where the points are centered.
        start = np.random.default_rng(0).standard_normal(min(n, d))
        _, scale, direction = svds(centered.numpy(), k=2, v0=start, tol=1e-6)
        order = np.argsort(-scale)
        main, variance = torch.from_numpy(direction[order].T.copy()), float((scale**2).sum())
    return main, min(1.0, variance / total)


def _baselines(z: Tensor, data: FewLabelData) -> dict[str, Method]:
    pool = z[data.split.pool]

    def vote(given: Tensor, index: Tensor) -> Tensor:
        rows = (given != UNLABELED).nonzero().flatten()
        # Unit length, so that the vote measures distance as the graph does by default.
        near = normalize(z, dim=1)
        return knn_vote(near[rows], given[rows], near[index], num_classes=data.num_classes).label

    def probe(given: Tensor, index: Tensor) -> Tensor:
        rows = (given != UNLABELED).nonzero().flatten()
        return logistic_regression(z[rows], given[rows], z[index], num_classes=data.num_classes, reference=pool).label

    return {"knn": vote, "logistic_regression": probe}


def _graph_method(graph: Graph, data: FewLabelData, refresh: RefreshPseudoLabels) -> Method:
    """Spreading as a method for cross-validation: the run's last graph, and a solve per call."""
    pool = data.split.pool

    def spread(given: Tensor, index: Tensor) -> Tensor:
        _, pseudo = refresh.solve(graph, given[pool].to(graph.edge_weight.device), data.num_classes)
        label = torch.full_like(given, UNLABELED)
        label[pool] = torch.where(pseudo.is_reached, pseudo.label, UNLABELED).cpu()
        return label[index]

    return spread
