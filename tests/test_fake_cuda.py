"""The hot path on a GPU that need not exist: fake tensors know shapes and devices, but no numbers.

Reading a number (`.item()`, `.tolist()`, `bool(tensor)`, `nonzero`) raises there, and mixing devices does too, so a
forward pass that runs shows that nothing stops the device. A second guard looks at every operation for results on the
CPU. Torch's engine refuses backward passes of CUDA tensors where there is no GPU: `backward` below walks their nodes.
"""

from itertools import product

import pytest
import torch
from torch._subclasses.fake_tensor import DataDependentOutputException, DynamicOutputShapeException, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from lspread.data import mix_images
from lspread.graph import (
    CosinePower,
    Gaussian,
    SelfTuning,
    Uniform,
    build_graph,
    edge_dot,
    edge_matmul,
    find_neighbors,
    normalize_graph,
    whiten,
)
from lspread.labels import (
    PropagationOperator,
    SpreadOperator,
    contrastive_loss,
    label_matrix,
    mean_shift,
    poisson_labels,
    propagate_labels,
    pseudo_label_loss,
    pseudo_labels,
    sharpen_pseudo_labels,
    sinkhorn_prior,
    spread_labels,
    spread_score_loss,
)
from lspread.nn import LabelPropagation, LabelSpreading, PoissonLearning
from lspread.solve import AutoSolver, Chebyshev, ConjugateGradient, Direct, FixedPoint, linear_solve

needs_slices = pytest.mark.skipif(
    torch.__version__.startswith("2.6.") and not torch.cuda.is_available(),
    reason="torch 2.6 slices fake CUDA tensors only where a GPU is, and may abort",
)
pytestmark = needs_slices

# None of these looks at a residual.
SOLVERS = {
    "conjugate_gradient": ConjugateGradient(max_steps=10, check_every=0),
    "jacobi": ConjugateGradient(max_steps=2, check_every=0, preconditioner="jacobi"),
    "chebyshev": Chebyshev(max_steps=3),
    "fixed_point": FixedPoint(max_steps=2, check_every=0),
    "direct": Direct(),
    "auto": AutoSolver(iterative=ConjugateGradient(max_steps=2, check_every=0), max_direct_nodes=25),
}
SYNC = (DataDependentOutputException, DynamicOutputShapeException)


