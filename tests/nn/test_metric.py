import pytest
import torch
from torch.nn.functional import nll_loss

from lspread.errors import ConfigError, GraphError
from lspread.graph import SelfTuning, build_graph, find_neighbors, normalize_graph
from lspread.labels import Anchors
from lspread.nn import LabelSpreading, LinearMetric
from tests import reference
from tests.reference import seeded

K = 5


def rows(*shape, seed=1):
    return torch.randn(*shape, generator=seeded(seed), dtype=torch.float64)


def kinds():
    return [
        LinearMetric(4),
        LinearMetric(4, 2, generator=seeded(0)),
        LinearMetric(4, diagonal=True),
    ]


@pytest.mark.parametrize("metric", kinds(), ids=["full", "low_rank", "diagonal"])
@pytest.mark.parametrize("shape", [(6,), (2, 6)])
def test_distances_are_those_of_the_matrix(metric, shape):
    metric = metric.double()
    with torch.no_grad():
        metric.weight += rows(*metric.weight.shape)
    z = rows(*shape, 4)
    a = metric.weight.diag() if metric.weight.ndim == 1 else metric.weight
    gap = z[..., 1:, :] - z[..., :-1, :]
    mapped = metric(z)
    found = (mapped[..., 1:, :] - mapped[..., :-1, :]).square().sum(-1)
    torch.testing.assert_close(found, torch.einsum("...i,ij,...j->...", gap, a.T @ a, gap))


def test_starts_without_a_change_of_distances():
    z = rows(6, 4)
    assert torch.equal(LinearMetric(4)(z), z)
    assert torch.equal(LinearMetric(4, diagonal=True)(z), z)
    low = LinearMetric(4, 2, generator=seeded(3)).weight
    torch.testing.assert_close(low @ low.T, torch.eye(2))
    assert torch.equal(low, LinearMetric(4, 2, generator=seeded(3)).weight)


def test_initialize_keeps_the_principal_plane():
    """Points in a plane of a wide space: a metric of rank 2 keeps all their distances."""
    plane = torch.linalg.qr(rows(6, 2)).Q.T
    z = 5 + rows(20, 2, seed=2) @ plane
    metric = LinearMetric(6, 2).double()
    metric.initialize(z)
    torch.testing.assert_close(metric.weight @ metric.weight.T, torch.eye(2, dtype=torch.float64))
    torch.testing.assert_close(reference.distances(metric(z)), reference.distances(z))


@pytest.mark.parametrize(
    ("metric", "shape"),
    zip(kinds(), [(2, 7), (8,), (8,)], strict=True),
    ids=["full", "low_rank", "diagonal"],
)
def test_gradcheck_through_the_layer(metric, shape):
    layer = LabelSpreading(3, k=4, alpha=0.7)
    node = torch.arange(shape[-1])
    label = torch.where(node < 4, node % 3, -1).expand(shape)
    z, metric = rows(*shape, 4), metric.double()
    weight = metric.weight.detach().clone().requires_grad_()

    def scores(weight, z):
        return layer(torch.func.functional_call(metric, {"weight": weight}, (z,)), label)

    assert torch.autograd.gradcheck(scores, (weight, z.requires_grad_()))


def test_gradient_reaches_the_metric_through_anchors_too():
    metric, layer = LinearMetric(4).double(), LabelSpreading(3, k=3, alpha=0.7)
    anchors = Anchors(rows(5, 4, seed=2), torch.tensor([0, 1, 2, -1, -1]))
    z, label = rows(5, 4), torch.full((5,), -1)

    def scores(weight):
        mapped = [torch.func.functional_call(metric, {"weight": weight}, (part,)) for part in (z, anchors.embedding)]
        return layer(mapped[0], label, anchors=anchors.map(lambda _: mapped[1]))

    weight = metric.weight.detach().clone().requires_grad_()
    assert torch.autograd.gradcheck(scores, weight)
    layer(metric(z), label, anchors=anchors.map(metric)).square().sum().backward()
    (wanted,) = torch.autograd.grad(scores(weight).square().sum(), weight)
    torch.testing.assert_close(metric.weight.grad, wanted)
    assert (wanted != 0).any()


