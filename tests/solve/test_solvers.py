"""One table of solvers; every test below meets every solver."""

import math
import warnings
from dataclasses import replace

import pytest
import torch

from lspread.errors import ConfigError, GraphError, SolveError
from lspread.graph import normalize_graph
from lspread.labels import PropagationOperator, SpreadOperator, propagate_labels, spread_labels
from lspread.solve import AutoSolver, Chebyshev, ConjugateGradient, Direct, FixedPoint, Status, linear_solve
from tests import reference
from tests.reference import from_dense, seeded
from tests.solve.table import DIRECT, GENERAL, ITERATIVE, NEEDS_SPD, SOLVERS

DTYPES = [torch.float32, torch.float64]
ALPHA = 0.9


def problem(n=20, seed=0, dtype=torch.float64, num_classes=3):
    """Return a graph, targets with signs and sizes of every kind, and the dense float64 solution."""
    w = reference.random_weights(n, seed=seed)
    targets = torch.randn(n, num_classes, generator=seeded(seed + 1), dtype=torch.float64).to(dtype)
    wanted = reference.spread(reference.normalize(w.to(dtype).double()), targets.double(), ALPHA)
    return normalize_graph(from_dense(w.to(dtype))), targets, wanted


def close(dtype):
    return {"rtol": 2e-4, "atol": 2e-5} if dtype == torch.float32 else {"rtol": 1e-9, "atol": 1e-9}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", SOLVERS)
@pytest.mark.parametrize("alpha", [0.0, 0.3, 0.9, 0.99])
def test_agrees_with_dense_float64(name, dtype, alpha):
    graph, targets, _ = problem(40, dtype=dtype)
    s = graph.to_dense().double()
    solution = spread_labels(graph, targets, alpha=alpha, solver=SOLVERS[name]())
    torch.testing.assert_close(solution.value.double(), reference.spread(s, targets.double(), alpha), **close(dtype))
    assert solution.status is Status.CONVERGED
    assert solution.value.dtype == dtype
    assert solution.residual.shape == solution.error_bound.shape == (1, 3)
    right = (1 - alpha) * targets.double()
    true_residual = (right - solution.value.double() + alpha * s @ solution.value.double()).norm(dim=0)
    torch.testing.assert_close(
        solution.residual[0].double(), true_residual, rtol=0.2, atol=1e-6 if dtype == torch.float32 else 1e-13
    )
    assert (solution.residual <= solution.tolerance).all()
    # What is asked for, or what rounding leaves of a residual where that is more.
    asked = right.norm(dim=0) * (1e-5 if dtype == torch.float32 else 1e-12)
    left = 8 * torch.finfo(dtype).eps * solution.value.double().norm(dim=0)
    torch.testing.assert_close(solution.tolerance[0].double(), torch.maximum(asked, left), rtol=1e-4, atol=0)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", SOLVERS)
def test_batch_is_its_loop(name, dtype):
    parts = [problem(n, seed=n, dtype=dtype) for n in (5, 17, 30)]
    blocks = torch.block_diag(*(graph.to_dense() for graph, _, _ in parts))
    ptr = torch.tensor([0, 5, 22, 22, 52])  # the third graph is empty
    together = replace(from_dense(blocks, ptr), is_symmetric=True, normalization="symmetric")
    solver = SOLVERS[name]()
    found = spread_labels(together, torch.cat([targets for _, targets, _ in parts]), alpha=ALPHA, solver=solver)
    assert found.status is Status.CONVERGED
    assert found.residual.shape == (4, 3)
    for (graph, targets, _), start, end, g in zip(parts, (0, 5, 22), (5, 22, 52), (0, 1, 3), strict=True):
        alone = spread_labels(graph, targets, alpha=ALPHA, solver=solver)
        rounding = {"rtol": 1e-5, "atol": 1e-6} if dtype == torch.float32 else {"rtol": 1e-12, "atol": 1e-13}
        torch.testing.assert_close(found.value[start:end], alone.value, **rounding)
        torch.testing.assert_close(found.tolerance[g], alone.tolerance[0])


