"""Which given labels look wrong: every label against what all the others say of its item."""

from dataclasses import dataclass

import torch
from torch import Tensor

from lspread.errors import ConfigError, DataError
from lspread.graph import Graph
from lspread.labels import normalize_scores, spread_labels
from lspread.typing import UNLABELED

__all__ = ["Audit", "audit_labels"]

BLOCK = 512
"""Columns of one solve."""


@dataclass(frozen=True, eq=False)
class Audit:
    """What the graph thinks of m given labels; nothing in it changes them.

    Attributes:
        index: The labeled items `(m,)` int64, ascending.
        label: Their labels `(m,)` int64, as given.
        probability: Class probabilities `(m, c)` of each item from all other labels; uniform where none reaches it.
        is_reached: Where another label reaches the item and its class has another label `(m,)` bool; elsewhere nothing
            can be said of a label.
        suspicion: `(m,)` in [0, 1], larger where a label looks wrong: 1 minus the probability of the given class; 0
            where nothing can be said.
        trust: `(m,)` in [0, 1]: probability of the given class over that of the likeliest one; 1 where nothing is
            known. Targets times trust make a spread that wrong labels harm less.
        suggested: The likeliest class of each item from all others `(m,)` int64; the given one where nothing is known.
        noise: `(c, c)`, row given, column suggested: how many labels of a class the others would give which class,
            in probabilities, so rows sum to the number of labels of the class.
    """

    index: Tensor
    label: Tensor
    probability: Tensor
    is_reached: Tensor
    suspicion: Tensor
    trust: Tensor
    suggested: Tensor
    noise: Tensor

    @property
    def order(self) -> Tensor:
        """Positions `(m,)` in `index`, the most suspicious label first."""
        return self.suspicion.argsort(descending=True, stable=True)


def audit_labels(
    graph: Graph, label: Tensor, num_classes: int, *, alpha: float = 0.95, num_rounds: int = 3, least: float = 1e-3
) -> Audit:
    """Leave every given label out in turn and ask the graph, with all others, for it.

    Scores are linear in the labels, F = (1 - alpha) C Y with C = (I - alpha S)^-1, so leaving out label i takes
    (1 - alpha) C_ii Y_i from F_i: all m answers come from one solve with m columns. As wrong labels speak for others
    too, later rounds weigh each label by its trust of the round before.

    Args:
        graph: S of n nodes, from `normalize_graph`, symmetric or not.
        label: `(n,)` int64, `UNLABELED` (-1) where unknown; at least two labels.
        num_classes: Number of classes c.
        alpha: How far a label speaks; less than for spreading few labels, since near labels know best.
        num_rounds: Rounds, at least 1.
        least: Smallest trust that a label keeps in later rounds, in (0, 1], so that a mistake can be taken back.

    Returns:
        `Audit`. Classes are balanced: the labels of a class send out 1 in total, whatever their number. Detached;
        O(n BLOCK + m^2) memory.

    Raises:
        DataError: Fewer than two labels.
        ConfigError: `num_rounds` or `least` is out of range.
        GraphError: The graph is not normalized or does not fit.
    """
    if num_rounds < 1 or not 0 < least <= 1:
        raise ConfigError(
            f"audit_labels needs num_rounds >= 1 and 0 < least <= 1; got num_rounds={num_rounds}, least={least}."
        )
    index = (label != UNLABELED).nonzero().flatten()
    if label.shape != (graph.num_nodes,) or len(index) < 2:
        raise DataError(
            f"audit_labels compares labels with each other and needs at least two of them on {graph.num_nodes} nodes; "
            f"got {len(index)} in labels of shape {tuple(label.shape)}."
        )
    given = label[index]
    with torch.no_grad():
        says = _influence(graph, index, alpha).fill_diagonal_(0)
        one_hot = torch.nn.functional.one_hot(given, num_classes).to(says.dtype)
        count = one_hot.sum(0)
        trust = torch.ones(len(index), dtype=says.dtype, device=says.device)
        for _ in range(num_rounds):
            targets = one_hot * trust.clamp(min=least)[:, None]
            # A class whose label is left out sends out 1 all the same, or leaving out would speak against it.
            mass = (targets.sum(0) - targets).masked_fill((count == 1) & (one_hot > 0), 0)
            probability, is_reached = normalize_scores(says @ targets / torch.where(mass > 0, mass, 1))
            is_reached = is_reached & (count[given] > 1)
            own = probability.gather(1, given[:, None]).squeeze(1)
            likeliest, suggested = probability.max(1)
            trust = torch.where(is_reached, own / likeliest, 1)
    return Audit(
        index=index,
        label=given,
        probability=probability,
        is_reached=is_reached,
        suspicion=torch.where(is_reached, 1 - own, 0),
        trust=trust,
        suggested=torch.where(is_reached & (likeliest > own), suggested, given),
        noise=one_hot.T @ torch.where(is_reached[:, None], probability, one_hot),
    )


def _influence(graph: Graph, index: Tensor, alpha: float) -> Tensor:
    """Return (1 - alpha) (I - alpha S)^-1 between the given items `(m, m)`: row receives, column sends."""
    parts = []
    for block in index.split(BLOCK):
        targets = torch.zeros(graph.num_nodes, len(block), dtype=graph.edge_weight.dtype, device=index.device)
        targets[block, torch.arange(len(block), device=index.device)] = 1
        parts.append(spread_labels(graph, targets, alpha=alpha, on_failure="warn").value[index])
    return torch.cat(parts, 1)
