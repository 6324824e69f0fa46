"""Class scores scaled until their totals are a given prior, rows and columns at once."""

import warnings

import torch
from torch import Tensor

from lspread.errors import ConfigError, GraphError, SolveError
from lspread.labels.priors import check_frequencies, graph_of_node, one_graph, sum_graph
from lspread.typing import OnFailure

__all__ = ["sinkhorn_prior"]

TOL = {torch.float32: 1e-5, torch.float64: 1e-9}
RIDGE = 1e-10
NEWTON_START = 1e-3
"""Miss, relative to a class's share, from where two Newton steps are enough."""
NEWTON_GATE = 0.1
"""Largest such miss at which a Newton step is taken at all."""


def sinkhorn_prior(
    scores: Tensor,
    prior: Tensor,
    *,
    weight: Tensor | None = None,
    ptr: Tensor | None = None,
    tol: float | None = None,
    max_steps: int = 1000,
    check_every: int = 10,
    on_failure: OnFailure = "raise",
) -> Tensor:
    """Scale classes, then rows, of scores P so that the shares of the classes are the prior: Z = diag(u) P diag(v).

    Rows of Z sum to one and sum_i weight_i Z_ic / sum_i weight_i = prior_c. Sinkhorn's steps, each of which makes the
    totals right and then the rows, are taken without gradient; two Newton steps for v, with gradient, end it. A Newton
    step squares the error of v as a function of P and prior too, so one makes the first derivative exact and two
    the second and third; nothing else is kept for the backward pass. Neither scaling a row nor scaling a column of P
    changes Z.

    Args:
        scores: P `(n, c)` >= 0, float32, float64 or half (solved in float32); values below zero count as zero.
        prior: Class frequencies `(c,)` or per graph `(b, c)`, >= 0, for example from `class_prior`. Classes that no
            counted row has a score for stay at zero; the others share what is left in proportion to their prior.
        weight: How much each row counts `(n,)` >= 0; ones if left out.
        ptr: Boundaries of a batch of graphs `(b + 1,)`, each matched on its own; default: one graph.
        tol: Largest miss |share_c - prior_c| to reach; None is 1e-5 in float32 and 1e-9 in float64.
        max_steps: Sinkhorn steps at most.
        check_every: Steps between looks at the miss (each a host sync on a GPU); 0 never looks and takes `max_steps`.
        on_failure: What to do when the prior is missed by more than `tol` in the end, as it must be where too many rows
            have a score for one class only. "ignore" reads nothing from the device.

    Returns:
        Z `(n, c)`: the nearest matrix to P, in relative entropy, that has these sums. Rows that have no score in a
        class of positive prior are left out and come back scaled to sum one; rows of zeros stay zero. Differentiable,
        any number of times and up to the third derivative exactly, in `scores`, `prior` and `weight`; where the prior
        was missed by far, without the part that runs through v.

    Raises:
        GraphError: Shapes do not fit.
        ConfigError: `tol`, `max_steps` or `check_every` cannot be used; `prior` or `weight`, looked at where they are
            on the CPU, hold negative numbers, infinity or NaN.
        SolveError: The prior was missed and `on_failure="raise"`.

    References:
        Cuturi, "Sinkhorn Distances: Lightspeed Computation of Optimal Transport", NIPS 2013, algorithm 1; for
        pseudo-labels Tai, Bailis and Valiant, "Sinkhorn Label Allocation", ICML 2021. The Newton steps are on its
        dual: Brauer, Clason, Lorenz and Wirth, "A Sinkhorn-Newton method for entropic optimal transport", 2017.
    """
    num_graphs = 1 if ptr is None else len(ptr) - 1
    if scores.ndim != 2 or prior.shape not in ((scores.shape[1],), (num_graphs, scores.shape[1])):
        raise GraphError(
            f"sinkhorn_prior needs scores (n, c) and a prior (c,) or ({num_graphs}, c), one row per graph; got "
            f"{tuple(scores.shape)} and {tuple(prior.shape)}."
        )
    if weight is not None and weight.shape != scores.shape[:1]:
        raise GraphError(f"weight must be of shape ({len(scores)},), one number per row; got {tuple(weight.shape)}.")
    check_frequencies("prior", prior)
    if weight is not None:
        check_frequencies("weight", weight)
    if not (tol is None or tol >= 0) or max_steps < 0 or check_every < 0:
        raise ConfigError(
            "sinkhorn_prior needs tol >= 0 (or None), max_steps >= 0 and check_every >= 0; got "
            f"tol={tol}, max_steps={max_steps}, check_every={check_every}."
        )
    with torch.autocast(scores.device.type, enabled=False):
        scores = scores.float() if scores.dtype in (torch.float16, torch.bfloat16) else scores
        tol = TOL[scores.dtype] if tol is None else tol
        ptr = one_graph(scores) if ptr is None else ptr
        problem = _Problem(scores, prior.to(scores).expand(num_graphs, -1), weight, ptr)
        with torch.no_grad():
            scale = _iterate(problem, tol, max_steps, check_every)
        for _ in range(2):
            scale = problem.newton(scale)
        if on_failure != "ignore":
            with torch.no_grad():
                miss = float(problem.miss(scale).amax())  # sync: was it matched?
            _report(miss, tol, max_steps, on_failure)
        return problem.scaled(scale)