@pytest.mark.parametrize("name", SOLVERS)
@pytest.mark.parametrize("tiny", [1e-10, 1e-20, 1e-30])
def test_tiny_right_hand_sides_in_float32(name, tiny):
    """Squares of 1e-30 are zero in float32; each column of each graph must be solved all the same."""
    graph, targets, wanted = problem(15, dtype=torch.float32)
    both = torch.block_diag(graph.to_dense(), graph.to_dense())
    batch = replace(from_dense(both, torch.tensor([0, 15, 30])), is_symmetric=True, normalization="symmetric")
    size = torch.tensor([1.0, tiny, 1.0])
    rows = torch.cat([targets * size, targets * tiny])  # a tiny column, and a tiny graph beside a large one
    solution = spread_labels(batch, rows, alpha=ALPHA, solver=SOLVERS[name]())
    scale = torch.cat([size.expand(15, 3), torch.full((15, 3), tiny)])
    found = solution.value.double() / scale.double()
    torch.testing.assert_close(found, torch.cat([wanted, wanted]), **close(torch.float32))
    assert solution.status is Status.CONVERGED


@pytest.mark.parametrize("name", SOLVERS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_zero_column_and_class_without_labels(name, dtype):
    graph, targets, wanted = problem(dtype=dtype)
    targets[:, 1] = 0
    solution = spread_labels(graph, targets, alpha=ALPHA, solver=SOLVERS[name]())
    assert solution.value[:, 1].eq(0).all()
    assert solution.residual[0, 1] == 0
    assert solution.status is Status.CONVERGED
    torch.testing.assert_close(solution.value[:, [0, 2]].double(), wanted[:, [0, 2]], **close(dtype))
    nothing = spread_labels(graph, torch.zeros_like(targets), alpha=ALPHA, solver=SOLVERS[name]())
    assert nothing.value.eq(0).all()
    assert nothing.status is Status.CONVERGED


@pytest.mark.parametrize("name", SOLVERS)
def test_columns_do_not_touch(name):
    graph, targets, _ = problem()
    whole = spread_labels(graph, targets, alpha=ALPHA, solver=SOLVERS[name]()).value
    for c in range(3):
        alone = spread_labels(graph, targets[:, [c]], alpha=ALPHA, solver=SOLVERS[name]()).value
        torch.testing.assert_close(whole[:, [c]], alone, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("name", SOLVERS)
def test_component_without_label_stays_zero(name):
    w = torch.block_diag(reference.random_weights(8), reference.random_weights(6, seed=1), torch.zeros(1, 1).double())
    targets = torch.zeros(15, 2, dtype=torch.float64)
    targets[0, 0] = targets[3, 1] = 1
    found = spread_labels(normalize_graph(from_dense(w)), targets, solver=SOLVERS[name]()).value
    assert found[8:].eq(0).all()
    assert (found[:8] > 0).all()


@pytest.mark.parametrize("name", ITERATIVE)
@pytest.mark.parametrize("dtype", DTYPES)
def test_warm_start(name, dtype):
    graph, targets, wanted = problem(dtype=dtype)
    cold = spread_labels(graph, targets, alpha=ALPHA, solver=SOLVERS[name](check_every=1))
    warm = spread_labels(graph, targets, alpha=ALPHA, solver=SOLVERS[name](check_every=1), initial=cold.value)
    assert warm.num_steps <= 1 < cold.num_steps
    torch.testing.assert_close(warm.value, cold.value, rtol=0, atol=1e-6 if dtype == torch.float32 else 1e-12)
    bad = torch.full_like(targets, 1000)
    before = bad.clone()
    found = spread_labels(graph, targets, alpha=ALPHA, solver=SOLVERS[name](), initial=bad)
    torch.testing.assert_close(found.value.double(), wanted, **close(dtype))
    assert torch.equal(bad, before), "the first guess was written to"


@pytest.mark.parametrize("name", ITERATIVE)
def test_max_steps(name):
    graph, targets, wanted = problem(60)
    solver = SOLVERS[name](max_steps=3)
    message = r"the solve ended as MAX_STEPS after 3 steps: the residual is .* times its tolerance.*on_failure='warn'"
    with pytest.raises(SolveError, match=message):
        spread_labels(graph, targets, alpha=ALPHA, solver=solver)
    with pytest.warns(RuntimeWarning, match=message):
        warned = spread_labels(graph, targets, alpha=ALPHA, solver=solver, on_failure="warn")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ignored = spread_labels(graph, targets, alpha=ALPHA, solver=solver, on_failure="ignore")
    for solution in (warned, ignored):
        assert solution.status is Status.MAX_STEPS
        assert solution.num_steps == 3
        error = (solution.value - wanted).norm(dim=0)
        assert (error <= solution.error_bound[0]).all()
        assert (solution.residual > solution.tolerance).any()


@pytest.mark.parametrize("name", ITERATIVE)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("rtol", [0.3, 1e-2, 1e-4])
@pytest.mark.parametrize("alpha", [0.5, 0.99])
def test_error_bound_holds(name, dtype, rtol, alpha):
    graph, targets, _ = problem(50, dtype=dtype)
    solution = spread_labels(graph, targets, alpha=alpha, solver=SOLVERS[name](rtol=rtol, check_every=1))
    wanted = reference.spread(graph.to_dense().double(), targets.double(), alpha)
    error = (solution.value.double() - wanted).norm(dim=0)
    # The bound is as exact as the residual is measured: in float32, x itself rounds.
    rounding = torch.finfo(dtype).eps * solution.value.double().norm(dim=0) / (1 - alpha)
    assert (error <= solution.error_bound[0].double() + rounding).all()
    torch.testing.assert_close(solution.error_bound, solution.residual / (1 - alpha))
    right = (1 - alpha) * targets.norm(dim=0)
    assert (solution.residual[0] <= rtol * right * 1.001).all()


@pytest.mark.parametrize("name", ITERATIVE)
@pytest.mark.parametrize("size", [1e-6, 1.0, 1e6])
def test_atol_is_in_units_of_the_residual(name, size):
    graph, targets, _ = problem()
    solver = SOLVERS[name](rtol=0.0, atol=1e-4, check_every=1)
    solution = spread_labels(graph, targets * size, alpha=ALPHA, solver=solver)
    assert solution.status is Status.CONVERGED
    assert (solution.tolerance == 1e-4).all()
    assert (solution.residual <= 1e-4).all()
    if size < 1e-5:
        assert solution.num_steps == 0


@pytest.mark.parametrize("name", ITERATIVE)
def test_unreachable_tolerance_is_said(name):
    graph, targets, wanted = problem(dtype=torch.float32)
    solution = spread_labels(
        graph, targets, alpha=ALPHA, solver=SOLVERS[name](rtol=1e-14, max_steps=400), on_failure="ignore"
    )
    assert solution.status in (Status.MAX_STEPS, Status.BREAKDOWN)
    torch.testing.assert_close(solution.value.double(), wanted, **close(torch.float32))


@pytest.mark.parametrize("name", ITERATIVE)
def test_without_looking(name):
    graph, targets, wanted = problem(dtype=torch.float64)
    solution = spread_labels(graph, targets, alpha=ALPHA, solver=SOLVERS[name](check_every=0, max_steps=400))
    # Chebyshev counts its steps beforehand.
    assert 20 < solution.num_steps < 80 if name == "chebyshev" else solution.num_steps == 400
    assert solution.status is Status.CONVERGED
    torch.testing.assert_close(solution.value, wanted, **close(torch.float64))
    looked = spread_labels(graph, targets, alpha=ALPHA, solver=SOLVERS[name](check_every=1))
    torch.testing.assert_close(solution.value, looked.value, rtol=0, atol=1e-11)


@pytest.mark.parametrize("name", SOLVERS)
@pytest.mark.parametrize("where", ["weight", "targets", "initial"])
@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_nonfinite(name, where, value):
    graph, targets, _ = problem()
    initial = torch.zeros_like(targets)
    if where == "weight":
        weight = graph.edge_weight.clone()
        weight[3] = value
        graph = replace(graph, edge_weight=weight)
    elif where == "targets":
        targets[2, 1] = value
    else:
        initial[2, 1] = value
    if name in DIRECT and where == "initial":
        return  # which it does not read
    options = {"alpha": ALPHA, "solver": SOLVERS[name](), "initial": initial}
    solution = spread_labels(graph, targets, on_failure="ignore", **options)
    assert solution.status is Status.NONFINITE
    with pytest.raises(SolveError, match=r"ended as NONFINITE.*Look for NaN or infinity in edge weights, targets"):
        spread_labels(graph, targets, **options)


@pytest.mark.parametrize("name", SOLVERS)
def test_nan_spoils_its_own_graph_only(name):
    graph, targets, wanted = problem(12)
    both = torch.block_diag(graph.to_dense(), graph.to_dense())
    batch = replace(from_dense(both, torch.tensor([0, 12, 24])), is_symmetric=True, normalization="symmetric")
    batch.edge_weight[0] = torch.nan
    solution = spread_labels(
        batch, torch.cat([targets, targets]), alpha=ALPHA, solver=SOLVERS[name](), on_failure="ignore"
    )
    assert solution.status is Status.NONFINITE
    assert solution.residual[0].isnan().all()
    torch.testing.assert_close(solution.value[12:], wanted, **close(torch.float64))
    assert (solution.residual[1] <= solution.tolerance[1]).all()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", GENERAL)
def test_random_walk(name, dtype):
    w = reference.random_weights(25, seed=3).to(dtype)
    targets = torch.randn(25, 2, generator=seeded(4), dtype=dtype)
    graph = normalize_graph(from_dense(w), method="random_walk")
    solution = spread_labels(graph, targets, alpha=ALPHA, solver=SOLVERS[name]())
    wanted = reference.spread(reference.random_walk(w.double()), targets.double(), ALPHA)
    torch.testing.assert_close(solution.value.double(), wanted, **close(dtype))
    assert solution.error_bound.isinf().all(), "no bound is known for a matrix that is not symmetric"


@pytest.mark.parametrize("name", NEEDS_SPD)
def test_refuses_what_is_not_spd(name):
    graph = normalize_graph(from_dense(reference.random_weights(5)), method="random_walk")
    with pytest.raises(SolveError, match=r"needs a symmetric .*; got is_spd=False.*FixedPoint"):
        spread_labels(graph, torch.ones(5, 1, dtype=torch.float64), solver=SOLVERS[name]())


@pytest.mark.parametrize("name", ["conjugate_gradient", "jacobi", "direct", "auto_small", "auto_large"])
def test_breakdown_on_a_matrix_that_only_claims_to_be_positive(name):
    # I - alpha S with S = 3 (ones - I): eigenvalues far below zero, is_spd is a lie.
    s = 3 * (torch.ones(6, 6, dtype=torch.float64) - torch.eye(6, dtype=torch.float64))
    graph = replace(from_dense(s), normalization="symmetric")
    solution = spread_labels(
        graph, torch.ones(6, 1, dtype=torch.float64), alpha=ALPHA, solver=SOLVERS[name](), on_failure="ignore"
    )
    assert solution.status in (Status.BREAKDOWN, Status.NONFINITE)
    with pytest.raises(SolveError, match=r"ended as (BREAKDOWN|NONFINITE)"):
        spread_labels(graph, torch.ones(6, 1, dtype=torch.float64), alpha=ALPHA, solver=SOLVERS[name]())


@pytest.mark.parametrize("name", ["fixed_point", "chebyshev"])
def test_growth_is_said(name):
    s = 3 * (torch.ones(6, 6) - torch.eye(6))
    graph = replace(from_dense(s), normalization="symmetric")
    solver = SOLVERS[name](check_every=20)
    solution = spread_labels(graph, torch.ones(6, 1), alpha=ALPHA, solver=solver, on_failure="ignore")
    assert solution.status is Status.NONFINITE
    assert solution.num_steps < 1000
    blind = spread_labels(graph, torch.ones(6, 1), alpha=ALPHA, solver=Chebyshev(max_steps=10), on_failure="ignore")
    assert blind.status is Status.MAX_STEPS
    assert (blind.residual > 1e6 * blind.tolerance).all()


@pytest.mark.parametrize("name", [name for name in SOLVERS if name != "fixed_point"])
@pytest.mark.parametrize("ridge", [0.0, 0.2, 3.0])
def test_propagation_operator(name, ridge):
    if name == "chebyshev" and ridge == 0:
        weights = from_dense(reference.random_weights(4))
        with pytest.raises(SolveError, match="eigenvalues are known"):
            propagate_labels(weights, torch.eye(4).double(), torch.arange(4) == 0, solver=SOLVERS[name]())
        return
    w = reference.random_weights(20, seed=5)
    is_given = torch.arange(20) % 7 == 0
    targets = torch.rand(20, 3, generator=seeded(6), dtype=torch.float64)
    solution = propagate_labels(from_dense(w), targets, is_given, ridge=ridge, solver=SOLVERS[name]())
    wanted = reference.propagate(w, targets, is_given, ridge)
    torch.testing.assert_close(solution.value, wanted, **close(torch.float64))
    assert solution.error_bound.isinf().all() if ridge == 0 else (solution.error_bound < 1e-8).all()
    loose = propagate_labels(from_dense(w), targets, is_given, ridge=ridge, solver=ConjugateGradient(rtol=0.05))
    assert ((loose.value - wanted).norm(dim=0) <= loose.error_bound[0]).all()


def test_operators_as_dense_matrices():
    w = reference.random_weights(9, seed=7)
    w[2, 2] = w[5, 5] = 0.7  # self-loops
    unit = torch.eye(9, dtype=torch.float64)
    for method, s in (("symmetric", reference.normalize(w)), ("random_walk", reference.random_walk(w))):
        operator = SpreadOperator.from_graph(normalize_graph(from_dense(w), method=method), 0.8)
        torch.testing.assert_close(operator.matmul(unit), unit - 0.8 * s)
        torch.testing.assert_close(operator.transpose().matmul(unit), (unit - 0.8 * s).T)
        torch.testing.assert_close(operator.transpose().transpose().matmul(unit), unit - 0.8 * s)
        torch.testing.assert_close(operator.diagonal(), (unit - 0.8 * s).diagonal())
        torch.testing.assert_close(operator.blocks(9)[0], unit - 0.8 * s)
        torch.testing.assert_close(operator.transpose().blocks(9)[0], (unit - 0.8 * s).T)
        assert operator.is_spd is (method == "symmetric")
    graph, is_free = from_dense(w), torch.arange(9) > 3
    layout = operator.layout
    held = PropagationOperator(layout, graph.edge_weight, w.sum(1), is_free, 0.3, graph.ptr)
    wanted = torch.where(is_free[:, None] & is_free, torch.diag(w.sum(1) + 0.3) - w, 0) + torch.diag(
        (~is_free).double()
    )
    torch.testing.assert_close(held.matmul(unit), wanted)
    torch.testing.assert_close(held.diagonal(), wanted.diagonal())
    torch.testing.assert_close(held.blocks(9)[0], wanted)
    low, high = held.spectrum()
    assert held.eigenvalue_bound() == low <= torch.linalg.eigvalsh(wanted).min()
    assert high >= torch.linalg.eigvalsh(wanted).max()


@pytest.mark.parametrize("alpha", [0.0, 0.5, 0.99, torch.tensor(0.7, dtype=torch.float64)])
def test_spectrum_holds(alpha):
    w = reference.random_weights(12, seed=8)
    operator = SpreadOperator.from_graph(normalize_graph(from_dense(w)), alpha)
    low, high = operator.spectrum()
    values = torch.linalg.eigvalsh(operator.matmul(torch.eye(12, dtype=torch.float64)))
    assert low - 1e-12 <= values.min()
    assert values.max() <= high + 1e-12
    walk = SpreadOperator.from_graph(normalize_graph(from_dense(w), method="random_walk"), alpha)
    assert walk.spectrum() == (0.0, float("inf"))


@pytest.mark.parametrize("kind", ["spread", "transposed", "propagation"])
@pytest.mark.parametrize("sizes", [(4, 4, 4), (5, 0, 2, 1)])
def test_blocks(kind, sizes):
    """Dense blocks of a batch are the blocks of the dense matrix, and go on with the identity."""
    w = torch.block_diag(*(reference.random_weights(n, seed=n) if n > 1 else torch.zeros(n, n).double() for n in sizes))
    ptr = torch.tensor([0, *sizes]).cumsum(0)
    graph = from_dense(w, ptr)
    if kind == "propagation":
        is_free = torch.arange(len(w)) % 3 > 0
        layout = SpreadOperator.from_graph(graph, 0.5).layout
        operator = PropagationOperator(layout, graph.edge_weight, w.sum(1), is_free, 0.3, ptr)
    else:
        operator = SpreadOperator.from_graph(normalize_graph(graph, method="random_walk"), 0.7)
        operator = operator.transpose() if kind == "transposed" else operator
    dense, size = operator.matmul(torch.eye(len(w), dtype=torch.float64)), max(sizes)
    blocks = operator.blocks(size)
    assert blocks.shape == (len(sizes), size, size)
    for g, n in enumerate(sizes):
        wanted = torch.eye(size, dtype=torch.float64)
        wanted[:n, :n] = dense[ptr[g] : ptr[g + 1], ptr[g] : ptr[g + 1]]
        torch.testing.assert_close(blocks[g], wanted)


@pytest.mark.parametrize(
    ("ptr", "num_classes"), [((0, 2, 2, 6), 3), ((0, 2, 4, 6), 3), ((0, 6), 3), ((0, 20011), 3), ((0, 20000), 70)]
)
def test_operator_space(ptr, num_classes):
    """One graph, equal graphs, others; long tensors with few columns are folded."""
    n, sizes = ptr[-1], torch.tensor(ptr).diff().tolist()
    graph, _, _ = problem(6)
    operator = replace(SpreadOperator.from_graph(graph, 0.5), ptr=torch.tensor(ptr))
    operator.num_nodes = n
    x, y = torch.randn(2, n, num_classes, generator=seeded(8), dtype=torch.float64)
    wanted = torch.stack([(a * b).sum(0) for a, b in zip(x.split(sizes), y.split(sizes), strict=True)])
    torch.testing.assert_close(operator.inner(x, y), wanted)
    torch.testing.assert_close(operator.norm(x), operator.inner(x, x).sqrt())
    coef = torch.randn(len(sizes), num_classes, generator=seeded(9), dtype=torch.float64)
    each = torch.cat([row.expand(size, -1) for row, size in zip(coef, sizes, strict=True)])
    assert torch.equal(operator.broadcast(coef).expand(n, -1), each)
    for target in (torch.empty_like(x), torch.empty(num_classes, n, dtype=torch.float64).T):
        operator.add_scaled(x, coef, y, out=target)
        torch.testing.assert_close(target, x + each * y)
    wanted = x + each * y
    operator.add_scaled(x, coef, y, out=y)
    torch.testing.assert_close(y, wanted)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ConjugateGradient(rtol=-1.0), r"ConjugateGradient needs rtol >= 0.*got rtol=-1.0"),
        (lambda: ConjugateGradient(rtol=float("nan")), r"got rtol=nan"),
        (lambda: ConjugateGradient(max_steps=0), r"max_steps >= 1.*max_steps=0"),
        (lambda: ConjugateGradient(check_every=-1), r"check_every >= 0.*check_every=-1"),
        (lambda: ConjugateGradient(preconditioner="jacobbi"), r"'none' or 'jacobi'; got 'jacobbi'"),
        (lambda: FixedPoint(atol=-1.0), r"FixedPoint needs.*atol=-1.0"),
        (lambda: Chebyshev(max_steps=0), r"Chebyshev needs.*max_steps=0"),
        (lambda: Chebyshev(check_every=-1), r"Chebyshev needs.*check_every=-1"),
        (lambda: AutoSolver(max_direct_nodes=-1), r"AutoSolver needs max_direct_nodes >= 0.*max_direct_nodes=-1"),
        (lambda: AutoSolver(max_direct_entries=-1), r"AutoSolver needs.*max_direct_entries=-1"),
        (lambda: Direct(max_nodes=0), r"Direct needs.*max_nodes=0"),
        (lambda: Direct(rtol=-1.0), r"Direct needs.*rtol=-1.0"),
    ],
)
def test_options(make, message):
    with pytest.raises(ConfigError, match=message):
        make()


