import warnings
from dataclasses import replace

import numpy as np
import pytest
import sklearn.semi_supervised
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from sklearn.exceptions import ConvergenceWarning

from lspread.errors import ConfigError, GraphError, SolveError
from lspread.graph import Graph, build_graph, find_neighbors, normalize_graph, reordering
from lspread.labels import label_matrix, poisson_labels, propagate_labels, spread_labels
from lspread.solve import ConjugateGradient, Direct, Status
from tests import reference
from tests.reference import from_dense, seeded


def moons(n=60, dtype=torch.float64):
    """Two arcs, three labels each, and their graph."""
    angle = torch.linspace(0, torch.pi, n // 2, dtype=torch.float64)
    upper = torch.stack([angle.cos(), angle.sin()], 1)
    lower = torch.stack([1 - angle.cos(), 0.5 - angle.sin()], 1)
    z = torch.cat([upper, lower]) + 0.05 * torch.randn(n, 2, generator=seeded(0), dtype=torch.float64)
    z = z.to(dtype)
    label = torch.full((n,), -1)
    label[[0, 10, 25]], label[[n // 2, n // 2 + 9, n - 1]] = 0, 1
    return build_graph(z, find_neighbors(z, 8)), label, z


# Second opinions


@pytest.mark.parametrize("alpha", [0.2, 0.9, 0.99])
def test_whole_path_against_dense_float64(alpha):
    graph, label, z = moons()
    index, distance = reference.knn(z, 8)
    w = reference.symmetrize(reference.scatter(reference.self_tuning(distance, index), index), "mean")
    wanted = reference.spread(reference.normalize(w), reference.one_hot(label, 2), alpha)
    found = spread_labels(normalize_graph(graph), label_matrix(label, 2, dtype=torch.float64), alpha=alpha)
    torch.testing.assert_close(found.value, wanted, rtol=0, atol=1e-9)


@pytest.mark.parametrize("alpha", [0.2, 0.9])
def test_is_the_fixed_point_of_scikit_learn(alpha):
    """Theirs is our F, rows normalized: same W (their diagonal is zeroed, ours has none), same factor 1 - alpha."""
    graph, label, z = moons()
    w = graph.to_dense().numpy()
    theirs = sklearn.semi_supervised.LabelSpreading(kernel=lambda a, b: w, alpha=alpha, max_iter=600, tol=0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # 0.9^600 is 3e-28; they never call that converged
        theirs.fit(z.numpy(), label.numpy())
    ours = spread_labels(normalize_graph(graph), label_matrix(label, 2, dtype=torch.float64), alpha=alpha).value
    np.testing.assert_allclose((ours / ours.sum(1, keepdim=True)).numpy(), theirs.label_distributions_, atol=1e-9)


def test_propagation_is_the_fixed_point_of_scikit_learn():
    graph, label, z = moons()
    w = graph.to_dense().numpy()
    theirs = sklearn.semi_supervised.LabelPropagation(kernel=lambda a, b: w, max_iter=20_000, tol=1e-13)
    theirs.fit(z.numpy(), label.numpy())
    ours = propagate_labels(graph, label_matrix(label, 2, dtype=torch.float64), label != -1).value
    np.testing.assert_allclose(ours.numpy(), theirs.label_distributions_, atol=1e-9)


@pytest.mark.parametrize("ridge", [0.0, 0.5])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_propagation_against_dense_float64(ridge, dtype):
    graph, label, _ = moons(dtype=dtype)
    wanted = reference.propagate(graph.to_dense().double(), reference.one_hot(label, 2), label != -1, ridge)
    found = propagate_labels(graph, label_matrix(label, 2, dtype=dtype), label != -1, ridge=ridge)
    atol = 1e-9 if dtype == torch.float64 else 2e-4
    torch.testing.assert_close(found.value.double(), wanted, rtol=0, atol=atol)
    assert torch.equal(found.value[label == 0], torch.tensor([[1.0, 0.0]], dtype=dtype).expand(3, 2))
    if ridge == 0:
        torch.testing.assert_close(found.value.sum(1), torch.ones(60, dtype=dtype), rtol=0, atol=10 * atol)


# Laws


@st.composite
def problems(draw):
    """Symmetric weights with any zeros, even whole rows; targets of any sign; alpha."""
    n = draw(st.integers(1, 9))
    weight = st.sampled_from([0.0, 0.0, 1e-3, 0.5, 1.0, 30.0])
    upper = np.triu(draw(arrays(np.float64, (n, n), elements=weight)), 1)
    targets = draw(arrays(np.float64, (n, 2), elements=st.floats(-4, 4, width=16)))
    alpha = draw(st.sampled_from([0.0, 0.1, 0.5, 0.9, 0.99]))
    return torch.tensor(upper + upper.T), torch.tensor(targets), alpha


def close(found, wanted):
    torch.testing.assert_close(found, wanted, rtol=1e-8, atol=1e-9)


@given(problems())
def test_law_closed_form(problem):
    w, targets, alpha = problem
    solution = spread_labels(normalize_graph(from_dense(w)), targets, alpha=alpha)
    wanted = reference.spread(reference.normalize(w), targets, alpha)
    close(solution.value, wanted)
    assert ((solution.value - wanted).norm(dim=0) <= solution.error_bound[0] + 1e-13 * targets.norm()).all()
    assert (solution.value.norm(dim=0) <= targets.norm(dim=0) + 1e-9).all(), "F is never larger than Y"


@given(problems(), st.randoms(use_true_random=False))
def test_law_relabeling_nodes_permutes_scores(problem, random):
    w, targets, alpha = problem
    order = torch.tensor(random.sample(range(len(w)), len(w)))
    plain = spread_labels(normalize_graph(from_dense(w)), targets, alpha=alpha).value
    moved = spread_labels(normalize_graph(from_dense(w[order][:, order])), targets[order], alpha=alpha).value
    close(moved, plain[order])


@given(problems(), problems(), problems())
def test_law_a_batch_equals_its_loop(first, second, third):
    alpha = first[2]
    parts = (first, second, third)
    ptr = torch.tensor([0, *(len(w) for w, _, _ in parts)]).cumsum(0)
    graph = normalize_graph(from_dense(torch.block_diag(*(w for w, _, _ in parts)), ptr))
    together = spread_labels(graph, torch.cat([targets for _, targets, _ in parts]), alpha=alpha).value
    alone = [spread_labels(normalize_graph(from_dense(w)), targets, alpha=alpha).value for w, targets, _ in parts]
    close(together, torch.cat(alone))


@given(problems(), st.floats(-5, 5), st.floats(-5, 5))
def test_law_linear_in_targets(problem, a, b):
    w, targets, alpha = problem
    graph = normalize_graph(from_dense(w))
    other = targets.flip(1).roll(1, 0)
    mixed = spread_labels(graph, a * targets + b * other, alpha=alpha).value
    apart = [spread_labels(graph, y, alpha=alpha).value for y in (targets, other)]
    close(mixed, a * apart[0] + b * apart[1])


@given(problems())
def test_law_alpha_zero_returns_targets(problem):
    w, targets, _ = problem
    close(spread_labels(normalize_graph(from_dense(w)), targets, alpha=0).value, targets)


@given(problems(), st.sampled_from([1e-100, 1e-8, 7.0, 1e80]))
def test_law_scaling_weights_changes_nothing(problem, scale):
    w, targets, alpha = problem
    plain = spread_labels(normalize_graph(from_dense(w)), targets, alpha=alpha).value
    close(spread_labels(normalize_graph(from_dense(w * scale)), targets, alpha=alpha).value, plain)


@pytest.mark.parametrize("preconditioner", ["none", "jacobi"])
@given(problems(), st.sampled_from([1e-100, 1e-8, 7.0, 1e80]))
def test_law_scaling_weights_changes_no_propagation(preconditioner, problem, scale):
    w, targets, _ = problem
    solver = ConjugateGradient(preconditioner=preconditioner)
    is_given = torch.arange(len(w)) % 3 == 0
    plain = propagate_labels(from_dense(w), targets, is_given, solver=solver).value
    close(propagate_labels(from_dense(w * scale), targets, is_given, solver=solver).value, plain)


@pytest.mark.parametrize("scale", [1.0, 1e-6, 1e-12])
def test_propagation_over_small_and_uneven_weights(scale):
    """Of every node by itself, by up to four orders of magnitude; given rows must not decide how exact others are."""
    graph, label, _ = moons(1500, torch.float32)
    size = scale * 10 ** (-2 * torch.rand(1500, generator=seeded(1)))
    row, column = graph.edge_index
    uneven = replace(graph, edge_weight=graph.edge_weight * size[row] * size[column])
    targets = label_matrix(label, 2)
    found = propagate_labels(uneven, targets, label != -1)
    assert found.status is Status.CONVERGED
    w = uneven.to(dtype=torch.float64).to_dense()
    step, is_free = w / w.sum(1, keepdim=True), label == -1
    exact = targets.double()
    exact[is_free] = torch.linalg.solve(
        torch.eye(int(is_free.sum()), dtype=torch.float64) - step[is_free][:, is_free], step[is_free] @ exact
    )
    torch.testing.assert_close(found.value.double(), exact, rtol=0, atol=2e-3)


@pytest.mark.parametrize("tie", [1.0, 1e-4, 1e-6, 1e-8])
def test_gradient_of_propagation_beside_weakly_tied_nodes(tie):
    """In the backward solve they have by far the largest multipliers, beside which the others must not be lost."""
    w = reference.random_weights(40)
    w[38:] = w[:, 38:] = 0
    w[0, 38] = w[38, 0] = w[1, 39] = w[39, 1] = tie
    is_given = torch.arange(40) < 2
    targets = reference.one_hot(torch.where(is_given, torch.arange(40) % 2, -1), 2)

    def gradients(dtype, **options):
        graph = from_dense(w).to(dtype=dtype)
        leaves = [graph.edge_weight.clone().requires_grad_(), targets.to(dtype).requires_grad_()]
        solved = propagate_labels(replace(graph, edge_weight=leaves[0]), leaves[1], is_given, **options)
        of_weight, of_target = torch.autograd.grad(solved.value[:, 0].sum(), leaves)
        return of_weight[(graph.edge_index < 38).all(0)], of_target  # of the ties themselves: 0 times 1 / tie

    found, exact = gradients(torch.float32), gradients(torch.float64, solver=Direct())
    for single, double in zip(found, exact, strict=True):
        torch.testing.assert_close(single.double(), double, rtol=1e-3, atol=1e-3)


@given(problems())
def test_law_spectrum(problem):
    eigenvalues = torch.linalg.eigvalsh(normalize_graph(from_dense(problem[0])).to_dense())
    assert eigenvalues.abs().max() <= 1 + 1e-12


@given(problems(), st.data())
def test_law_propagation_is_harmonic_and_bounded(problem, data):
    w, targets, _ = problem
    is_given = torch.tensor(data.draw(st.lists(st.booleans(), min_size=len(w), max_size=len(w))), dtype=torch.bool)
    found = propagate_labels(from_dense(w), targets, is_given).value
    assert torch.equal(found[is_given], targets[is_given])
    reach = (torch.eye(len(w)) + (w > 0)).matrix_power(len(w)) > 0
    is_reached = (reach & is_given).any(1)
    assert found[~is_reached].eq(0).all()
    free = is_reached & ~is_given
    mean = (w @ found / w.sum(1, keepdim=True).clamp(min=1e-300))[free]
    torch.testing.assert_close(found[free], mean, rtol=0, atol=1e-7)
    if free.any():
        assert (found[free] <= targets[is_given].amax(0) + 1e-7).all()
        assert (found[free] >= targets[is_given].amin(0) - 1e-7).all()


# Ugly inputs


def two_components():
    w = torch.block_diag(reference.random_weights(9), reference.random_weights(7, seed=1), torch.zeros(1, 1).double())
    label = torch.full((17,), -1)
    label[0], label[4] = 0, 1
    return from_dense(w), label


def test_a_ridge_of_zero_bounds_nothing():
    graph, label, _ = moons()
    targets = label_matrix(label, 3, dtype=torch.float64)
    for ridge in (0.0, torch.tensor(0.0, dtype=torch.float64)):
        bound = propagate_labels(graph, targets, label != -1, ridge=ridge).error_bound
        assert torch.isinf(bound).all(), "also of the class without labels, whose residual is zero"


def test_component_without_label_has_zero_rows():
    graph, label = two_components()
    targets = label_matrix(label, 3, dtype=torch.float64)
    for found in (
        spread_labels(normalize_graph(graph), targets).value,
        propagate_labels(graph, targets, label != -1).value,
        propagate_labels(graph, targets, label != -1, ridge=0.1, solver=Direct()).value,
    ):
        assert found[9:].eq(0).all()
        assert found[:, 2].eq(0).all(), "a class without labels"
        assert (found[:9].sum(1) > 0).all()


def test_first_guess_leaves_nothing_where_no_label_reaches():
    """Scores of the last epoch start the next solve; a node that lost its last path to a label must fall to zero."""
    graph, label = two_components()
    targets = label_matrix(label, 3, dtype=torch.float64)
    old = torch.rand(17, 3, generator=seeded(2), dtype=torch.float64)
    before = old.clone()
    for found, wanted in (
        (spread_labels(normalize_graph(graph), targets, initial=old), spread_labels(normalize_graph(graph), targets)),
        (
            propagate_labels(graph, targets, label != -1, initial=old),
            propagate_labels(graph, targets, label != -1),
        ),
    ):
        assert found.value[9:].eq(0).all()
        close(found.value, wanted.value)
        assert found.status is Status.CONVERGED
    assert torch.equal(old, before)
    assert not old.requires_grad


def test_every_solver_propagates_beside_a_component_without_given_node():
    """D - W is singular there; the nodes are held at zero."""
    chain = torch.diag(torch.ones(3, dtype=torch.float64), 1)
    blind = from_dense(torch.block_diag(chain + chain.T, chain + chain.T))  # whole numbers: the pivot is exactly zero
    is_given = torch.arange(8) == 0
    targets = reference.one_hot(torch.where(is_given, 0, -1), 2)
    for solver in (Direct(), ConjugateGradient(), ConjugateGradient(preconditioner="jacobi")):
        found = propagate_labels(blind, targets, is_given, solver=solver)
        assert found.status is Status.CONVERGED
        close(found.value, torch.tensor([[1.0, 0.0]] * 4 + [[0.0, 0.0]] * 4).double())
    held = propagate_labels(blind, targets, is_given, ridge=0.1, solver=Direct()).value
    close(held, propagate_labels(blind, targets, is_given, ridge=0.1).value)
    for seed in range(5):
        graph = from_dense(0.3 * torch.block_diag(reference.random_weights(5, seed=seed), chain + chain.T))
        is_given = torch.arange(9) == 1
        rows = reference.one_hot(torch.where(is_given, 0, -1), 2)
        found = propagate_labels(graph, rows, is_given, solver=Direct())
        close(found.value, propagate_labels(graph, rows, is_given).value)
        assert found.value[5:].eq(0).all()


def test_all_given_none_given_and_one_node():
    graph, _ = two_components()
    targets = torch.rand(17, 2, generator=seeded(3), dtype=torch.float64)
    everyone = torch.ones(17, dtype=torch.bool)
    assert torch.equal(propagate_labels(graph, targets, everyone).value, targets)
    assert propagate_labels(graph, targets, ~everyone).value.eq(0).all()
    alone = Graph.from_edges(torch.zeros(2, 0, dtype=torch.int64), torch.zeros(0), num_nodes=1)
    one = torch.ones(1, 1)
    torch.testing.assert_close(spread_labels(normalize_graph(alone), one, alpha=0.75).value, one * 0.25)


def test_only_rows_of_given_nodes_are_read():
    graph, label = two_components()
    targets = label_matrix(label, 2, dtype=torch.float64)
    noisy = torch.where((label != -1)[:, None], targets, torch.nan)
    found = propagate_labels(graph, noisy, label != -1).value
    close(found, propagate_labels(graph, targets, label != -1).value)


def test_free_slots_change_nothing():
    _, label, z = moons()
    targets = label_matrix(label, 2, dtype=torch.float64)
    fixed = build_graph(z, find_neighbors(z, 8), coalesce=False)
    graph = build_graph(z, find_neighbors(z, 8))
    close(spread_labels(normalize_graph(fixed), targets).value, spread_labels(normalize_graph(graph), targets).value)
    given = label != -1
    close(propagate_labels(fixed, targets, given).value, propagate_labels(graph, targets, given).value)


def test_labels_follow_the_moons():
    graph, label, _ = moons()
    found = spread_labels(normalize_graph(graph), label_matrix(label, 2, dtype=torch.float64)).value.argmax(1)
    assert torch.equal(found, torch.arange(60) // 30)


# Errors


@pytest.mark.parametrize("alpha", [-0.1, 1.0, 1.5, float("nan")])
def test_alpha_outside(alpha):
    graph, _, _ = moons()
    for value in (alpha, torch.tensor(alpha)):
        with pytest.raises(ConfigError, match=r"alpha must lie in \[0, 1\).*got (-0.1|1.0|1.5|nan)"):
            spread_labels(normalize_graph(graph), torch.zeros(60, 2).double(), alpha=value)


def test_alpha_of_the_wrong_kind():
    graph, _, _ = moons()
    for value in (torch.tensor([0.5]), torch.tensor(0)):
        with pytest.raises(ConfigError, match=r"a number or a 0-dimensional float tensor"):
            spread_labels(normalize_graph(graph), torch.zeros(60, 2).double(), alpha=value)


def test_graph_of_the_wrong_kind():
    graph, label, _ = moons()
    targets = label_matrix(label, 2, dtype=torch.float64)
    with pytest.raises(GraphError, match=r"needs a normalized graph; got 60 nodes.*normalize_graph\(graph\) first"):
        spread_labels(graph, targets)
    with pytest.raises(GraphError, match=r"symmetric graph that is not normalized; got normalization='symmetric'"):
        propagate_labels(normalize_graph(graph), targets, label != -1)
    with pytest.raises(GraphError, match=r"is_symmetric=False"):
        propagate_labels(replace(graph, is_symmetric=False), targets, label != -1)


@pytest.mark.parametrize(
    "targets",
    [torch.zeros(59, 2).double(), torch.zeros(60, 2), torch.zeros(60).double(), torch.zeros(60, 2, dtype=torch.int64)],
)
def test_targets_that_do_not_fit(targets):
    graph, label, _ = moons()
    message = r"targets must be of shape \(60, c\), torch.float64 on cpu, as the graph is; got"
    with pytest.raises(GraphError, match=message):
        spread_labels(normalize_graph(graph), targets)
    with pytest.raises(GraphError, match=message):
        propagate_labels(graph, targets, label != -1)


def test_other_errors():
    graph, label, _ = moons()
    targets = label_matrix(label, 2, dtype=torch.float64)
    for is_given in (label, (label != -1)[:50]):
        with pytest.raises(GraphError, match=r"is_given must be bool of shape \(60,\).*label != UNLABELED"):
            propagate_labels(graph, targets, is_given)
    for ridge in (-1.0, float("nan")):
        with pytest.raises(ConfigError, match=r"ridge must not be negative; got"):
            propagate_labels(graph, targets, label != -1, ridge=ridge)
    for initial in (targets[:5], targets.float(), targets[:, :1]):
        message = r"initial must be of shape \(60, 2\), torch.float64 on cpu, as targets are; got"
        with pytest.raises(GraphError, match=message):
            spread_labels(normalize_graph(graph), targets, initial=initial)
        with pytest.raises(GraphError, match=message):
            propagate_labels(graph, targets, label != -1, initial=initial)
    with pytest.raises(SolveError, match=r"ended as MAX_STEPS"):
        spread_labels(normalize_graph(graph), targets, solver=ConjugateGradient(max_steps=1))


# Ridge


def test_gradient_to_ridge():
    graph = from_dense(reference.random_weights(9))
    label = torch.where(torch.arange(9) % 4 == 0, torch.arange(9) % 3 % 2, -1)
    targets = label_matrix(label, 2, dtype=torch.float64)

    def solve(ridge, targets):
        return propagate_labels(graph, targets, label != -1, ridge=ridge).value

    inputs = (torch.tensor(0.3, dtype=torch.float64).requires_grad_(), targets.requires_grad_())
    assert torch.autograd.gradcheck(solve, inputs)
    assert torch.autograd.gradgradcheck(solve, inputs)
    tensor = propagate_labels(graph, targets, label != -1, ridge=torch.tensor(0.3, dtype=torch.float64))
    number = propagate_labels(graph, targets, label != -1, ridge=0.3)
    close(tensor.value, number.value)
    close(tensor.error_bound, number.error_bound)
    assert ((number.value - reference.propagate(graph.to_dense(), targets, label != -1, 0.3)).norm(dim=0) < 1e-9).all()


@pytest.mark.parametrize("solver", [ConjugateGradient(rtol=1e-2), ConjugateGradient(rtol=1e-2, max_steps=3)])
def test_ridge_bounds_the_error(solver):
    graph, label, _ = moons()
    targets = label_matrix(label, 2, dtype=torch.float64)
    for ridge in (0.05, 3.0):
        found = propagate_labels(graph, targets, label != -1, ridge=ridge, solver=solver, on_failure="ignore")
        wanted = reference.propagate(graph.to_dense(), targets, label != -1, ridge)
        error = (found.value - wanted).norm(dim=0)
        assert (error <= found.error_bound[0]).all()
        assert error.max() > 1e-8, "nothing to bound"


def test_ridge_errors():
    graph, label, _ = moons()
    targets = label_matrix(label, 2, dtype=torch.float64)
    for ridge in (torch.tensor([0.1]), torch.tensor(1)):
        with pytest.raises(ConfigError, match=r"ridge must be a number or a 0-dimensional float tensor; got shape"):
            propagate_labels(graph, targets, label != -1, ridge=ridge)
    with pytest.raises(ConfigError, match=r"ridge must not be negative; got -0.5"):
        propagate_labels(graph, targets, label != -1, ridge=torch.tensor(-0.5))


# Precision


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_taken_in_and_solved_in_float32(dtype):
    """From bf16 embeddings and targets to scores, in and out of autocast, the same numbers as in float32."""
    _, label, z = moons()
    z = z.to(dtype)
    soft = label_matrix(label, 2, dtype=dtype).requires_grad_()
    given = label != -1
    alpha = torch.full((60,), 0.9, dtype=dtype)

    def solve(z, targets):
        graph = build_graph(z, find_neighbors(z, 8))
        return [
            spread_labels(normalize_graph(graph), targets).value,
            spread_labels(normalize_graph(graph), targets, alpha=alpha).value,
            spread_labels(normalize_graph(graph), targets, solver=Direct()).value,
            propagate_labels(graph, targets, given).value,
            poisson_labels(graph, targets).value,
        ]

    wanted = solve(z.float(), soft.detach().float())
    with torch.autocast("cpu", torch.bfloat16):
        under_autocast = solve(z, soft)
    for found in (solve(z, soft), under_autocast):
        for one, other in zip(found, wanted, strict=True):
            assert one.dtype == torch.float32
            assert torch.equal(one, other)
            (grad,) = torch.autograd.grad(one.square().sum(), soft, retain_graph=True)
            assert grad.dtype == dtype
            assert torch.isfinite(grad).all()


@pytest.mark.parametrize("with_guess", [False, True])
def test_order_of_nodes_inside_does_not_show(monkeypatch, with_guess):
    """Large problems are solved in another order of nodes; here small ones are, and nobody can tell."""
    ptr = torch.tensor([0, 25, 25, 60])
    z = torch.randn(60, 3, generator=seeded(20), dtype=torch.float64)
    label = torch.randint(-3, 2, (60,), generator=seeded(21)).clamp(min=-1)
    probe = torch.randn(60, 2, generator=seeded(22), dtype=torch.float64)
    graph = build_graph(z, find_neighbors(z, 4, ptr=ptr))
    answers = []
    for largest in (1 << 18, 0):
        monkeypatch.setattr(reordering, "CACHED_ELEMENTS", largest)
        weight = graph.edge_weight.clone().requires_grad_()
        targets = label_matrix(label, 2, dtype=torch.float64).requires_grad_()
        leaf = replace(graph, edge_weight=weight)
        guess = probe if with_guess else None
        spread = spread_labels(normalize_graph(leaf), targets, initial=guess)
        held = propagate_labels(leaf, targets, label >= 0, ridge=0.1, initial=guess)
        gradients = torch.autograd.grad(((spread.value + held.value) * probe).sum(), (weight, targets))
        answers.append((spread.value, held.value, *gradients))
        assert spread.status is held.status is Status.CONVERGED
    torch.testing.assert_close(*answers, rtol=1e-8, atol=1e-10)
    dense = reference.normalize(graph.to_dense())
    wanted = reference.spread(dense, label_matrix(label, 2, dtype=torch.float64), 0.99)
    torch.testing.assert_close(answers[1][0].detach(), wanted, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_loops_take_no_digits_of_propagation(dtype):
    weight = 1e-4 * (0.5 + torch.rand(40, 40, generator=seeded(3), dtype=torch.float64))
    weight = (weight + weight.T).fill_diagonal_(0)
    is_given = torch.zeros(40, dtype=torch.bool)
    is_given[:2] = True
    targets = label_matrix(torch.tensor([0, 1] + [-1] * 38), 2, dtype=dtype)
    expected = propagate_labels(from_dense(weight.to(dtype)), targets, is_given).value
    with_loops = from_dense((weight + torch.eye(40, dtype=torch.float64)).to(dtype))
    found = propagate_labels(with_loops, targets, is_given)
    assert found.status is Status.CONVERGED
    torch.testing.assert_close(found.value, expected)