class _Problem:
    """The rows that count, their weights and the shares to reach, per graph."""

    def __init__(self, scores: Tensor, prior: Tensor, weight: Tensor | None, ptr: Tensor) -> None:
        self.ptr = ptr
        positive = scores.relu()
        total = positive.sum(1, keepdim=True)
        self.plain = positive / torch.where(total > 0, total, 1)
        allowed = self.plain * self._per_row(prior.detach() > 0)
        total = allowed.sum(1, keepdim=True)
        allowed = allowed / torch.where(total > 0, total, 1)
        self.is_counted = total.detach() > 0
        weight = torch.ones_like(scores[:, :1]) if weight is None else weight.to(scores)[:, None]
        weight = torch.where(self.is_counted, weight, 0)
        mass = sum_graph(weight, ptr)
        self.weight = weight / self._per_row(torch.where(mass > 0, mass, 1))
        self.has_score = sum_graph(self.weight * allowed, ptr).detach() > 0
        share = torch.where(self.has_score, prior, 0)
        total = share.sum(1, keepdim=True)
        self.share = share / torch.where(total > 0, total, 1)
        self.allowed = allowed

    def rows(self, scale: Tensor) -> Tensor:
        """Return Z of column scales v `(b, c)`; zero rows where a row does not count."""
        z = self.allowed * self._per_row(scale)
        total = z.sum(1, keepdim=True)
        return z / torch.where(total > 0, total, 1)

    def scaled(self, scale: Tensor) -> Tensor:
        """Return Z with the rows that do not count as they came."""
        return torch.where(self.is_counted, self.rows(scale), self.plain)

    def shares(self, z: Tensor) -> Tensor:
        """Return the shares of the classes `(b, c)`."""
        return sum_graph(self.weight * z, self.ptr)

    def miss(self, scale: Tensor) -> Tensor:
        """Return how far the shares are off at most, per graph `(b,)`."""
        return (self.shares(self.rows(scale)) - self.share).abs().amax(1)

    def newton(self, scale: Tensor) -> Tensor:
        """Return v after one Newton step for log v on the convex sum_i w_i log sum_c P_ic v_c - share . log v.

        Its gradient is the miss, its Hessian diag(shares) - Z^T diag(w) Z. That is singular along equal steps, which
        adding shares shares^T takes out, and along steps that no row feels because it never has both classes. The miss
        has no part along these, so a trace of the diagonal, added in float64, leaves the answer as it is.
        """
        z = self.rows(scale)
        shares = self.shares(z)
        miss = shares - self.share
        diagonal = torch.where(self.has_score, shares, 1).double()
        hessian = torch.diag_embed((1 + RIDGE) * diagonal) - self._gram(z) + shares[:, :, None] * shares[:, None, :]
        # Far away a step may lead anywhere; the identity keeps it, and its gradient, finite.
        is_close = (miss.abs() <= NEWTON_GATE * self.share).all(1)[:, None, None]
        hessian = torch.where(is_close, hessian, torch.eye(z.shape[1], dtype=hessian.dtype, device=z.device))
        step = torch.linalg.solve_ex(hessian, miss.double()[:, :, None])[0].to(scale)
        is_usable = is_close & (step.abs() < 1).all(1, keepdim=True)
        return scale * torch.exp(torch.where(is_usable, -step, 0).squeeze(2))

    def _per_row(self, coef: Tensor) -> Tensor:
        """Return the numbers of every row's graph: `(b, c) -> (n, c)`, or `(1, c)` for one graph."""
        return coef if len(coef) == 1 else coef[graph_of_node(self.ptr, len(self.plain))]

    def _gram(self, z: Tensor) -> Tensor:
        """Return Z^T diag(w) Z of every graph `(b, c, c)`."""
        if len(self.ptr) == 2:
            return (z.T @ (self.weight * z))[None]
        columns = [sum_graph(self.weight * z[:, c : c + 1] * z, self.ptr) for c in range(z.shape[1])]
        return torch.stack(columns, 1)


def _iterate(problem: _Problem, tol: float, max_steps: int, check_every: int) -> Tensor:
    """Return column scales v after Sinkhorn's steps, the largest of every graph being 1."""
    goal = max(tol, NEWTON_START) * problem.share
    floor = torch.finfo(goal.dtype).tiny ** 0.5
    scale = torch.where(problem.has_score, 1.0, 0.0).to(problem.share)
    for step in range(max_steps):
        shares = problem.shares(problem.rows(scale))
        is_near = (shares - problem.share).abs() <= goal
        if check_every and step % check_every == 0 and bool(is_near.all()):  # sync: near enough for Newton's steps?
            break
        scale = scale * torch.where(shares > 0, problem.share / torch.where(shares > 0, shares, 1), 0)
        # Where no scaling can match, some of v goes to zero, and rows that have no other class would go with it.
        scale = (scale / scale.amax(1, keepdim=True)).clamp(min=floor)
        scale = torch.where(problem.has_score, scale, 0)
    return scale


def _report(miss: float, tol: float, max_steps: int, on_failure: OnFailure) -> None:
    if on_failure not in ("raise", "warn"):
        raise ConfigError(f"on_failure must be 'raise', 'warn' or 'ignore'; got {on_failure!r}.")
    if miss <= tol:
        return
    message = (
        f"sinkhorn_prior missed a class's share by {miss:.3g}, more than tol={tol:g}, after up to {max_steps} steps. "
        "Allow more max_steps or a larger tol; where too many rows have a score for one class only, no scaling can "
        "match the prior: take another prior, match_prior, or on_failure='warn'."
    )
    if on_failure == "raise":
        raise SolveError(message)
    warnings.warn(message, RuntimeWarning, stacklevel=3)
