import copy

import pytest
import torch
from torch.autograd import forward_ad

from lspread.errors import ConfigError, GraphError, SolveError
from lspread.graph import CosinePower, Gaussian, SelfTuning, Uniform, build_graph, find_neighbors, normalize_graph
from lspread.labels import label_matrix, propagate_labels, spread_labels
from lspread.nn import LabelPropagation, LabelSpreading
from lspread.solve import Chebyshev, ConjugateGradient, Direct, FixedPoint
from tests import reference
from tests.reference import seeded

K = 5


def sample(*shape, num_classes=3, dtype=torch.float64):
    """Points and labels; every third node is labeled."""
    z = torch.randn(*shape, 4, generator=seeded(1), dtype=torch.float64).to(dtype)
    label = torch.randint(num_classes, shape, generator=seeded(2))
    label[..., torch.arange(shape[-1]) % 3 != 0] = -1
    return z, label


def dense_scores(z, label, *, alpha=0.99, scale=1.0, num_classes=3):
    index, distance = reference.knn(z, K)
    w = reference.symmetrize(reference.scatter(reference.self_tuning(distance, index, scale), index), "mean")
    targets = label.double() if label.is_floating_point() else reference.one_hot(label, num_classes)
    return reference.spread(reference.normalize(w), targets, alpha)


@pytest.mark.parametrize("alpha", [0.5, 0.99])
@pytest.mark.parametrize("bandwidth", [1.0, 0.3])
def test_one_graph(alpha, bandwidth):
    z, label = sample(24)
    layer = LabelSpreading(3, k=K, alpha=alpha, bandwidth=bandwidth)
    wanted = dense_scores(z, label, alpha=alpha, scale=bandwidth**-2)
    torch.testing.assert_close(layer(z, label), wanted, rtol=0, atol=1e-9)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_equal_graphs(dtype):
    z, label = sample(3, 12, dtype=dtype)
    found = LabelSpreading(3, k=K)(z, label)
    assert found.shape == (3, 12, 3)
    assert found.dtype == dtype
    for g in range(3):
        wanted = dense_scores(z[g], label[g])
        torch.testing.assert_close(found[g].double(), wanted, rtol=0, atol=1e-9 if dtype == torch.float64 else 1e-4)


def test_batch_vector():
    z, label = sample(30)
    batch = torch.tensor([0] * 8 + [1] * 12 + [2] * 10)
    found = LabelSpreading(3, k=K)(z, label, batch)
    wanted = torch.cat([dense_scores(z[batch == g], label[batch == g]) for g in range(3)])
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-9)


def test_propagation_holds_every_row_that_is_not_zero():
    z, _ = sample(24)
    soft = torch.zeros(24, 3, dtype=torch.float64)
    soft[:4] = torch.tensor([[1.0, 0.0, 0.0], [1.0, -1.0, 0.0], [0.0, -0.5, 0.0], [-1.0, 0.25, 0.5]])
    found = LabelPropagation(3, k=K)(z, soft)
    torch.testing.assert_close(found[:4], soft[:4])
    graph = build_graph(z, find_neighbors(z, K))
    wanted = propagate_labels(graph, soft, torch.arange(24) < 4).value
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-6)


def test_graph_input():
    z, label = sample(24)
    graph = build_graph(z, find_neighbors(z, K))
    torch.testing.assert_close(LabelSpreading(3)(graph, label), dense_scores(z, label), rtol=0, atol=1e-9)


@pytest.mark.parametrize("shape", [(24,), (2, 12)])
def test_soft_targets(shape):
    z, _ = sample(*shape)
    soft = torch.rand(*shape, 3, generator=seeded(3), dtype=torch.float64).requires_grad_()
    found = LabelSpreading(3, k=K, alpha=0.9)(z, soft)
    graphs = zip(z.view(-1, shape[-1], 4), soft.detach().view(-1, shape[-1], 3), strict=True)
    wanted = torch.stack([dense_scores(one, targets, alpha=0.9) for one, targets in graphs]).view(*shape, 3)
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-9)
    (grad,) = torch.autograd.grad(found.sum(), soft)
    assert torch.isfinite(grad).all()
    flat = LabelSpreading(3, k=K, alpha=0.9)(z, soft.detach().view(-1, 3))
    assert torch.equal(flat, found.detach())