class StayOnDevice(TorchDispatchMode):
    """Refuse operations that read from the device, wait for it, or whose result has rows and lies on the CPU."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        assert "_local_scalar_dense" not in str(func), f"{func} reads from the device"
        if func in (torch.ops.aten._to_copy.default, torch.ops.aten.copy_.default):
            given = args[-1] if func is torch.ops.aten.copy_.default else args[0]
            is_sent = given.device.type == "cpu" and out.device.type == "cuda"
            assert not is_sent, f"{func} sends {tuple(given.shape)} to the device and waits until it has arrived"
        for leaf in tree_leaves(out):
            if isinstance(leaf, torch.Tensor) and leaf.device.type == "cpu":
                # Numbers go to the device with the kernel launch.
                assert leaf.numel() <= 1, f"{func} left {tuple(leaf.shape)} on the CPU"
        return out


@pytest.fixture
def device():
    with FakeTensorMode(), StayOnDevice():
        yield torch.device("cuda", 0)


def points(device, *shape, dtype=torch.float32):
    return torch.empty(*shape, device=device, dtype=dtype)


def labels(device, *shape):
    return torch.empty(*shape, device=device, dtype=torch.int64)


def on_device(*tensors):
    return all(tensor.device.type == "cuda" for tensor in tensors)


@pytest.mark.parametrize("shape", [(40, 5), (3, 20, 5), (1500, 4)])
@pytest.mark.parametrize("metric", ["euclidean", "cosine"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_find_neighbors(device, shape, metric, dtype):
    neighbors = find_neighbors(points(device, *shape, dtype=dtype), 3, metric=metric)
    num_nodes = torch.Size(shape[:-1]).numel()
    assert neighbors.index.shape == neighbors.distance.shape == (num_nodes, 3)
    assert on_device(neighbors.index, neighbors.distance, neighbors.ptr)
    assert neighbors.distance.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)


@pytest.mark.parametrize("shape", [(40, 5), (3, 20, 5)])
@pytest.mark.parametrize(
    ("symmetrize", "kernel"),
    [("mean", SelfTuning()), ("max", Gaussian(1.0)), ("mutual", CosinePower()), ("mean", Uniform())],
)
@pytest.mark.parametrize("needs_grad", [False, True])
def test_build_graph_of_fixed_size(device, shape, symmetrize, kernel, needs_grad):
    z = points(device, *shape).requires_grad_(needs_grad)
    neighbors = find_neighbors(z, 4, metric="cosine")
    graph = normalize_graph(build_graph(z, neighbors, kernel=kernel, symmetrize=symmetrize, coalesce=False))
    num_nodes = torch.Size(shape[:-1]).numel()
    assert graph.num_edges == num_nodes * 4 * (1 if symmetrize == "mutual" else 2)
    assert on_device(graph.edge_index, graph.edge_weight, graph.ptr)


def fixed_graph(device, *shape):
    z = points(device, *shape)
    return build_graph(z, find_neighbors(z, 4), coalesce=False)


@pytest.mark.parametrize("shape", [(40, 5), (3, 20, 5)])
@pytest.mark.parametrize("name", SOLVERS)
def test_spread_and_propagate(device, shape, name):
    graph = fixed_graph(device, *shape)
    if name in ("direct", "auto") and len(shape) == 3:
        # Dense blocks are shaped by the largest graph of a batch: the one documented read from the device.
        with pytest.raises(SYNC):
            spread_labels(normalize_graph(graph), points(device, graph.num_nodes, 3), solver=SOLVERS[name])
        return
    num_nodes = graph.num_nodes
    label = labels(device, num_nodes)
    targets = label_matrix(label, 3, balance=True, ptr=graph.ptr)
    alpha = torch.empty((), device=device)
    ridge = 0.1 if name == "chebyshev" else 0.0
    for found in (
        spread_labels(normalize_graph(graph), targets, solver=SOLVERS[name], on_failure="ignore"),
        spread_labels(normalize_graph(graph), targets, alpha=alpha, solver=SOLVERS[name], on_failure="ignore"),
        spread_labels(
            normalize_graph(graph),
            targets,
            alpha=points(device, num_nodes),
            solver=SOLVERS[name],
            initial=targets,
            on_failure="ignore",
        ),
        propagate_labels(graph, targets, label != -1, ridge=ridge, solver=SOLVERS[name], on_failure="ignore"),
        propagate_labels(graph, targets, label != -1, ridge=alpha, solver=SOLVERS[name], on_failure="ignore"),
        # Nothing is known of the spectrum there that Chebyshev could use.
        poisson_labels(graph, targets, prior="uniform", solver=SOLVERS["jacobi"], initial=targets, on_failure="ignore"),
    ):
        assert found.value.shape == (num_nodes, 3)
        assert found.residual.shape == found.error_bound.shape == (graph.num_graphs, 3)
        assert on_device(found.value, found.residual, found.error_bound, found.tolerance)


@pytest.mark.parametrize("name", ["fixed_point", "direct"])
def test_random_walk(device, name):
    graph = normalize_graph(fixed_graph(device, 30, 4), method="random_walk")
    found = spread_labels(graph, points(device, 30, 2), solver=SOLVERS[name], on_failure="ignore")
    assert on_device(found.value)


@pytest.mark.parametrize("transpose", [False, True])
def test_pieces_of_the_backward_pass(device, transpose):
    graph = normalize_graph(fixed_graph(device, 30, 4))
    operator = SpreadOperator.from_graph(graph, 0.9)
    grad, f = points(device, 30, 3), points(device, 30, 3)
    adjoint = linear_solve(operator.transpose(), grad, solver=SOLVERS["conjugate_gradient"], on_failure="ignore").value
    to_weight = edge_dot(operator.layout, adjoint, f)
    to_x = edge_matmul(operator.layout, graph.edge_weight, grad, transpose=transpose)
    assert to_weight.shape == graph.edge_weight.shape
    assert to_x.shape == (30, 3)
    is_free = torch.empty(30, dtype=torch.bool, device=device)
    held = PropagationOperator(operator.layout, graph.edge_weight, points(device, 30), is_free, 0.1, graph.ptr)
    out = linear_solve(held.transpose(), grad, solver=SOLVERS["jacobi"], on_failure="ignore").value
    assert on_device(adjoint, to_weight, to_x, out)


@pytest.mark.filterwarnings("ignore:CUDA is not available:UserWarning")  # autocast, which the layer leaves anyway
@pytest.mark.parametrize("kind", ["one", "stacked", "soft", "graph", "half", "learn"])
@pytest.mark.parametrize(
    ("make", "name"),
    [
        (LabelSpreading, "conjugate_gradient"),
        (LabelSpreading, "fixed_point"),
        (LabelPropagation, "jacobi"),
        (PoissonLearning, "conjugate_gradient"),
    ],
)
def test_layers(device, kind, make, name):
    options = {"learn_bandwidth": True} if kind == "learn" else {}
    if kind == "learn" and make is LabelSpreading:
        options["learn_alpha"] = True
    with torch.device(device):
        layer = make(3, k=4, solver=SOLVERS[name], on_failure="ignore", **options)
    shape = (2, 20) if kind == "stacked" else (40,)
    z = points(device, *shape, 5, dtype=torch.bfloat16 if kind == "half" else torch.float32).requires_grad_()
    label = points(device, 40, 3) if kind == "soft" else labels(device, *shape)
    with torch.autocast("cuda", torch.bfloat16):
        found = layer(fixed_graph(device, 40, 5) if kind == "graph" else z, label)
    assert found.shape == (*shape, 3)
    assert found.dtype == torch.float32
    assert on_device(found)
    assert found.requires_grad == (kind != "graph")


@pytest.mark.parametrize("num_graphs", [1, 2])
def test_scaling_and_shifting(device, num_graphs):
    ptr = labels(device, num_graphs + 1)
    scores = points(device, 40, 3)
    matched = sinkhorn_prior(scores, points(device, 3), ptr=ptr, max_steps=3, check_every=0, on_failure="ignore")
    assert on_device(matched, mean_shift(scores, ptr=ptr), mean_shift(scores))


def backward(outputs, inputs, grads, create_graph=False, allow_unused=False):
    """Do what torch.autograd.grad does, node by node in Python: from the last to the first, each with all its grads."""
    edges = {}  # (node, output number): gradient
    for output, grad in zip(outputs, grads, strict=True):
        edges[output.grad_fn, output.output_nr] = grad
    wanted = {}
    for number, leaf in enumerate(inputs):
        node = leaf.grad_fn if leaf.grad_fn is not None else leaf.view_as(leaf).grad_fn.next_functions[0][0]
        wanted[node, leaf.output_nr] = number
    found = [None] * len(inputs)
    order, seen = [], set()

    def visit(node):
        if node not in seen:
            seen.add(node)
            for following, _ in node.next_functions:
                if following is not None:
                    visit(following)
            order.append(node)

    for output in outputs:
        visit(output.grad_fn)
    with torch.set_grad_enabled(create_graph):
        for node in reversed(order):
            slots = [key for key in edges if key[0] is node]
            for key in slots:
                if key in wanted:
                    found[wanted[key]] = edges[key]
            if not slots or node.name() == "torch::autograd::AccumulateGrad":
                continue
            given = [edges.get((node, slot)) for slot in range(1 + max(slot for _, slot in slots))]
            if hasattr(node, "needs_input_grad"):  # a node made in Python gives one result per argument
                results = [grad for grad, need in zip(node.apply(*given), node.needs_input_grad, strict=True) if need]
            else:
                results = node(*given)
                results = results if isinstance(results, tuple) else (results,)
                results = [grad for grad, (to, _) in zip(results, node.next_functions, strict=True) if to is not None]
            ends = [end for end in node.next_functions if end[0] is not None]
            for (following, slot), grad in zip(ends, results, strict=True):
                if grad is not None:
                    grad = grad.sum_to_size(following._input_metadata[slot].shape)  # what was broadcast on the way
                    old = edges.get((following, slot))
                    edges[following, slot] = grad if old is None else old + grad
    assert allow_unused or all(grad is not None for grad in found)
    return tuple(found)


@pytest.fixture
def walk(monkeypatch):
    """Walk the nodes, and let the solve's own backward pass do the same."""

    def grad(outputs, inputs, grad_outputs, create_graph=False, allow_unused=False):
        return backward(outputs, inputs, grad_outputs, create_graph, allow_unused)

    monkeypatch.setattr(torch.autograd, "grad", grad)
    return backward


