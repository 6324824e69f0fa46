"""Losses that pseudo-labels, spread scores and two views of one image feed back into a backbone."""

from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, normalize

from lspread.errors import ConfigError, GraphError
from lspread.labels.priors import normalize_scores
from lspread.labels.pseudo import PseudoLabels

__all__ = ["agreement_loss", "contrastive_loss", "graph_contrastive_loss", "pseudo_label_loss", "spread_score_loss"]


def pseudo_label_loss(
    logits: Tensor, pseudo: PseudoLabels, index: Tensor, *, reduction: Literal["mean", "weighted_mean"] = "mean"
) -> Tensor:
    """Return cross entropy to pseudo-labels, weighted by certainty and class size, averaged over the mini-batch.

    Args:
        logits: `(m, c)`, any floating dtype.
        pseudo: Pseudo-labels of all n items.
        index: Which items the rows are `(m,)` int64.
        reduction: "mean" divides by m, as in the paper, so the loss is small while little is certain; "weighted_mean"
            divides by the sum of the weights, so its size does not depend on how certain the graph is.

    Returns:
        Scalar float32 (float64 for float64 logits): mean over rows of weight_i class_weight[label_i] CE_i.
        Differentiable in `logits`; items of weight 0 add nothing.

    Raises:
        GraphError: Shapes do not fit.
        ConfigError: `reduction` is unknown.

    References:
        Iscen et al., "Label Propagation for Deep Semi-supervised Learning", CVPR 2019, equation 10.
    """
    if logits.ndim != 2 or index.shape != logits.shape[:1]:
        raise GraphError(
            f"pseudo_label_loss needs logits (m, c) and one item number per row, index (m,); got {tuple(logits.shape)} "
            f"and {tuple(index.shape)}."
        )
    if reduction not in ("mean", "weighted_mean"):
        raise ConfigError(f"reduction must be 'mean' or 'weighted_mean'; got {reduction!r}.")
    logits = logits if logits.dtype == torch.float64 else logits.float()
    label = pseudo.label[index]
    weight = pseudo.weight[index] * pseudo.class_weight[label]
    loss = weight * cross_entropy(logits, label, reduction="none")
    if reduction == "mean":
        return loss.mean()
    return loss.sum() / weight.sum().clamp(min=torch.finfo(loss.dtype).tiny)


def spread_score_loss(scores: Tensor, label: Tensor, weight: Tensor | None = None) -> Tensor:
    """Return the negative log of the share of each node's spread scores that its label got, weighted mean.

    Args:
        scores: F `(m, c)` of nodes whose own label was hidden while spreading.
        label: Their classes `(m,)` int64.
        weight: `(m,)` >= 0; ones if left out.

    Returns:
        Scalar, differentiable in `scores` and so in whatever built the graph. Nodes to which no score of their class
        came count as 0: there is no slope to follow. 0 when no weight is left.
    """
    mass = scores.relu()
    right = mass.gather(1, label[:, None]).squeeze(1)
    is_counted = right > 0
    share = torch.where(is_counted, right, 1) / torch.where(is_counted, mass.sum(1), 1)
    weight = is_counted.to(scores.dtype) * (1 if weight is None else weight)
    return -(weight * share.log()).sum() / weight.sum().clamp(min=torch.finfo(scores.dtype).tiny)


def contrastive_loss(first: Tensor, second: Tensor, *, temperature: float = 0.5) -> Tensor:
    """Return NT-Xent: each view must find the other view of its image among all 2 m - 1 others.

    Args:
        first: Projections of one view `(m, d)`, m >= 2.
        second: Projections of the other view, row for row.
        temperature: Cosines are divided by it; smaller looks harder at the nearest ones.

    Returns:
        Scalar float32 or float64; gradient to both.

    References:
        Chen et al., "A Simple Framework for Contrastive Learning of Visual Representations", ICML 2020, equation 1.
    """
    if first.ndim != 2 or first.shape != second.shape or len(first) < 2:
        raise GraphError(
            f"contrastive_loss needs two views (m, d) of at least 2 images; got {tuple(first.shape)} and "
            f"{tuple(second.shape)}."
        )
    num_images = len(first)
    both = torch.cat([first, second])
    with torch.autocast(both.device.type, enabled=False):
        both = normalize(both if both.dtype == torch.float64 else both.float(), dim=1)
        similarity = both @ both.T / temperature
    number = torch.arange(2 * num_images, device=both.device)
    similarity = similarity.masked_fill(number[:, None] == number, -torch.inf)
    return cross_entropy(similarity, (number + num_images) % (2 * num_images))