@pytest.mark.parametrize(
    ("name", "kernel", "metric"),
    [
        ("self_tuning", SelfTuning(0.7**-2), "euclidean"),
        ("gaussian", Gaussian(0.7), "cosine"),
        ("cosine", CosinePower(), "cosine"),
        ("uniform", Uniform(), "euclidean"),
        (CosinePower(gamma=2.0), CosinePower(gamma=2.0), "cosine"),
    ],
)
@pytest.mark.parametrize("symmetrize", ["mean", "max", "mutual"])
def test_options_reach_the_functions(name, kernel, metric, symmetrize):
    z, label = sample(30)
    bandwidth = 0.7 if name in ("self_tuning", "gaussian") else 1.0
    layer = LabelSpreading(
        3, k=K, kernel=name, bandwidth=bandwidth, metric=metric, symmetrize=symmetrize, alpha=0.8, balance=True
    )
    graph = build_graph(z, find_neighbors(z, K, metric=metric), kernel=kernel, symmetrize=symmetrize)
    targets = label_matrix(label, 3, balance=True, dtype=torch.float64)
    wanted = spread_labels(normalize_graph(graph), targets, alpha=0.8).value
    torch.testing.assert_close(layer(z, label), wanted, rtol=0, atol=1e-10)


def test_a_graph_does_not_feel_its_batch_mates():
    z, label = sample(3, 12)
    layer = LabelSpreading(3, k=K, balance=True)
    together = layer(z, label)
    for g in range(3):
        torch.testing.assert_close(together[g], layer(z[g], label[g]), rtol=0, atol=1e-9)


def test_label_propagation():
    z, label = sample(2, 15)
    found = LabelPropagation(3, k=K)(z, label)
    for g in range(2):
        graph = build_graph(z[g], find_neighbors(z[g], K)).to_dense()
        wanted = reference.propagate(graph, reference.one_hot(label[g], 3), label[g] != -1)
        torch.testing.assert_close(found[g], wanted, rtol=0, atol=1e-9)
    ridge = LabelPropagation(3, k=K, ridge=0.4)(z[0], label[0])
    graph = build_graph(z[0], find_neighbors(z[0], K))
    given = label[0] != -1
    wanted = propagate_labels(graph, label_matrix(label[0], 3, dtype=torch.float64), given, ridge=0.4).value
    torch.testing.assert_close(ridge, wanted, rtol=0, atol=1e-9)


@pytest.mark.parametrize("solver", [ConjugateGradient(), FixedPoint(), Direct()])
def test_solvers_agree(solver):
    z, label = sample(20)
    found = LabelSpreading(3, k=K, alpha=0.9, solver=solver)(z, label)
    torch.testing.assert_close(found, dense_scores(z, label, alpha=0.9), rtol=0, atol=1e-9)


# Learning


@pytest.mark.parametrize("kernel", ["self_tuning", "gaussian"])
def test_learnable_alpha_and_bandwidth(kernel):
    z, label = sample(20)
    layer = LabelSpreading(
        3, k=K, kernel=kernel, alpha=0.9, bandwidth=1.5, learn_alpha=True, learn_bandwidth=True
    ).double()
    assert layer.alpha.item() == pytest.approx(0.9, rel=1e-6)
    assert layer.bandwidth.item() == pytest.approx(1.5, rel=1e-6)
    assert {name for name, _ in layer.named_parameters()} == {"logit_alpha", "log_bandwidth"}
    probe = torch.randn(20, 3, generator=seeded(4), dtype=torch.float64)
    (layer(z, label) * probe).sum().backward()
    for parameter in layer.parameters():
        value, step = parameter.data.clone(), 1e-5
        sides = []
        for sign in (1, -1):
            parameter.data = value + sign * step
            sides.append((layer(z, label) * probe).sum().item())
        parameter.data = value
        assert parameter.grad.item() == pytest.approx((sides[0] - sides[1]) / (2 * step), rel=1e-5)
        assert parameter.grad.item() != 0