@pytest.mark.parametrize("learn_scale", [False, True])
def test_gradient_goes_through_the_width_of_every_node(learn_scale):
    """Self-tuning's s_i is a distance itself: autograd through the dense formula says what it adds."""
    z = rows(12, 4).requires_grad_()
    scale = torch.tensor(0.8, dtype=torch.float64, requires_grad=learn_scale)
    probe, neighbors = rows(12, 12, seed=3), find_neighbors(z, K)
    s = normalize_graph(build_graph(z, neighbors, kernel=SelfTuning(scale))).to_dense()
    found = torch.autograd.grad((s * probe).sum(), [z, scale] if learn_scale else [z])

    def dense(is_width_held):
        index = neighbors.index
        distance = (z[:, None] - z[index]).square().sum(-1).sqrt()
        width = distance.amax(1)
        width = width.detach() if is_width_held else width
        weight = torch.exp(-scale * distance**2 / (width[:, None] * width[index]))
        w = reference.symmetrize(reference.scatter(weight, index), "mean")
        return torch.autograd.grad((reference.normalize(w) * probe).sum(), [z, scale] if learn_scale else [z])

    for one, other in zip(found, dense(False), strict=True):
        torch.testing.assert_close(one, other)
    assert (found[0] - dense(True)[0]).norm() > 0.1 * found[0].norm()


@pytest.mark.parametrize("options", [{}, {"rank": 3}, {"diagonal": True}], ids=["full", "low_rank", "diagonal"])
def test_learning_finds_the_coordinates_that_count(options):
    """Two of twelve coordinates tell the classes apart, the others are louder noise.

    Half of the supports are hidden by turns and asked for; accuracy counts on points whose labels were never shown.
    """
    generator, num_nodes = seeded(6), 150
    true = torch.arange(num_nodes) % 3
    z = 2.0 * torch.randn(num_nodes, 12, generator=generator)
    angle = 2 * torch.pi * true / 3
    z[:, :2] = 2 * torch.stack([angle.cos(), angle.sin()], 1) + 0.5 * torch.randn(num_nodes, 2, generator=generator)
    shown = torch.where(torch.arange(num_nodes) < 60, true, -1)
    metric = LinearMetric(12, generator=generator, **options)
    if "rank" in options:
        metric.initialize(z)
    layer = LabelSpreading(3, k=8, alpha=0.9)
    optimizer = torch.optim.Adam(metric.parameters(), lr=0.1)

    def accuracy():
        with torch.no_grad():
            return (layer(metric(z), shown).argmax(1) == true)[60:].double().mean().item()

    before = accuracy()
    for _ in range(40):
        is_hidden = (torch.rand(num_nodes, generator=generator) < 0.5) & (shown >= 0)
        scores = layer(metric(z), torch.where(is_hidden, -1, shown))[is_hidden].clamp(min=1e-6)
        loss = nll_loss((scores / scores.sum(1, keepdim=True)).log(), true[is_hidden])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert accuracy() > max(0.9, before + 0.15), (before, accuracy())


def test_autocast_is_left_and_state_is_kept():
    metric = LinearMetric(4, 2)
    z = rows(6, 4).bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        found = metric(z)
    assert torch.equal(found, z.float() @ metric.weight.T)
    assert metric(rows(6, 4)).dtype == torch.float64
    other = LinearMetric(4, 2)
    other.load_state_dict(metric.state_dict())
    assert torch.equal(other(z), metric(z))
    assert "dim=4, rank=2" in repr(metric)
    assert "dim=4, diagonal" in repr(LinearMetric(4, diagonal=True))


def test_errors():
    with pytest.raises(ConfigError, match=r"rank from 1 to dim; got dim=4, rank=5"):
        LinearMetric(4, 5)
    with pytest.raises(ConfigError, match=r"got dim=0, rank=None"):
        LinearMetric(0)
    with pytest.raises(ConfigError, match=r"a diagonal metric has no rank; got rank=2"):
        LinearMetric(4, 2, diagonal=True)
    for metric, z in (
        (LinearMetric(4), rows(9, 3)),
        (LinearMetric(4, 3), rows(2, 4)),
        (LinearMetric(4, diagonal=True), rows(9, 4)),
    ):
        with pytest.raises(GraphError, match=r"initialize needs a metric that is not diagonal and at least r"):
            metric.initialize(z)
