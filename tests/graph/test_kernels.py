import pytest
import torch

from lspread.errors import ConfigError, GraphError
from lspread.graph import CosinePower, Gaussian, Neighbors, SelfTuning, Uniform, build_graph, find_neighbors
from tests import reference
from tests.reference import seeded

# One list: kernel, metric, second opinion on (distance, index).
KERNELS = {
    "self_tuning": (SelfTuning(), "euclidean", lambda d, i: reference.self_tuning(d, i)),
    "self_tuning_scale": (SelfTuning(scale=4.0), "euclidean", lambda d, i: reference.self_tuning(d, i, 4.0)),
    "self_tuning_cosine": (SelfTuning(), "cosine", lambda d, i: reference.self_tuning((2 * d) ** 0.5, i)),
    "gaussian": (Gaussian(0.7), "euclidean", lambda d, i: reference.gaussian(d, 0.7)),
    "gaussian_cosine": (Gaussian(0.7), "cosine", lambda d, i: reference.gaussian((2 * d) ** 0.5, 0.7)),
    "cosine": (CosinePower(), "cosine", lambda d, i: (1 - d).clamp(min=0) ** 3),
    "cosine_gamma": (CosinePower(gamma=1.5), "cosine", lambda d, i: (1 - d).clamp(min=0) ** 1.5),
    "uniform": (Uniform(), "euclidean", lambda d, i: torch.ones_like(d)),
}


@pytest.mark.parametrize("name", KERNELS)
@pytest.mark.parametrize("needs_grad", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_weights(name, needs_grad, dtype):
    kernel, metric, weigh = KERNELS[name]
    z = torch.randn(40, 4, generator=seeded(1), dtype=dtype)
    neighbors = find_neighbors(z, 6, metric=metric)
    index, distance = reference.knn(z, 6, metric)
    assert torch.equal(neighbors.index, index)
    wanted = reference.symmetrize(reference.scatter(weigh(distance, index), index), "mean")
    found = build_graph(z.clone().requires_grad_(needs_grad), neighbors, kernel=kernel).to_dense()
    tolerance = {"rtol": 1e-4, "atol": 1e-6} if dtype == torch.float32 else {"rtol": 1e-9, "atol": 1e-12}
    torch.testing.assert_close(found.detach().double(), wanted, **tolerance)
    assert found.dtype == dtype


@pytest.mark.parametrize("name", KERNELS)
def test_gradient_to_points(name):
    kernel, metric, _ = KERNELS[name]
    z = torch.randn(6, 3, generator=seeded(2), dtype=torch.float64, requires_grad=True)
    neighbors = find_neighbors(z, 2, metric=metric)
    if name == "uniform":
        assert not build_graph(z, neighbors, kernel=kernel).edge_weight.requires_grad
        return
    assert torch.autograd.gradcheck(lambda z: build_graph(z, neighbors, kernel=kernel).edge_weight, z)
    if name in ("self_tuning", "cosine"):
        assert torch.autograd.gradgradcheck(lambda z: build_graph(z, neighbors, kernel=kernel).edge_weight, z)


@pytest.mark.parametrize("make", [SelfTuning, Gaussian])
def test_gradient_to_width(make):
    z = torch.randn(9, 3, generator=seeded(3), dtype=torch.float64)
    neighbors = find_neighbors(z, 3)
    width = torch.tensor(0.8, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda w: build_graph(z, neighbors, kernel=make(w)).edge_weight, width)


@pytest.mark.parametrize("name", [name for name, (_, metric, _) in KERNELS.items() if metric == "cosine"])
def test_zero_vectors_weigh_the_same_with_gradient(name):
    kernel, metric, _ = KERNELS[name]
    z = torch.randn(12, 3, generator=seeded(4))
    z[[4, 7]] = 0
    neighbors = find_neighbors(z, 9, metric=metric)
    needing = z.clone().requires_grad_()
    found = build_graph(needing, neighbors, kernel=kernel).edge_weight
    torch.testing.assert_close(found, build_graph(z, neighbors, kernel=kernel).edge_weight, rtol=1e-4, atol=1e-5)
    found.sum().backward()
    assert torch.isfinite(needing.grad).all()
    assert (needing.grad[[4, 7]] == 0).all(), "a vector without direction has no slope"


def test_self_tuning_ignores_the_unit_of_length():
    z = torch.randn(30, 3, generator=seeded(5), dtype=torch.float64)
    one = build_graph(z, find_neighbors(z, 5))
    other = build_graph(z * 1e6, find_neighbors(z * 1e6, 5))
    torch.testing.assert_close(one.edge_weight, other.edge_weight, rtol=1e-9, atol=0)


@pytest.mark.parametrize("needs_grad", [False, True])
def test_self_tuning_where_all_neighbors_coincide(needs_grad):
    # Nodes 0..3 coincide and have k = 3: width 0. They take the mean width of the others in their graph.
    z = torch.cat([torch.zeros(4, 1), torch.tensor([[1.0], [1.5], [2.5], [4.0]])]).requires_grad_(needs_grad)
    neighbors = find_neighbors(z.detach(), 3)
    graph = build_graph(z, neighbors)
    index, distance = neighbors.index, neighbors.distance.double()
    width = distance.amax(1)
    width[:4] = width[4:].mean()
    wanted = reference.scatter(torch.exp(-(distance**2) / (width[:, None] * width[index])), index)
    torch.testing.assert_close(
        graph.to_dense().detach().double(), reference.symmetrize(wanted, "mean"), rtol=1e-5, atol=1e-6
    )
    if needs_grad:
        graph.edge_weight.square().sum().backward()
        assert torch.isfinite(z.grad).all()


def test_self_tuning_of_one_place_only():
    z = torch.ones(5, 2, requires_grad=True)
    graph = build_graph(z, find_neighbors(z, 2))
    assert (graph.edge_weight > 0).all()
    assert (build_graph(z, find_neighbors(z, 4)).edge_weight == 1).all()
    graph.edge_weight.sum().backward()
    assert torch.isfinite(z.grad).all()


def test_self_tuning_means_stay_inside_a_graph():
    # A graph of duplicates with one outlier, alone and beside a graph a thousand times as wide.
    z = torch.cat([torch.zeros(3, 1), torch.tensor([[2.0]])])
    alone = build_graph(z, find_neighbors(z, 2)).to_dense()
    both = torch.stack([z, 1000 * torch.randn(4, 1, generator=seeded(6))])
    together = build_graph(both, find_neighbors(both, 2)).to_dense()[:4, :4]
    torch.testing.assert_close(alone, together)


@pytest.mark.parametrize("make", [SelfTuning, Gaussian, CosinePower])
@pytest.mark.parametrize("value", [0, -1.0, float("nan")])
def test_widths_must_be_positive(make, value):
    with pytest.raises(ConfigError, match=r"must be greater than 0; got"):
        make(value)


def test_cosine_power_needs_cosine():
    z = torch.randn(6, 2, generator=seeded(7))
    with pytest.raises(GraphError, match=r"CosinePower needs neighbors of metric 'cosine'; got 'euclidean'"):
        build_graph(z, find_neighbors(z, 2), kernel=CosinePower())


def test_own_kernel():
    def inverse(squared_distance, neighbors: Neighbors):
        return 1 / (1 + squared_distance)

    z = torch.randn(10, 2, generator=seeded(8), dtype=torch.float64)
    index, distance = reference.knn(z, 3)
    wanted = reference.symmetrize(reference.scatter(1 / (1 + distance**2), index), "mean")
    torch.testing.assert_close(build_graph(z, find_neighbors(z, 3), kernel=inverse).to_dense(), wanted)
