"""Spreading that takes its surest answers for labels and goes on: for one or a few labels per class."""

from dataclasses import replace

import torch
from torch import Tensor

from lspread.errors import ConfigError
from lspread.graph import Graph
from lspread.labels.priors import ClassPrior, class_prior, normalize_scores
from lspread.labels.sinkhorn import sinkhorn_prior
from lspread.labels.spreading import DEFAULT_SOLVER, spread_labels
from lspread.labels.targets import label_matrix
from lspread.solve import Solution, Solver
from lspread.typing import OnFailure

__all__ = ["reinforce_labels"]

GIVEN = 2.0
"""How much more than a class's sure answers together its given labels together send out."""


def reinforce_labels(
    graph: Graph,
    label: Tensor,
    num_classes: int,
    *,
    alpha: float = 0.99,
    rounds: int = 3,
    share: float = 0.5,
    prior: ClassPrior = "uniform",
    solver: Solver = DEFAULT_SOLVER,
    initial: Tensor | None = None,
    on_failure: OnFailure = "raise",
) -> Solution:
    """Spread labels, then take the surest share of every class for labels as well, and spread again.

    A few labels are heard well in their own neighbourhood only; sure answers carry them on. Every class counts alike:
    the given labels of a class send out 2 in total, its sure answers, weighted by their probability, 1.

    Args:
        graph: S of n nodes, from `normalize_graph`.
        label: Given labels `(n,)` int64, `UNLABELED` (-1) elsewhere.
        num_classes: Number of classes c.
        alpha: How much a node listens to its neighbours, in [0, 1).
        rounds: How often answers become labels; 0 is `spread_labels` with balanced targets.
        share: Share of every class's answers that become labels, in (0, 1].
        prior: Class frequencies that answers are matched to exactly before the surest are taken: "none", "uniform",
            "labeled" or a tensor `(c,)`.
        solver: As in `spread_labels`.
        initial: First guess of the scores `(n, c)`.
        on_failure: As in `spread_labels`.

    Returns:
        The last `Solution`, detached; `num_steps` counts all of them. What no given label reaches gets no score. Reads
        the device once per class and round.

    Raises:
        ConfigError: `rounds` or `share` is out of range, or see `spread_labels`.
        GraphError: See `spread_labels`.

    References:
        Calder, Cook, Thorpe and Slepcev, "Poisson Learning: Graph Based Semi-Supervised Learning At Very Low Label
        Rates", ICML 2020, section 2.4, alternates likewise between a graph solve and answers of fixed class sizes.
    """
    if rounds < 0 or not 0 < share <= 1:
        raise ConfigError(f"reinforce_labels needs rounds >= 0 and 0 < share <= 1; got rounds={rounds}, share={share}.")
    with torch.no_grad():
        given = label_matrix(label, num_classes, balance=True, dtype=graph.edge_weight.dtype)
        targets, num_steps = given, 0
        for number in range(rounds + 1):
            solution = spread_labels(graph, targets, alpha=alpha, solver=solver, initial=initial, on_failure=on_failure)
            num_steps += solution.num_steps
            if number == rounds:
                break
            initial = solution.value
            targets = GIVEN * given + _surest(solution.value, label, num_classes, prior, share)
    return replace(solution, num_steps=num_steps)


def _surest(scores: Tensor, label: Tensor, num_classes: int, prior: ClassPrior, share: float) -> Tensor:
    """Return targets `(n, c)` of the surest answers of every class, which sum to 1 in each class."""
    frequencies = class_prior(prior, label, num_classes)
    probability, is_reached = normalize_scores(scores)
    if frequencies is not None:
        probability = normalize_scores(sinkhorn_prior(scores, frequencies, on_failure="ignore"))[0]
    confidence, answer = torch.where(is_reached[:, None], probability, 0).max(1)
    targets = torch.zeros_like(scores)
    for c in range(num_classes):
        rows = ((answer == c) & is_reached).nonzero().flatten()  # sync: how many answers a class has
        if len(rows):
            top = rows[confidence[rows].topk(max(1, int(share * len(rows)))).indices]
            targets[top, c] = confidence[top] / confidence[top].sum()
    return targets