def test_the_walk_itself(walk):
    """On the CPU, where the engine gives the second opinion."""
    z = torch.randn(20, 3, generator=torch.Generator().manual_seed(0)).requires_grad_()
    targets = torch.eye(20)[:, :2].clone().requires_grad_()
    graph = normalize_graph(build_graph(z, find_neighbors(z, 4), coalesce=False))
    loss = spread_labels(graph, targets, solver=Chebyshev()).value.pow(2).sum()
    found = walk([loss], [z, targets], [torch.ones(())])
    loss.backward()
    torch.testing.assert_close(found, (z.grad, targets.grad))


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        *product(["chebyshev", "conjugate_gradient", "fixed_point"], [(40, 5), (3, 20, 5)]),
        ("auto", (40, 5)),  # a batch is refused, see test_spread_and_propagate
    ],
)
@pytest.mark.parametrize("learns_alpha", [False, True])
def test_backward_from_loss_to_embeddings(device, walk, shape, name, learns_alpha):
    z = points(device, *shape).requires_grad_()
    alpha = torch.empty((), device=device, requires_grad=True) if learns_alpha else 0.9
    graph = normalize_graph(build_graph(z, find_neighbors(z, 4), coalesce=False))
    targets = points(device, graph.num_nodes, 3).requires_grad_()
    found = spread_labels(graph, targets, alpha=alpha, solver=SOLVERS[name], on_failure="ignore")
    loss = torch.nn.functional.cross_entropy(found.value, labels(device, graph.num_nodes))
    leaves = [z, targets, *([alpha] if learns_alpha else [])]
    grads = walk([loss], leaves, [torch.ones((), device=device)])
    assert [grad.shape for grad in grads] == [leaf.shape for leaf in leaves]
    assert on_device(*grads)