def test_gradcheck_to_points():
    z, label = sample(9)
    layer = LabelSpreading(3, k=3, alpha=0.7)
    assert torch.autograd.gradcheck(lambda z: layer(z, label), z.requires_grad_())
    other = LabelPropagation(3, k=4)
    assert torch.autograd.gradcheck(lambda z: other(z, label), z)


def test_fixed_numbers_are_no_parameters():
    layer = LabelSpreading(3, alpha=0.99, bandwidth=0.3)
    assert list(layer.parameters()) == []
    assert layer.alpha == 0.99
    assert layer.bandwidth == 0.3


def test_training_separates_classes():
    """The layer as part of a model: a linear map learns the only direction that tells the classes apart."""
    generator = seeded(5)
    true = torch.arange(60) % 2
    x = 3 * torch.randn(60, 4, generator=generator)
    x[:, 0] = (2 * true - 1) + 0.3 * torch.randn(60, generator=generator)
    shown = torch.where(torch.arange(60) < 20, true, -1)
    weight = torch.eye(4).requires_grad_()
    layer = LabelSpreading(2, k=K, alpha=0.9, learn_bandwidth=True)
    optimizer = torch.optim.Adam([weight, *layer.parameters()], lr=0.05)
    hidden = torch.arange(60) >= 20
    accuracy, losses = [], []
    for _ in range(25):
        scores = layer(x @ weight, shown)[hidden].clamp(min=1e-6)
        loss = torch.nn.functional.nll_loss((scores / scores.sum(1, keepdim=True)).log(), true[hidden])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
        accuracy.append((scores.argmax(1) == true[hidden]).float().mean().item())
    assert losses[-1] < losses[0] / 2
    assert accuracy[-1] > max(0.95, accuracy[0])


# A module among modules


@pytest.mark.parametrize("learn", [False, True])
def test_state_dict_round_trip(learn):
    z, label = sample(20)
    layer = LabelSpreading(3, k=K, alpha=0.9, bandwidth=0.6, learn_alpha=learn, learn_bandwidth=learn)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter += 0.3
    other = LabelSpreading(3, k=K, alpha=0.9, bandwidth=0.6, learn_alpha=learn, learn_bandwidth=learn)
    other.load_state_dict(layer.state_dict())
    assert torch.equal(other(z, label), layer(z, label))
    assert torch.equal(copy.deepcopy(layer)(z, label), layer(z, label))
    assert len(layer.state_dict()) == (2 if learn else 0)


@pytest.mark.parametrize("make", [LabelSpreading, LabelPropagation])
def test_autocast_is_left(make):
    z, label = sample(24, dtype=torch.float32)
    layer = make(3, k=K)
    wanted = layer(z.bfloat16().float(), label)
    with torch.autocast("cpu", torch.bfloat16):
        found = layer(z.bfloat16(), label)
        soft = layer(z.bfloat16(), label_matrix(label, 3).bfloat16())
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == torch.bfloat16, "autocast ended for the caller"
    assert found.dtype == soft.dtype == torch.float32
    assert torch.equal(found, wanted)
    torch.testing.assert_close(soft, wanted)


def test_gradient_reaches_half_precision_input():
    z, label = sample(24, dtype=torch.bfloat16)
    z.requires_grad_()
    LabelSpreading(3, k=K)(z, label).square().sum().backward()
    assert z.grad.dtype == torch.bfloat16
    assert torch.isfinite(z.grad).all()
    assert (z.grad != 0).any()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("make", [LabelSpreading, LabelPropagation])
