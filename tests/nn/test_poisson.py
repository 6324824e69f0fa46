import pytest
import torch

from lspread.errors import ConfigError
from lspread.graph import build_graph, find_neighbors
from lspread.labels import label_matrix, poisson_labels
from lspread.nn import LabelPropagation, PoissonLearning
from lspread.solve import ConjugateGradient, Direct
from tests import reference
from tests.reference import seeded

K = 5


def sample(*shape, dtype=torch.float64):
    z = torch.randn(*shape, 4, generator=seeded(1), dtype=torch.float64).to(dtype)
    label = torch.randint(3, shape, generator=seeded(2))
    label[..., torch.arange(shape[-1]) % 3 != 0] = -1
    return z, label


def dense_scores(z, label):
    index, distance = reference.knn(z, K)
    w = reference.symmetrize(reference.scatter(reference.self_tuning(distance, index), index), "mean")
    return reference.poisson(w, reference.one_hot(label, 3))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_equal_graphs(dtype):
    z, label = sample(3, 14, dtype=dtype)
    found = PoissonLearning(3, k=K)(z, label)
    assert found.dtype == dtype
    for g in range(3):
        wanted = dense_scores(z[g], label[g])
        torch.testing.assert_close(found[g].double(), wanted, rtol=0, atol=1e-9 if dtype == torch.float64 else 1e-5)


@pytest.mark.parametrize("normalization", ["none", "symmetric"])
@pytest.mark.parametrize("prior", ["none", "uniform", torch.tensor([0.2, 0.3, 0.5], dtype=torch.float64)])
def test_options_reach_the_function(normalization, prior):
    z, label = sample(30)
    layer = PoissonLearning(3, k=K, normalization=normalization, prior=prior, balance=True, solver=Direct())
    targets = label_matrix(label, 3, balance=True, dtype=torch.float64)
    graph = build_graph(z, find_neighbors(z, K))
    wanted = poisson_labels(graph, targets, normalization=normalization, prior=prior).value
    torch.testing.assert_close(layer(z, label), wanted, rtol=0, atol=1e-9)
    assert f"normalization='{normalization}'" in repr(layer)
    copy = PoissonLearning(3, k=K, normalization=normalization, prior=prior, balance=True)
    copy.load_state_dict(layer.state_dict())
    torch.testing.assert_close(copy(z, label), wanted, rtol=0, atol=1e-9)


def test_gradcheck_to_points_and_bandwidth():
    z, label = sample(9)
    layer = PoissonLearning(3, k=4, learn_bandwidth=True).double()
    assert torch.autograd.gradcheck(lambda z, _: layer(z, label), (z.requires_grad_(), layer.log_bandwidth))


def test_half_precision_under_autocast():
    z, label = sample(30)
    z = z.bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        found = PoissonLearning(3, k=K)(z, label)
    assert torch.equal(found, PoissonLearning(3, k=K)(z.float(), label))


def test_one_label_per_class_where_propagation_is_almost_constant():
    """The reason for the method: two clusters in many dimensions, one label each, eight draws of them."""
    true = torch.arange(600) % 2
    z = torch.randn(600, 20, generator=seeded(3))
    z[:, 0] += 2 * (2 * true - 1)
    graph = build_graph(z, find_neighbors(z, 8))
    right = {PoissonLearning: [], LabelPropagation: []}
    for seed in range(8):
        first, second = (2 * torch.randint(300, (2,), generator=seeded(seed))).tolist()
        label = torch.full((600,), -1)
        label[first], label[second + 1] = 0, 1
        for make, correct in right.items():
            correct.append((make(2)(graph, label).argmax(1) == true).float().mean())
    assert torch.stack(right[PoissonLearning]).mean() > 0.9
    assert torch.stack(right[LabelPropagation]).mean() < 0.7


def test_errors():
    with pytest.raises(ConfigError, match=r"normalization must be 'none' or 'symmetric'; got 'rows'"):
        PoissonLearning(3, normalization="rows")
    with pytest.raises(ConfigError, match=r"prior must be 'none', 'uniform', 'labeled' or a tensor"):
        PoissonLearning(3, prior="even")
    with pytest.raises(ConfigError, match=r"one frequency per class, shape \(3,\)"):
        PoissonLearning(3, prior=torch.ones(4))


def test_a_solver_that_is_set_later_runs():
    z, label = sample(14)
    layer = PoissonLearning(3, k=K, on_failure="ignore")
    graph = layer.build_graph(z)
    assert layer.solve(graph, label).num_steps > 1
    layer.solver = ConjugateGradient(max_steps=1)
    assert layer.solve(graph, label).num_steps == 1
