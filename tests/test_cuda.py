"""The same numbers on a real GPU as on the CPU, and no step of the hot path that makes the CPU wait for it.

Skipped where there is no GPU; test_fake_cuda.py then shows that the hot path stays on the device.
"""

import warnings

import pytest
import torch
from lightning.pytorch import Callback, Trainer

from lspread.active import Coverage, make_pool
from lspread.cli.main import main
from lspread.data import Digits, TensorData
from lspread.estimators import LabelPropagationClassifier, LabelSpreadingClassifier, PoissonClassifier
from lspread.graph import (
    CosinePower,
    Gaussian,
    SelfTuning,
    Uniform,
    build_graph,
    connected_components,
    find_neighbors,
    fit_whitening,
    normalize_graph,
    recall_at_k,
)
from lspread.labels import (
    label_matrix,
    poisson_labels,
    propagate_labels,
    pseudo_label_loss,
    pseudo_labels,
    reinforce_labels,
    sinkhorn_prior,
    spread_labels,
)
from lspread.lit import FewLabelClassifier, RampedAveraging, RefreshPseudoLabels
from lspread.lit.saved_model import load_classifier
from lspread.nn import InductiveHead, LabelPropagation, LabelSpreading, PoissonLearning, SmallResNet, embed
from lspread.solve import AutoSolver, Chebyshev, ConjugateGradient, Direct, FixedPoint
from lspread.typing import UNLABELED

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")

SOLVERS = {
    "conjugate_gradient": ConjugateGradient(rtol=1e-10),
    "jacobi": ConjugateGradient(rtol=1e-10, preconditioner="jacobi"),
    "chebyshev": Chebyshev(rtol=1e-10),
    "fixed_point": FixedPoint(rtol=1e-10, max_steps=5000),
    "direct": Direct(),
    "auto": AutoSolver(),
}


def points(*shape, dtype=torch.float64, seed=0):
    return torch.randn(*shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))


def some_labels(num_items, num_classes=3, num_given=9, seed=0):
    generator = torch.Generator().manual_seed(seed)
    label = torch.full((num_items,), UNLABELED)
    label[torch.randperm(num_items, generator=generator)[:num_given]] = torch.arange(num_given) % num_classes
    return label


def assert_same(on_cuda, on_cpu, **tolerance):
    assert on_cuda.device.type == "cuda"
    torch.testing.assert_close(on_cuda.cpu(), on_cpu, **tolerance)


