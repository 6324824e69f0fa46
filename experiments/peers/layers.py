"""Forward and backward through label spreading: embeddings in, loss out, gradient to the embeddings.

All but GLL compute one function: k nearest neighbors, self-tuning weights, mean of both directions, symmetric
normalization, (I - alpha S) F = (1 - alpha) Y, and the squared distance of F to the true classes as loss.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from scipy.sparse import coo_array, csc_array, eye_array
from scipy.sparse.linalg import splu, spsolve
from torch import Tensor

NUM_UNROLLED = 50


def neighbors_dense(x: Tensor, k: int) -> Tensor:
    """Return the k nearest others of every row of x `(b, n, d)`, numbered over the whole batch `(b n, k)`."""
    distance = torch.cdist(x, x)
    distance.diagonal(dim1=-2, dim2=-1).fill_(torch.inf)
    index = distance.topk(k, largest=False).indices
    return (index + torch.arange(len(x)).view(-1, 1, 1) * x.shape[1]).flatten(0, 1)


def neighbors_sklearn(x: Tensor, k: int) -> Tensor:
    from sklearn.neighbors import NearestNeighbors

    rows = x.flatten(0, 1).numpy()
    return torch.from_numpy(NearestNeighbors(n_neighbors=k, algorithm="brute", n_jobs=-1).fit(rows).kneighbors()[1])


def half_edges(x: Tensor, index: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return rows, columns and halved weights of the edges found from one end; with their mirror image they are W."""
    flat = x.flatten(0, 1)
    column = index.flatten()
    row = torch.arange(len(flat)).repeat_interleave(index.shape[1])
    squared = (flat.index_select(0, row) - flat.index_select(0, column)).square().sum(-1)
    width = squared.view(index.shape).amax(1).sqrt()
    return row, column, torch.exp(-squared / (width[row] * width[column])) / 2


def dense_graph(x: Tensor, index: Tensor) -> Tensor:
    """Return S `(b, n, n)`."""
    num_graphs, size, _ = x.shape
    row, column, weight = half_edges(x, index)
    half = weight.new_zeros(num_graphs * size * size).index_add(0, row * size + column % size, weight)
    half = half.view(num_graphs, size, size)
    w = half + half.mT
    scale = w.sum(-1).rsqrt()
    return scale.unsqueeze(-1) * w * scale.unsqueeze(-2)


def dense_solve(x: Tensor, targets: Tensor, *, k: int, alpha: float) -> Tensor:
    s = dense_graph(x, neighbors_dense(x.detach(), k))
    return torch.linalg.solve(torch.eye(x.shape[1], dtype=x.dtype) - alpha * s, (1 - alpha) * targets)


def dense_unrolled(x: Tensor, targets: Tensor, *, k: int, alpha: float) -> Tensor:
    s = dense_graph(x, neighbors_dense(x.detach(), k))
    scores = targets
    for _ in range(NUM_UNROLLED):
        scores = alpha * (s @ scores) + (1 - alpha) * targets
    return scores


class _SparseLU(torch.autograd.Function):
    """(I - alpha S)^-1 rhs by SuperLU in float64 on the CPU, and its adjoint: one more solve."""

    @staticmethod
    def forward(
        ctx: Any, value: Tensor, row: Tensor, column: Tensor, alpha: float, rhs: Tensor, factor_once: bool
    ) -> Tensor:
        size = len(rhs)
        s = csc_array((value.double().cpu().numpy(), (row.cpu().numpy(), column.cpu().numpy())), shape=(size, size))
        a = csc_array(eye_array(size, format="csc") - alpha * s)

        def factor() -> Any:
            if factor_once:
                return splu(a, permc_spec="MMD_AT_PLUS_A", diag_pivot_thresh=0.0, options={"SymmetricMode": True})
            return splu(a)

        ctx.factor = factor
        ctx.factored = factor()
        scores = ctx.factored.solve(rhs.double().cpu().numpy())
        if not factor_once:
            ctx.factored = None
        ctx.scores, ctx.edges, ctx.alpha = scores, (row, column), alpha
        return torch.from_numpy(scores).to(value)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        factored = ctx.factor() if ctx.factored is None else ctx.factored
        adjoint = torch.from_numpy(factored.solve(grad.double().cpu().numpy()))
        row, column = ctx.edges
        scores = torch.from_numpy(ctx.scores)
        products = (adjoint.index_select(0, row) * scores.index_select(0, column)).sum(1)
        return (ctx.alpha * products).to(grad), None, None, None, None, None


