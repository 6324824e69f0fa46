"""Poisson learning: labels as sources and sinks of a potential on the graph."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Literal

import torch
from torch import Tensor

from lspread.errors import ConfigError, GraphError
from lspread.graph import EdgeLayout, Graph, connected_components, degree, edge_matmul, normalize_graph
from lspread.labels.operators import layout_of, sum_component, sum_loops
from lspread.labels.priors import ClassPrior, class_prior, graph_of_node, sum_graph
from lspread.labels.spreading import check_targets
from lspread.solve import ConjugateGradient, LinearOperator, Solution, Solver, linear_solve
from lspread.typing import UNLABELED, OnFailure

__all__ = ["PoissonOperator", "poisson_labels"]

MAX_STEPS = 5000
RTOL = 1e-5
"""Relative residual for float32 input: as everywhere, although the solve could go further."""


@dataclass(eq=False)
class PoissonOperator(LinearOperator):
    """A = I - S + q q^T, the normalized Laplacian made regular on its null space.

    I - S takes q = D^1/2 1, scaled to length one in every component, to zero. Adding its projection gives q the
    eigenvalue 1 and leaves all others, which lie in (0, 2]: A is positive definite, and for a right-hand side at right
    angles to q the solution is the one that is at right angles to q too.

    Attributes:
        layout: Places of the entries of S.
        weight: Entries of S `(e,)`.
        null: q `(n,)`, carrying its own gradient to the weights; 0 at nodes without edges, whose row is the identity.
        component: From `connected_components` `(n,)`.
        ptr: Boundaries of the graphs `(b + 1,)`.
        units: What residuals are multiplied by to be compared in units of the sources `(n,)`, e.g. D^1/2, without
            gradient; None where b has these units.
    """

    layout: EdgeLayout
    weight: Tensor
    null: Tensor
    component: Tensor
    ptr: Tensor
    units: Tensor | None = None
    is_spd: bool = True
    num_nodes: int = field(init=False)

    def __post_init__(self) -> None:
        self.num_nodes = self.layout.num_nodes

    @property
    def device(self) -> torch.device:
        """Where the weights lie."""
        return self.weight.device

    @property
    def dtype(self) -> torch.dtype:
        """Of the weights."""
        return self.weight.dtype

    def tensors(self) -> tuple[Tensor, ...]:
        """Return the weights, q and, where there are any, the units."""
        return self.weight, self.null, *([] if self.units is None else [self.units])

    def replace(self, *tensors: Tensor) -> PoissonOperator:
        """Return the operator with other weights, another q and, where there are any, other units."""
        weight, null, *rest = tensors
        return PoissonOperator(self.layout, weight, null, self.component, self.ptr, rest[0] if rest else None)

    def project(self, x: Tensor) -> Tensor:
        """Return q q^T x, the part of x `(n, c)` along q in every component."""
        null = self.null[:, None]
        return null * sum_component(null * x, self.component)

    def matmul(self, x: Tensor) -> Tensor:
        """Return A x for x `(n, c)`."""
        return x - edge_matmul(self.layout, self.weight, x) + self.project(x)

    def diagonal(self) -> Tensor:
        """Return the diagonal `(n,)`; self-loops count."""
        return 1 - sum_loops(self.layout, self.weight) + self.null.square()

    def row_units(self) -> Tensor | None:
        """Return the units of the sources: in those of b, one label where edges are light outweighs all others."""
        return self.units

    def spectrum(self) -> tuple[Tensor | float, Tensor | float]:
        """Return 0 (how small the eigenvalues are is not known) and 2."""
        return 0.0, 2.0

    def transpose(self) -> PoissonOperator:
        """Return this very operator: it is symmetric."""
        return self


def poisson_labels(
    graph: Graph,
    targets: Tensor,
    *,
    normalization: Literal["none", "symmetric"] = "none",
    prior: ClassPrior = "none",
    solver: Solver | None = None,
    initial: Tensor | None = None,
    on_failure: OnFailure = "raise",
) -> Solution:
    """Return the potential of labels as point sources: L F = sum_j (y_j - mean y) delta_j.

    Made for very few labels, where propagated labels are almost constant with spikes at the labels. Every component of
    the graph is a problem of its own, its labels centred by their own mean. L = D - W is singular there, and F is the
    solution with sum_i d_i F_i = 0. It comes from (I - S + q q^T) D^1/2 F = D^-1/2 (y - mean y), a positive definite
    system (see `PoissonOperator`), so that every solver can be used.

    Args:
        graph: W, symmetric and not normalized.
        targets: Y `(n, c)` of the graph's dtype, or float16 or bfloat16; rows that are not zero are labels. With
            `label_matrix(balance=True)` every class sends out one unit in total; that divides column c of F by the
            number of labels n_c, as prior "uniform" does up to one factor for all.
        normalization: Which Laplacian. "none" is D - W, the paper's. "symmetric" is I - S with S = D^-1/2 W D^-1/2: F
            is its pseudoinverse times the centred labels, so sum_i sqrt(d_i) F_i = 0. It is what `spread_labels` of
            the centred labels, divided by 1 - alpha, tends to at right angles to sqrt(d) as alpha -> 1.
        prior: Class frequencies b to match: column c of F is multiplied by b_c / mean y_c, the mean over the labels of
            its graph. "labeled" changes nothing, since b is that mean.
        solver: As in `spread_labels`; default: conjugate gradient to a relative residual of 1e-5 for float32 input. The
            smallest eigenvalue is not known, so `Solution.error_bound` is infinite.
        initial: First guess of F `(n, c)`, before the prior.
        on_failure: As in `spread_labels`.

    Returns:
        `Solution` with F `(n, c)` in `value`; rows sum to zero without a prior, so the largest score is positive.
        Zero rows where the component has no label; where all labels of a component agree there is no source, and every
        node takes their row instead of a tie. `residual` and `tolerance` are of the system above, or of D^1/2 times it,
        whose right-hand side are the sources, where that is further from its tolerance. Implicit gradient to weights,
        targets and prior. Computed outside autocast, and in float64 whatever comes in: between clusters that
        hardly touch, the potential is so much larger than its sources that float32 cannot reach a small residual.
        O(e + n c) memory.

    Raises:
        GraphError: The graph is normalized or not symmetric, or tensors do not fit.
        ConfigError: `normalization` or `prior` is unknown.
        SolveError: Not converged and `on_failure="raise"`.

    References:
        Calder, Cook, Thorpe and Slepcev, "Poisson Learning: Graph Based Semi-Supervised Learning At Very Low Label
        Rates", ICML 2020, section 2 and algorithm 1.
    """
    if graph.normalization != "none" or not graph.is_symmetric:
        raise GraphError(
            "poisson_labels needs a symmetric graph that is not normalized; got "
            f"normalization={graph.normalization!r}, is_symmetric={graph.is_symmetric}. Pass build_graph's result as "
            "it is and choose the Laplacian with normalization='none' or 'symmetric'."
        )
    if normalization not in ("none", "symmetric"):
        raise ConfigError(f"normalization must be 'none' or 'symmetric'; got {normalization!r}.")
    targets = check_targets(graph, targets, initial)
    dtype = graph.edge_weight.dtype
    if solver is None:
        solver = ConjugateGradient(rtol=None if dtype == torch.float64 else RTOL, max_steps=MAX_STEPS)
    graph, targets = graph.to(dtype=torch.float64), targets.double()
    with torch.autocast(graph.device.type, enabled=False):
        component = connected_components(graph)
        is_given = (targets.detach() != 0).any(1)
        source, mean, is_alike = _centred(targets, is_given, component)

        # D^1/2 and D^-1/2, both zero without edges, where the outer `where` keeps the gradient finite.
        total = degree(graph)
        root = torch.where(total > 0, torch.where(total > 0, total, 1).sqrt(), 0)[:, None]
        inverse_root = torch.where(root > 0, 1 / torch.where(root > 0, root, 1), 0)
        length = sum_component(total, component)
        null = root.squeeze(1) * torch.where(length > 0, torch.where(length > 0, length, 1).rsqrt(), 0)
        units = root.detach().squeeze(1) if normalization == "none" else None
        weight = normalize_graph(graph).edge_weight
        operator = PoissonOperator(layout_of(graph), weight, null, component, graph.ptr, units)

        rhs = inverse_root * source if normalization == "none" else source - operator.project(source)
        if initial is not None:
            has_source = (sum_component(is_given.to(torch.int64), component) > 0) & ~is_alike
            initial = torch.where(has_source[:, None], initial.double(), 0)
            initial = root.detach() * initial if normalization == "none" else initial
        solution = linear_solve(operator, rhs, solver=solver, initial=initial, on_failure=on_failure)
        value = inverse_root * solution.value if normalization == "none" else solution.value
        value = torch.where(is_alike[:, None], mean, value)
        value = value * _prior_factor(prior, targets, is_given, graph.ptr)
    return replace(
        solution,
        value=value.to(dtype),
        residual=solution.residual.to(dtype),
        error_bound=solution.error_bound.to(dtype),
        tolerance=solution.tolerance.to(dtype),
    )


def _centred(targets: Tensor, is_given: Tensor, component: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return sources `(n, c)`, the mean label of every node's component, and where all labels of it agree `(n,)`."""
    count = sum_component(is_given.to(targets.dtype), component)[:, None]
    mean = sum_component(targets, component) / count.clamp(min=1)
    source = torch.where(is_given[:, None], targets - mean, 0)
    # Equal rows leave a source of rounding errors, n of them in a sum of n.
    rounding = 4 * torch.finfo(targets.dtype).eps * count * sum_component(targets.detach().abs(), component)
    is_alike = (sum_component(source.detach().abs(), component) <= rounding).all(1) & (count.squeeze(1) > 0)
    return torch.where(is_alike[:, None], 0, source), mean, is_alike


def _prior_factor(prior: ClassPrior, targets: Tensor, is_given: Tensor, ptr: Tensor) -> Tensor:
    """Return b_c / mean y_c per graph, `(n, c)` or of fewer rows; 1 for classes without labels, whose scores are 0."""
    label = torch.where(is_given, targets.detach().argmax(1), UNLABELED)
    frequencies = class_prior(prior, label, targets.shape[1])
    if frequencies is None or (isinstance(prior, str) and prior == "labeled"):
        return torch.ones_like(targets[:1])
    frequencies = frequencies.to(targets)
    frequencies = frequencies / frequencies.sum()
    count = sum_graph(is_given.to(targets.dtype)[:, None], ptr)
    share = sum_graph(targets, ptr) / count.clamp(min=1)
    factor = torch.where(share > 0, frequencies / torch.where(share > 0, share, 1), 1)
    return factor[graph_of_node(ptr, len(targets))]