@pytest.mark.parametrize("shape", [(300, 5), (3, 200, 5), (6000, 16)])
@pytest.mark.parametrize("metric", ["euclidean", "cosine"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_neighbors(shape, metric, dtype):
    z = points(*shape, dtype=dtype)
    ours, theirs = find_neighbors(z.cuda(), 7, metric=metric), find_neighbors(z, 7, metric=metric)
    assert_same(ours.distance, theirs.distance, rtol=1e-4, atol=1e-5)
    assert (ours.index.cpu() == theirs.index).double().mean() > 0.999


def test_approximate_neighbors():
    z = points(6000, 16, dtype=torch.float32).cuda()
    found = find_neighbors(z, 10, backend="ivf")
    assert found.index.device.type == "cuda"
    assert recall_at_k(found, z).value > 0.8


@pytest.mark.parametrize("kernel", [SelfTuning(), Gaussian(1.0), CosinePower(), Uniform()])
@pytest.mark.parametrize("symmetrize", ["mean", "max", "mutual"])
@pytest.mark.parametrize("shape", [(200, 5), (3, 100, 5)])
def test_graph(kernel, symmetrize, shape):
    def make(z):
        neighbors = find_neighbors(z, 6, metric="cosine" if isinstance(kernel, CosinePower) else "euclidean")
        return normalize_graph(build_graph(z, neighbors, kernel=kernel, symmetrize=symmetrize))

    z = points(*shape)
    ours, theirs = make(z.cuda()), make(z)
    assert_same(ours.edge_index, theirs.edge_index)
    assert_same(ours.edge_weight, theirs.edge_weight)
    assert_same(connected_components(ours), connected_components(theirs))


@pytest.mark.parametrize("name", SOLVERS)
@pytest.mark.parametrize("shape", [(300, 5), (3, 100, 5)])
def test_scores_and_gradients(name, shape):
    label = some_labels(300, num_given=30)

    def scores(z, label):
        z = z.detach().requires_grad_()
        graph = build_graph(z, find_neighbors(z, 6))
        alpha = torch.tensor(0.9, dtype=z.dtype, device=z.device, requires_grad=True)
        targets = label_matrix(label, 3, balance=True, ptr=graph.ptr).to(z.dtype)
        solver = SOLVERS[name]
        found = [spread_labels(normalize_graph(graph), targets, alpha=alpha, solver=solver).value]
        if name != "fixed_point":  # which may diverge there
            ridge = 0.1
            found.append(propagate_labels(graph, targets, label != UNLABELED, ridge=ridge, solver=solver).value)
        loss = sum((one * torch.arange(3, device=z.device)).sin().sum() for one in found)
        loss.backward()
        return [*found, z.grad, alpha.grad]

    z = points(*shape)
    for ours, theirs in zip(scores(z.cuda(), label.cuda()), scores(z, label), strict=True):
        assert_same(ours, theirs, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("name", ["conjugate_gradient", "jacobi", "direct"])
def test_poisson(name):
    def scores(z, label):
        graph = build_graph(z, find_neighbors(z, 8))
        return poisson_labels(graph, label_matrix(label, 3).to(z.dtype), solver=SOLVERS[name]).value

    z, label = points(300, 5), some_labels(300)
    assert_same(scores(z.cuda(), label.cuda()), scores(z, label), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("make", [LabelSpreading, LabelPropagation, PoissonLearning])
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_layers(make, dtype):
    def answer(z, label):
        layer = make(3, k=6, learn_bandwidth=True).to(z.device)
        z = z.detach().to(dtype).requires_grad_()
        with torch.autocast("cuda", torch.bfloat16):  # as in a training step; the layer leaves it
            probability = layer(z, label)
        probability[:, 0].square().sum().backward()
        return probability, z.grad

    z, label = points(300, 5), some_labels(300)
    tolerance = {"rtol": 1e-3, "atol": 1e-4} if dtype == torch.float64 else {"rtol": 0.05, "atol": 0.05}
    for ours, theirs in zip(answer(z.cuda(), label.cuda()), answer(z, label), strict=True):
        assert ours.isfinite().all()
        assert_same(ours, theirs, **tolerance)


def test_second_derivatives():
    z = points(24, 3).cuda()
    targets = label_matrix(some_labels(24, 2, 6), 2).double().cuda().requires_grad_()
    neighbors = find_neighbors(z, 4)

    def scores(z, targets):
        graph = normalize_graph(build_graph(z, neighbors, coalesce=False))
        return spread_labels(graph, targets, alpha=0.8, solver=SOLVERS["conjugate_gradient"]).value

    inputs = (z.requires_grad_(), targets)
    assert torch.autograd.gradcheck(scores, inputs, nondet_tol=1e-8)
    assert torch.autograd.gradgradcheck(scores, inputs, nondet_tol=1e-8)


def test_nothing_waits():
    """From embeddings to loss and back, as many times as a training step does it."""
    z = torch.randn(500, 8, device="cuda").requires_grad_()
    label, rows = torch.randint(3, (500,), device="cuda"), torch.arange(64, device="cuda")
    solver = ConjugateGradient(max_steps=20, check_every=0)
    layer = LabelSpreading(3, k=6, solver=solver, on_failure="ignore", learn_alpha=True, learn_bandwidth=True).cuda()
    torch.cuda.set_sync_debug_mode("error")  # raises where the CPU waits for the GPU
    try:
        for _ in range(2):
            probability = layer(z, label)
            pseudo = pseudo_labels(probability.detach(), label, prior="uniform")
            loss = pseudo_label_loss(probability[:64].log(), pseudo, rows) + probability.square().mean()
            loss.backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("averaging", ["none", "ours"])
def test_a_training_step_does_not_wait(averaging, tmp_path):
    """Between the first steps, which set things up, and the last, which logs."""

    class Watch(Callback):
        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            if batch_idx == 3:
                torch.cuda.synchronize()
                torch.cuda.set_sync_debug_mode("warn")

        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            if batch_idx == 6:
                torch.cuda.set_sync_debug_mode("default")

    label = torch.arange(600) % 3
    image = torch.randint(0, 256, (600, 1, 12, 12), dtype=torch.uint8)
    data = TensorData(image, label, ["a", "b", "c"], num_labels_per_class=5, batch_size=60, labeled_batch_size=12)
    model = FewLabelClassifier(SmallResNet(1, (8, 16)), 3, mixup=0.5, supervised_weight=0.3)
    trainer = Trainer(
        max_epochs=1,
        accelerator="gpu",
        devices=1,
        precision="bf16-mixed",
        callbacks=[RefreshPseudoLabels(k=5), Watch(), *([RampedAveraging()] if averaging == "ours" else [])],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=tmp_path,
    )
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            trainer.fit(model, datamodule=data)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    waits = [f"{one.filename}:{one.lineno}" for one in caught if "synchronizing CUDA operation" in str(one.message)]
    assert not waits


@pytest.mark.parametrize("prior", ["none", "uniform", "labeled"])
def test_from_embeddings_to_pseudo_labels(prior):
    def find(z, label):
        whitened = fit_whitening(z, num_components=6, ridge=1e-3)(z)
        graph = normalize_graph(build_graph(whitened, find_neighbors(whitened, 7, metric="cosine")))
        solution = reinforce_labels(graph, label, 3, rounds=3, prior=prior, solver=SOLVERS["conjugate_gradient"])
        matched = sinkhorn_prior(solution.value, torch.tensor([0.3, 0.33, 0.37], dtype=z.dtype, device=z.device))
        return graph, solution.value, matched, pseudo_labels(solution.value, label, prior=prior)

    centers = points(3, 8, seed=1)
    z, label = centers[torch.arange(600) % 3] + points(600, 8), torch.full((600,), UNLABELED)
    label[:9] = torch.arange(9) % 3
    (graph, ours, matched, pseudo), (_, theirs, expected, other) = find(z.cuda(), label.cuda()), find(z, label)
    assert_same(ours, theirs, rtol=1e-5, atol=1e-7)
    assert_same(matched, expected, rtol=1e-4, atol=1e-6)
    assert_same(pseudo.label, other.label)
    assert_same(pseudo.weight, other.weight, rtol=1e-4, atol=1e-5)
    pool = make_pool(z.cuda(), graph, label.cuda(), 3)
    assert len(set(Coverage(seed=0)(pool, 12).index.tolist())) == 12
    heads = InductiveHead(z.cuda(), ours), InductiveHead(z, theirs)
    assert_same(heads[0](z[:50].cuda()), heads[1](z[:50]), rtol=1e-4, atol=1e-6)


def test_embed():
    image = torch.randint(0, 256, (300, 1, 12, 12), dtype=torch.uint8)
    backbone = SmallResNet(1, (8, 16)).eval()
    rows = torch.arange(300).split(64)
    batches = [{"image": part, "index": index} for part, index in zip(image.split(64), rows, strict=True)]
    expected = embed(backbone, batches)
    found = embed(backbone.cuda(), batches)
    assert_same(found, expected, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("make", [LabelSpreadingClassifier, LabelPropagationClassifier, PoissonClassifier])
def test_estimators(make):
    data = Digits(num_labels_per_class=5)
    data.setup()
    x = data.images.fetch(data.split.pool).flatten(1).double().numpy()
    y = data.given_label[data.split.pool].numpy()
    ours, theirs = make(device="cuda").fit(x, y), make(device="cpu").fit(x, y)
    assert (ours.transduction_ == theirs.transduction_).mean() > 0.995
    assert (ours.predict(x[:100]) == theirs.predict(x[:100])).mean() > 0.98


def test_a_run_on_the_gpu_serves_on_the_cpu(tmp_path):
    """Train, go on, test, predict, save: everything that the command does, then load it where no GPU is."""
    run = tmp_path / "run"
    asked = ["fit", "--config", "configs/digits.yaml", "--run_dir", str(run), "--trainer.accelerator=gpu"]
    assert main([*asked, "--trainer.max_epochs=12", "--model.warmup_epochs=2"]) == 0
    assert main(["predict", str(run)]) == 0
    saved = load_classifier(run)
    assert all(weight.device.type == "cpu" for weight in saved.backbone.parameters())
    checkpoint = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True, map_location="cpu")
    assert checkpoint["epoch"] == 11