def sparse_lu(x: Tensor, targets: Tensor, *, k: int, alpha: float, factor_once: bool) -> Tensor:
    row, column, half = half_edges(x, neighbors_sklearn(x.detach(), k))
    rows, columns, weight = torch.cat([row, column]), torch.cat([column, row]), half.repeat(2)
    scale = weight.new_zeros(len(row) // k).index_add(0, rows, weight).rsqrt()
    value = weight * scale[rows] * scale[columns]
    rhs = (1 - alpha) * targets.flatten(0, 1)
    return _SparseLU.apply(value, rows, columns, alpha, rhs, factor_once).view(targets.shape)


class _Laplace(torch.autograd.Function):
    """Laplace learning with given labels held, and its adjoint, by SuperLU in float64: factored in both directions."""

    @staticmethod
    def forward(
        ctx: Any, weight: Tensor, row: Tensor, column: Tensor, given: Tensor, is_given: Tensor, ridge: float
    ) -> Tensor:
        size, held = len(given), is_given.numpy()
        values = weight.detach().numpy()
        w = csc_array((values, (row.numpy(), column.numpy())), shape=(size, size))
        degree = np.bincount(row.numpy(), values, size)
        a = coo_array((degree + ridge, (np.arange(size), np.arange(size))), shape=(size, size)).tocsc() - w
        known = given.double().numpy()
        ctx.free = np.flatnonzero(~held)
        ctx.matrix = a[ctx.free][:, ctx.free].tocsc()
        scores = known.copy()
        scores[ctx.free] = spsolve(ctx.matrix, (w @ known)[ctx.free])
        ctx.scores, ctx.edges = torch.from_numpy(scores), (row, column)
        return ctx.scores.clone()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        adjoint = torch.zeros_like(ctx.scores)
        adjoint[ctx.free] = torch.from_numpy(spsolve(ctx.matrix, grad.numpy()[ctx.free]))
        row, column = ctx.edges
        # Row i of the system says sum_j w_ij (u_i - u_j) = 0.
        return -(adjoint[row] * (ctx.scores[row] - ctx.scores[column])).sum(1), None, None, None, None, None


def gll(x: Tensor, targets: Tensor, *, k: int, alpha: float, num_neighbors: int = 25, ridge: float = 1e-6) -> Tensor:
    """GLL as it stands: Annoy's neighbors at every step, exp(-4 d^2 / (s_i s_j)), the larger of both directions,
    Laplace learning with labels held, everything in float64 on the CPU."""
    from graphlearning.weightmatrix import knnsearch

    flat, given = x[0].double(), targets[0]
    index = torch.from_numpy(knnsearch(flat.detach().numpy(), num_neighbors, method="annoy")[0].astype(np.int64))
    size, count = index.shape
    row, column = torch.arange(size).repeat_interleave(count), index.flatten()
    key = torch.cat([row * size + column, column * size + row]).unique()
    row, column = key // size, key % size
    row, column = row[row != column], column[row != column]
    # Nearest first, so the last is the farthest; index_select, because the backward pass of indexing is slow.
    width = (flat - flat.index_select(0, index[:, -1])).square().sum(-1).sqrt()
    squared = (flat.index_select(0, row) - flat.index_select(0, column)).square().sum(-1)
    weight = torch.exp(-4 * squared / (width.index_select(0, row) * width.index_select(0, column)))
    return _Laplace.apply(weight, row, column, given, given.sum(1) > 0, ridge)[None].to(x)


def prepare(
    arrays: dict[str, np.ndarray], *, layer: str, k: int, alpha: float, dtype: str = "float32", **options: Any
) -> Callable[[int], dict[str, Any]]:
    """Return the timed call: forward, loss, backward."""
    x = torch.from_numpy(arrays["x"]).to(getattr(torch, dtype)).requires_grad_()
    label, true = torch.from_numpy(arrays["label"]), torch.from_numpy(arrays["true"])
    num_classes = int(true.max()) + 1
    wanted = torch.nn.functional.one_hot(true, num_classes).to(x.dtype)

    if layer == "lspread":
        from lspread import LabelSpreading

        # One graph comes as (n, d), several as (b, n, d).
        own = LabelSpreading(num_classes, k=k, alpha=alpha, **options)
        squeeze = len(x) == 1

        def forward(x: Tensor) -> Tensor:
            return own(x[0], label[0])[None] if squeeze else own(x, label)

    else:
        peers = {"dense_solve": dense_solve, "dense_unrolled": dense_unrolled, "sparse_lu": sparse_lu, "gll": gll}
        function = peers[layer]
        given = wanted * (label >= 0).unsqueeze(-1)

        def forward(x: Tensor) -> Tensor:
            return function(x, given, k=k, alpha=alpha, **options)

    def run(turn: int) -> dict[str, Any]:
        x.grad = None
        loss = (forward(x) - wanted).square().sum()
        loss.backward()
        assert x.grad is not None
        found: dict[str, Any] = {"loss": float(loss.detach())}
        # Another function has another gradient.
        return found if layer == "gll" else found | {"gradient": x.grad.numpy()}

    return run