def agreement_loss(first: Tensor, second: Tensor, *, sharpening: float = 0.25) -> Tensor:
    """Return how far the spread scores of two views of the same items are from each other's sharpened answer.

    Args:
        first: Scores F `(m, c)` of one view's graph.
        second: Scores of the other view's graph, row for row.
        sharpening: Probabilities are raised to 1 / sharpening before they serve as targets; in (0, 1].

    Returns:
        Scalar, symmetric in the views: the mean of both cross entropies over rows that both graphs reach, 0 where
        there is none. Gradient to both scores, so to both graphs and all embeddings; none through the targets.

    Raises:
        GraphError: Shapes differ.
        ConfigError: `sharpening` is outside (0, 1].

    References:
        Assran et al., "Semi-Supervised Learning of Visual Features by Non-Parametrically Predicting View Assignments
        with Support Samples", ICCV 2021, equations 3 and 4; here the graph predicts.
    """
    if first.ndim != 2 or first.shape != second.shape:
        raise GraphError(
            f"agreement_loss needs scores (m, c) of two views; got {tuple(first.shape)} and {tuple(second.shape)}."
        )
    if not 0 < sharpening <= 1:
        raise ConfigError(f"sharpening must be in (0, 1]; got {sharpening}.")
    (one, is_one), (other, is_other) = normalize_scores(first), normalize_scores(second)
    is_reached = is_one & is_other
    # Where a view gave a class nothing there is no slope to follow; the floor only keeps the logarithm finite.
    tiny = torch.finfo(one.dtype).tiny
    logs = [probability.clamp(min=tiny).log() for probability in (one, other)]
    targets = [(log.detach() / sharpening).softmax(1) for log in logs]
    loss = -(targets[1] * logs[0] + targets[0] * logs[1]).sum(1) / 2
    return torch.where(is_reached, loss, 0).sum() / is_reached.sum().clamp(min=1)


def graph_contrastive_loss(
    first: Tensor, second: Tensor, probability: Tensor, *, temperature: float = 0.2, threshold: float = 0.8
) -> Tensor:
    """Return how far the similarities of two views are from a graph that joins images of one spread label.

    An image shall find its own other view, and those of images that probably have its class; where no class is
    probable this is plain contrast.

    Args:
        first: Projections of one view `(m, d)`.
        second: Projections of the other view, row for row.
        probability: Class probabilities of the images `(m, c)`, such as spread labels; detached here.
        temperature: Cosines are divided by it.
        threshold: Images are joined where the inner product of their probabilities reaches it.

    Returns:
        Scalar float32 or float64: mean over rows of the cross entropy of row-normalized graph and similarities.
        Gradient to both projections.

    Raises:
        GraphError: Shapes do not fit.

    References:
        Li et al., "CoMatch: Semi-Supervised Learning With Contrastive Graph Regularization", ICCV 2021, equations 6
        to 8.
    """
    if first.ndim != 2 or first.shape != second.shape or probability.shape[:1] != first.shape[:1]:
        raise GraphError(
            "graph_contrastive_loss needs two views (m, d) and probabilities (m, c); got "
            f"{tuple(first.shape)}, {tuple(second.shape)} and {tuple(probability.shape)}."
        )
    first, second = (view if view.dtype == torch.float64 else view.float() for view in (first, second))
    with torch.autocast(first.device.type, enabled=False):
        similarity = normalize(first, dim=1) @ normalize(second, dim=1).T / temperature
        joint = probability.detach().to(similarity.dtype)
        joint = joint @ joint.T
    number = torch.arange(len(first), device=first.device)
    graph = torch.where(joint >= threshold, joint, 0).masked_fill(number[:, None] == number, 1)
    return cross_entropy(similarity, graph / graph.sum(1, keepdim=True))