def test_direct_refuses_large_graphs():
    graph, targets, _ = problem(20)
    with pytest.raises(ConfigError, match=r"at most max_nodes=19 nodes; got one of 20"):
        spread_labels(graph, targets, solver=Direct(max_nodes=19))
    halves = torch.block_diag(reference.random_weights(10), reference.random_weights(10))
    batch = normalize_graph(from_dense(halves, torch.tensor([0, 10, 20])))
    spread_labels(batch, targets, solver=Direct(max_nodes=10))


def test_linear_solve_errors():
    graph, targets, _ = problem()
    operator = SpreadOperator.from_graph(graph, ALPHA)
    for name, rhs, initial in (
        ("rhs", targets[:5], None),
        ("rhs", targets.float(), None),
        ("rhs", targets[:, 0], None),
        ("initial", targets, targets.float()),
        ("initial", targets, targets[:7]),
    ):
        with pytest.raises(GraphError, match=rf"{name} must be of shape \(20, c\), torch.float64 on cpu"):
            linear_solve(operator, rhs, solver=ConjugateGradient(), initial=initial)
    with pytest.raises(ConfigError, match=r"on_failure must be 'raise', 'warn' or 'ignore'; got 'shrug'"):
        linear_solve(operator, targets, solver=ConjugateGradient(), on_failure="shrug")


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("rtol", [1e-1, 1e-3, 1e-5])
@pytest.mark.parametrize("alpha", [0.0, 0.5, 0.9, 0.99, 0.999])
def test_chebyshev_counts_its_steps(dtype, rtol, alpha):
    """The bound is sharp on the worst right-hand side: eigenvectors at both ends of the spectrum."""
    # An even ring: S has the eigenvalues 1 and -1.
    n = 10
    w = torch.zeros(n, n, dtype=dtype)
    w[torch.arange(n), (torch.arange(n) + 1) % n] = 1
    graph = normalize_graph(from_dense(w + w.T))
    sign = 1 - 2 * (torch.arange(n) % 2).to(dtype)
    targets = torch.stack([torch.ones(n, dtype=dtype), sign, torch.randn(n, generator=seeded(3)).to(dtype)], 1)
    found = spread_labels(graph, targets, alpha=alpha, solver=Chebyshev(rtol=rtol), on_failure="ignore")
    steps = found.num_steps
    bound = 1.0 if alpha == 0 else math.cosh(steps * math.acosh(1 / alpha))
    relative = found.residual[0].double() / ((1 - alpha) * targets.double()).norm(dim=0)
    # In float32 x rounds, and it is up to 1 / (1 - alpha) times b: nothing can reach 1e-5 with alpha = 0.999.
    assert found.status is Status.CONVERGED or (dtype, rtol, alpha) == (torch.float32, 1e-5, 0.999)
    assert (relative <= 2 * rtol).all() or alpha == 0.999
    if alpha == 0:
        assert steps <= 2
    elif dtype == torch.float64:
        assert (relative <= 1.0000001 / bound).all()
        assert relative[0].item() == pytest.approx(1 / bound, rel=1e-6), "no smaller number of steps is safe"
        assert 2 / rtol <= bound <= 2 / rtol * 4