@pytest.mark.parametrize("solver", [ConjugateGradient(), Direct()])
def test_autocast_changes_no_gradient(dtype, make, solver):
    """Half precision ends at the door: the gradient is that of float32, rounded once, also of a backward inside."""
    z, label = sample(24, dtype=dtype)
    layer = make(3, k=K, solver=solver)
    wanted = z.float().requires_grad_()
    layer(wanted, label).square().sum().backward()
    z.requires_grad_()
    with torch.autocast("cpu", dtype):
        layer(z, label).square().sum().backward()
    assert torch.equal(z.grad, wanted.grad.to(dtype))


def test_repr():
    shown = repr(LabelSpreading(3, k=7, metric="cosine"))
    assert "num_classes=3" in shown
    assert "k=7" in shown
    assert "metric='cosine'" in shown


# Errors


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_classes": 0}, r"num_classes and k must be at least 1; got num_classes=0"),
        ({"k": 0}, r"must be at least 1; got num_classes=3, k=0"),
        ({"alpha": 1.0}, r"alpha must lie in \[0, 1\).*got 1.0"),
        ({"alpha": -0.5}, r"alpha must lie in \[0, 1\).*got -0.5"),
        ({"alpha": 0, "learn_alpha": True}, r"alpha must start above 0 to be learned"),
        ({"bandwidth": 0.0}, r"bandwidth must be greater than 0; got 0.0"),
        ({"bandwidth": float("nan")}, r"bandwidth must be greater than 0; got nan"),
        ({"bandwidth": 2.0, "kernel": "uniform"}, r"bandwidth belongs to.*got kernel='uniform'"),
        (
            {"learn_bandwidth": True, "kernel": Gaussian(1.0)},
            r"bandwidth belongs to kernel='self_tuning' or 'gaussian'",
        ),
        ({"kernel": "rbf"}, r"kernel must be 'self_tuning'.*got 'rbf'"),
        ({"metric": "manhattan"}, r"metric must be one of.*got 'manhattan'"),
        ({"symmetrize": "median"}, r"symmetrize must be one of.*got 'median'"),
        ({"on_failure": "shrug"}, r"on_failure must be one of.*got 'shrug'"),
    ],
)
def test_option_errors(options, message):
    with pytest.raises(ConfigError, match=message):
        LabelSpreading(**{"num_classes": 3, **options})


def test_option_errors_of_propagation():
    with pytest.raises(ConfigError, match=r"ridge must not be negative; got -1"):
        LabelPropagation(3, ridge=-1.0)
    with pytest.raises(TypeError, match="neighbours"):
        LabelSpreading(3, neighbours=4)


def test_input_errors():
    z, label = sample(24)
    layer = LabelSpreading(3, k=K)
    graph = layer.build_graph(z)
    with pytest.raises(GraphError, match=r"leave out batch"):
        layer(graph, label, torch.zeros(24, dtype=torch.int64))
    with pytest.raises(GraphError, match=r"labels must have one row per node, 24 in all; got shape \(23,\)"):
        layer(z, label[:23])
    with pytest.raises(GraphError, match=r"labels must be -1 \(unlabeled\) or 0 to 2; got values from -1 to 3"):
        layer(z, label.clone().index_fill_(0, torch.tensor([0]), 3))
    with pytest.raises(GraphError, match=r"soft targets must be of shape \(n, 3\)"):
        layer(z, torch.zeros(24, 2))
    with pytest.raises(GraphError, match=r"k must be at least 1 and smaller.*got k=5 for a graph of 4 nodes"):
        layer(z[:4], label[:4])
    with pytest.raises(GraphError, match=r"the first is row 3"):
        layer(z.index_fill(0, torch.tensor([3]), torch.nan), label)
    with pytest.raises(GraphError, match=r"not normalized yet"):
        layer(normalize_graph(graph), label)
    with pytest.raises(GraphError, match=r"batch must be ascending"):
        layer(z, label, torch.arange(24) % 2)
    with pytest.raises(SolveError, match="MAX_STEPS"):
        LabelSpreading(3, k=K, solver=ConjugateGradient(max_steps=1))(z, label)
    with pytest.warns(RuntimeWarning, match="MAX_STEPS"):
        LabelSpreading(3, k=K, solver=ConjugateGradient(max_steps=1), on_failure="warn")(z, label)