@pytest.mark.parametrize("prior", ["none", "uniform", "labeled", "given"])
def test_pseudo_labels_and_losses(device, prior):
    label = labels(device, 40)
    given = points(device, 3) if prior == "given" else prior
    pseudo = pseudo_labels(points(device, 40, 3), label, prior=given)
    assert on_device(pseudo.label, pseudo.weight, pseudo.class_weight, pseudo.probability, pseudo.num_unreached)
    sharp = sharpen_pseudo_labels(pseudo, 0.5)
    assert on_device(sharp.weight, sharp.probability)
    index = labels(device, 8)
    for loss in (
        pseudo_label_loss(points(device, 8, 3), pseudo, index),
        pseudo_label_loss(points(device, 8, 3), pseudo, index, reduction="weighted_mean"),
        spread_score_loss(points(device, 8, 3), index, points(device, 8)),
        contrastive_loss(points(device, 8, 4), points(device, 8, 4)),
    ):
        assert loss.shape == ()
        assert on_device(loss)
    assert on_device(whiten(points(device, 20, 4)))


@pytest.mark.parametrize("amounts", [(1.0, 0.0), (0.0, 1.0), (1.0, 1.0)])
def test_images_are_mixed(device, amounts, monkeypatch):
    # torch.distributions.Beta draws with an operation that has no fake.
    monkeypatch.setattr("lspread.data.mixing._beta", lambda _, device: torch.rand((), device=device))
    assert on_device(*mix_images(points(device, 4, 2, 6, 6), *amounts))


def test_the_guard_itself(device):
    """What is said to read from the device does, and the guard sees it."""
    z = points(device, 40, 5)
    with pytest.raises(SYNC):
        build_graph(z, find_neighbors(z, 4), coalesce=True)
    graph = normalize_graph(fixed_graph(device, 40, 5))
    targets = points(device, 40, 3)
    with pytest.raises(SYNC):
        spread_labels(graph, targets, solver=ConjugateGradient(check_every=5), on_failure="ignore")
    with pytest.raises(SYNC):
        spread_labels(graph, targets, solver=SOLVERS["fixed_point"], on_failure="warn")
    solution = spread_labels(graph, targets, solver=SOLVERS["fixed_point"], on_failure="ignore")
    with pytest.raises(SYNC):
        _ = solution.status
    with pytest.raises(AssertionError, match="on the CPU"):
        targets.cpu()