def test_chebyshev_reads_bounds_only_where_that_is_free():
    graph, targets, _ = problem(20)
    number = spread_labels(graph, targets, alpha=0.9, solver=Chebyshev())
    tensor = spread_labels(graph, targets, alpha=torch.tensor(0.9, dtype=torch.float64), solver=Chebyshev())
    assert torch.equal(number.value, tensor.value)
    assert number.num_steps == tensor.num_steps < 100


def test_chebyshev_first_guess():
    """Where nobody looks, the number of steps holds for any guess; where somebody does, a good guess saves them."""
    graph, targets, wanted = problem(20)
    near = wanted + 1e-3 * torch.randn(20, 3, generator=seeded(5), dtype=torch.float64)
    far = torch.full_like(targets, 1e9)
    for initial in (near, far):
        found = spread_labels(graph, targets, alpha=ALPHA, solver=Chebyshev(rtol=1e-6), initial=initial)
        assert found.status is Status.CONVERGED
    looked = [
        spread_labels(graph, targets, alpha=ALPHA, solver=Chebyshev(rtol=1e-6, check_every=1), initial=initial)
        for initial in (None, near)
    ]
    assert looked[1].num_steps < looked[0].num_steps


def test_chebyshev_needs_bounds():
    w = reference.random_weights(6)
    with pytest.raises(SolveError, match=r"Chebyshev needs .* between two positive numbers; got is_spd=True, spectrum"):
        propagate_labels(from_dense(w), torch.ones(6, 1, dtype=torch.float64), torch.arange(6) < 2, solver=Chebyshev())