def test_print_shows_what_is_learned() -> None:
    shown = repr(LabelSpreading(3, alpha=0.9, learn_alpha=True, bandwidth=0.5))
    assert "alpha=0.9 (learned)" in shown
    assert "bandwidth=0.5" in shown
    assert "alpha=0.99," in repr(LabelSpreading(3))


def test_learned_alpha_stays_below_one() -> None:
    layer = LabelSpreading(2, learn_alpha=True, k=2)
    with torch.no_grad():
        layer.logit_alpha.fill_(100.0)
    assert 0.999 < layer.alpha.item() < 1


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
@pytest.mark.parametrize("alpha", [1e-9, 0.9, 0.999, 1 - 1e-9])
def test_learned_alpha_in_every_precision(dtype, alpha):
    layer = LabelSpreading(2, k=2, alpha=alpha, learn_alpha=True).to(dtype)
    # A logit of eight bits is off by 2^-8 of itself.
    assert layer.alpha.item() == pytest.approx(alpha, abs=1e-3)
    assert 0 < layer.alpha.item() < 1
    assert layer.alpha.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    z = torch.randn(6, 2, generator=seeded(4))
    scores = layer(z, torch.tensor([0, 1, -1, -1, -1, -1]))
    wanted = LabelSpreading(2, k=2, alpha=layer.alpha.item())(z, torch.tensor([0, 1, -1, -1, -1, -1]))
    torch.testing.assert_close(scores, wanted)
    scores.square().sum().backward()
    assert layer.logit_alpha.grad.dtype == dtype
    assert torch.isfinite(layer.logit_alpha.grad)
    assert layer.logit_alpha.grad != 0, "nothing to learn from"


@pytest.mark.slow
@pytest.mark.parametrize("solver", [Direct(), ConjugateGradient(), Chebyshev()])
def test_compiled(solver):
    """torch.compile breaks the graph where the docstring says so, and changes no value and no gradient."""
    z, label = sample(24)
    layer = LabelSpreading(3, k=K, learn_alpha=True, learn_bandwidth=True, solver=solver).double()
    found = []
    for call in (layer, torch.compile(layer, backend="eager")):
        x = z.clone().requires_grad_()
        scores = call(x, label)
        found.append((scores, *torch.autograd.grad(scores.square().sum(), (x, *layer.parameters()))))
    for ours, compiled in zip(*found, strict=True):
        torch.testing.assert_close(compiled, ours, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("make", [LabelSpreading, LabelPropagation])
@pytest.mark.parametrize("metric", ["euclidean", "cosine"])
def test_forward_mode_reaches_the_embeddings(make, metric):
    z, direction = torch.randn(2, 20, 3, generator=seeded(0), dtype=torch.float64)
    label = torch.full((20,), -1)
    label[:2] = torch.arange(2)
    layer = make(2, k=4, metric=metric)

    def scores(z):
        return layer(z, label)

    step = 1e-6
    expected = (scores(z + step * direction) - scores(z - step * direction)) / (2 * step)
    torch.testing.assert_close(torch.func.jvp(scores, (z,), (direction,))[1], expected, rtol=1e-6, atol=1e-8)
    with forward_ad.dual_level():
        found = forward_ad.unpack_dual(scores(forward_ad.make_dual(z, direction))).tangent
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-8)
    # Forward over reverse, and many directions at once.
    torch.testing.assert_close(torch.func.jacfwd(scores)(z), torch.func.jacrev(scores)(z))