def test_auto_solver_rule():
    def chosen(solver, sizes, alpha=0.5, method="symmetric"):
        w = torch.block_diag(*(reference.random_weights(n) for n in sizes))
        graph = normalize_graph(from_dense(w, torch.tensor([0, *sizes]).cumsum(0)), method=method)
        return solver.choose(SpreadOperator.from_graph(graph, alpha))

    auto = AutoSolver(max_direct_nodes=10, max_direct_entries=300)
    assert isinstance(chosen(auto, [10]), Direct)
    assert isinstance(chosen(auto, [11]), ConjugateGradient)
    assert isinstance(chosen(auto, [10, 10, 10]), Direct)
    assert isinstance(chosen(auto, [10, 10, 10, 10]), ConjugateGradient), "400 entries"
    assert isinstance(chosen(auto, [10, 4, 4, 4]), ConjugateGradient), "padded to the largest"
    assert isinstance(chosen(auto, [3, 3, 11]), ConjugateGradient), "small on average only"
    assert isinstance(chosen(auto, [10], torch.tensor(0.5)), Direct)
    assert isinstance(chosen(auto, [10], method="random_walk"), Direct)
    assert isinstance(chosen(auto, [11], method="random_walk"), FixedPoint)
    assert isinstance(chosen(AutoSolver(), [1000]), Direct)
    assert isinstance(chosen(AutoSolver(), [1030]), ConjugateGradient)
    w = reference.random_weights(6)
    layout = SpreadOperator.from_graph(from_dense(w), 0.5).layout
    parts = (layout, from_dense(w).edge_weight, w.sum(1), torch.ones(6, dtype=torch.bool))
    for ridge, kind in ((0.0, ConjugateGradient), (0.1, Direct)):  # without a ridge the matrix may be singular
        assert isinstance(auto.choose(PropagationOperator(*parts, ridge, torch.tensor([0, 6]))), kind)


def test_direct_factorizes_once(monkeypatch):
    """The backward pass, its own derivative and tangents use the factor of the forward pass."""
    count = []
    factorize = torch.linalg.cholesky_ex
    monkeypatch.setattr(torch.linalg, "cholesky_ex", lambda a: count.append(a.shape) or factorize(a))
    graph, targets, _ = problem(6)
    batch = replace(from_dense(torch.block_diag(graph.to_dense(), graph.to_dense()), torch.tensor([0, 6, 12])))
    batch = replace(batch, is_symmetric=True, normalization="symmetric")
    targets = torch.cat([targets, targets]).requires_grad_()
    for solver in (Direct(), AutoSolver()):
        count.clear()
        value = spread_labels(batch, targets, alpha=ALPHA, solver=solver).value
        (grad,) = torch.autograd.grad(value.pow(3).sum(), targets, create_graph=True)
        torch.autograd.grad(grad.pow(2).sum(), targets)
        assert count == [(2, 6, 6)], "one batch, once"
