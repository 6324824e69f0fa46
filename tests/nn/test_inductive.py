import io

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from lspread.errors import ConfigError, GraphError
from lspread.graph import build_graph, find_neighbors, normalize_graph
from lspread.labels import label_matrix, spread_labels
from lspread.nn import InductiveHead
from tests.reference import seeded
from tests.test_fake_cuda import needs_slices

WEIGHTS = ["self_tuning", "gaussian", "cosine", "uniform"]


def problem(n=40, m=12, d=4, num_classes=3, dtype=torch.float64):
    generator = seeded()
    bank = torch.randn(n, d, generator=generator, dtype=torch.float64)
    scores = torch.rand(n, num_classes, generator=generator, dtype=torch.float64)
    return bank.to(dtype), scores.to(dtype), torch.randn(m, d, generator=generator, dtype=torch.float64).to(dtype)


def vote(bank, scores, x, k, weight, bandwidth=1.0, metric="euclidean"):
    """Delalleau et al. 2005, equation 7, point by point."""
    probability = scores / scores.sum(1, keepdim=True)
    if metric == "cosine" or weight == "cosine":
        bank, x = bank / bank.norm(dim=1, keepdim=True), x / x.norm(dim=1, keepdim=True)
    width = torch.cdist(bank, bank).sort(1).values[:, k]
    out = []
    for point in x:
        distance = (bank - point).norm(dim=1)
        near = distance.argsort()[:k]
        d = distance[near]
        w = {
            "self_tuning": torch.exp(-(d**2) / (bandwidth**2 * d[-1] * width[near])),
            "gaussian": torch.exp(-(d**2) / (2 * bandwidth**2)),
            "cosine": (bank[near] @ point).clamp(min=0) ** 3,
            "uniform": torch.ones_like(d),
        }[weight]
        out.append((w[:, None] * probability[near]).sum(0) / w.sum())
    return torch.stack(out)


@pytest.mark.parametrize("weight", WEIGHTS)
@pytest.mark.parametrize("metric", ["euclidean", "cosine"])
@pytest.mark.parametrize("bandwidth", [1.0, 0.4])
def test_against_a_loop(weight, metric, bandwidth):
    bank, scores, x = problem()
    head = InductiveHead(bank, scores, k=5, weight=weight, metric=metric, bandwidth=bandwidth)
    wanted = vote(bank, scores, x, 5, weight, bandwidth, metric)
    torch.testing.assert_close(head(x), wanted, rtol=0, atol=1e-10)
    single = InductiveHead(bank.float(), scores.float(), k=5, weight=weight, metric=metric, bandwidth=bandwidth)
    torch.testing.assert_close(single(x.float()).double(), wanted, rtol=0, atol=1e-5)


def test_a_far_bank_and_far_points():
    """Neighbours are measured by differences, and weights are relative to the nearest."""
    bank, scores, x = problem()
    wanted = vote(bank, scores, x, 5, "gaussian", 0.3)
    far = InductiveHead((bank + 1000).float(), scores.float(), k=5, weight="gaussian", bandwidth=0.3)
    torch.testing.assert_close(far((x + 1000).float()).double(), wanted, rtol=0, atol=1e-2)
    for weight in WEIGHTS:
        found = InductiveHead(bank, scores, k=5, weight=weight, bandwidth=1e-3 if weight == "gaussian" else 1.0)(
            1e6 * x
        )
        torch.testing.assert_close(found.sum(1), torch.ones(12).double())


def test_neighbors_it_finds_are_those_of_the_search():
    bank, scores, _ = problem(300, num_classes=2)
    head = InductiveHead(bank[50:].float(), scores[50:].float(), k=7)
    _, index = head._nearest(bank[:50].float())
    wanted = torch.cdist(bank[:50], bank[50:]).argsort(1)[:, :7]
    assert torch.equal(index, wanted)


@pytest.mark.parametrize("radius", [1e-2, 1e-3, 1e-5])
@pytest.mark.parametrize("offset", [0.0, 1000.0])
def test_tight_clusters_far_apart(radius, offset):
    """Where float32 products lose more digits than the spare candidates make good."""
    generator = seeded(3)
    center = 10 * torch.randn(8, 16, generator=generator) + offset
    bank, x = (
        (center[torch.arange(n) % 8] + radius * torch.randn(n, 16, generator=generator)).float() for n in (1600, 80)
    )
    scores = torch.rand(1600, 3, generator=generator)
    head, wide = InductiveHead(bank, scores, k=5), InductiveHead(bank.double(), scores.double(), k=5)
    distance = torch.cdist(x.double(), bank.double(), compute_mode="donot_use_mm_for_euclid_dist")
    wanted = distance.topk(5, largest=False).values
    torch.testing.assert_close(distance.gather(1, head._nearest(x)[1]), wanted, rtol=1e-5, atol=0)
    probability, farthest = head.vote(x)
    torch.testing.assert_close(farthest.double(), wanted[:, -1], rtol=1e-5, atol=0)
    if offset == 0 and radius > 1e-4:  # else many are equally far in float32
        torch.testing.assert_close(probability.double(), wide(x.double()), rtol=0, atol=1e-4)


@pytest.mark.parametrize("metric", ["euclidean", "cosine"])
def test_how_far_away_the_voters_are(metric):
    bank, scores, x = problem()
    head = InductiveHead(bank, scores, k=5, metric=metric)
    probability, distance = head.vote(x.requires_grad_())
    assert torch.equal(probability, head(x))
    assert not distance.requires_grad
    if metric == "cosine":
        bank, x = bank / bank.norm(dim=1, keepdim=True), x / x.norm(dim=1, keepdim=True)
    torch.testing.assert_close(distance, torch.cdist(x, bank).sort(1).values[:, 4])
    torch.testing.assert_close(head.width, torch.cdist(bank, bank).sort(1).values[:, 5])
    assert InductiveHead(bank, torch.zeros_like(scores)).vote(x)[1].isinf().all()


def test_new_points_get_the_labels_of_their_cluster():
    generator = seeded()
    true = torch.arange(120) % 2
    z = torch.randn(120, 3, generator=generator) + 5 * true[:, None]
    label = torch.where(torch.arange(120) < 4, true, -1)[:100]
    graph = normalize_graph(build_graph(z[:100], find_neighbors(z[:100], 8)))
    scores = spread_labels(graph, label_matrix(label, 2)).value
    assert torch.equal(InductiveHead(z[:100], scores)(z[100:]).argmax(1), true[100:])


# Ugly inputs


def test_rows_without_scores_have_no_vote():
    bank, scores, x = problem()
    scores[::2] = 0
    head = InductiveHead(bank, scores, k=5)
    assert head.embedding.shape == (20, 4)
    torch.testing.assert_close(head(x), InductiveHead(bank[1::2], scores[1::2], k=5)(x))


@pytest.mark.parametrize("weight", WEIGHTS)
def test_never_nan(weight):
    bank, scores, x = problem(dtype=torch.float32)
    same = torch.ones(6, 4)
    for embedding, rows, points in (
        (bank[:3], scores[:3], x),  # k > n
        (bank[:1], scores[:1], x),
        (bank, torch.zeros_like(scores), x),  # nobody has a score
        (same, scores[:6], torch.cat([same, 0 * same, -same])),  # all in one place, zero vectors, the other side
        (bank, scores, bank),  # the bank itself
        (bank, scores, x[:0]),
    ):
        points = points.clone().requires_grad_()
        found = InductiveHead(embedding, rows, k=5, weight=weight)(points)
        assert found.shape == (len(points), 3)
        torch.testing.assert_close(found.sum(1), torch.ones(len(points)))
        (grad,) = (
            torch.autograd.grad(found.square().sum(), points, allow_unused=True) if found.requires_grad else (None,)
        )
        assert grad is None or torch.isfinite(grad).all()
    empty = InductiveHead(bank, torch.zeros_like(scores), weight=weight)(x)
    torch.testing.assert_close(empty, torch.full_like(empty, 1 / 3))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_and_autocast(dtype):
    bank, scores, x = problem(dtype=dtype)
    head = InductiveHead(bank, scores, k=5)
    wanted = InductiveHead(bank.float(), scores.float(), k=5)(x.float())
    with torch.autocast("cpu", torch.bfloat16):
        found = head(x)
    assert found.dtype == torch.float32
    assert torch.equal(found, wanted)
    assert torch.equal(head(x), wanted)


@pytest.mark.parametrize("weight", ["self_tuning", "gaussian", "cosine"])
def test_gradient(weight):
    bank, scores, x = problem(m=3)
    head = InductiveHead(bank, scores, k=4, weight=weight)
    assert torch.autograd.gradcheck(head, x.requires_grad_())
    assert torch.autograd.gradgradcheck(head, x)


# A module among modules


def test_state_dict_takes_a_bank_of_any_size():
    bank, scores, x = problem(dtype=torch.float32)
    head = InductiveHead(bank, scores, k=5)
    assert set(head.state_dict()) == {"embedding", "probability", "width"}
    assert list(head.parameters()) == []
    other = InductiveHead(torch.zeros(1, 4), torch.ones(1, 3), k=5)
    other.load_state_dict(head.state_dict())
    assert torch.equal(other(x), head(x))
    outer = torch.nn.Sequential(torch.nn.Identity(), InductiveHead(torch.zeros(1, 4), torch.ones(1, 3), k=5))
    outer.load_state_dict(torch.nn.Sequential(torch.nn.Identity(), head).state_dict())
    assert torch.equal(outer(x), head(x))
    with pytest.raises(RuntimeError, match="size mismatch for embedding"):
        InductiveHead(torch.zeros(1, 7), torch.ones(1, 3)).load_state_dict(head.state_dict())


@pytest.mark.parametrize("weight", WEIGHTS)
def test_export_with_any_batch_size(weight):
    bank, scores, _ = problem(dtype=torch.float32)
    head = InductiveHead(bank, scores, k=5, weight=weight)
    model = torch.nn.Sequential(torch.nn.Linear(6, 4), head).eval()
    example = torch.randn(8, 6, generator=seeded(1))
    program = torch.export.export(model, (example,), dynamic_shapes=({0: torch.export.Dim("m", max=2**31 - 1)},))
    file = io.BytesIO()
    torch.export.save(program, file)
    file.seek(0)
    loaded = torch.export.load(file).module()
    for num_rows in (2, 8, 33):
        rows = torch.randn(num_rows, 6, generator=seeded(num_rows))
        torch.testing.assert_close(loaded(rows), model(rows), rtol=0, atol=1e-6)


def test_traces_without_a_break():
    bank, scores, x = problem(dtype=torch.float32)
    head = InductiveHead(bank, scores, k=5)
    compiled = torch.compile(head, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(x), head(x))


@needs_slices
@pytest.mark.filterwarnings("ignore:CUDA is not available:UserWarning")
@pytest.mark.parametrize("weight", WEIGHTS)
def test_nothing_is_read_from_a_gpu(weight):
    bank, scores, x = problem(dtype=torch.float32)
    head = InductiveHead(bank, scores, k=5, weight=weight)
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        for name, buffer in head.named_buffers():
            setattr(head, name, mode.from_tensor(buffer).to("cuda"))
        found = head(mode.from_tensor(x).to("cuda"))
    assert found.shape == (12, 3)
    assert found.device.type == "cuda"


def test_what_print_shows():
    bank, scores, _ = problem()
    assert "bank=(40, 4), num_classes=3, k=5, weight='cosine'" in repr(
        InductiveHead(bank, scores, k=5, weight="cosine")
    )


def test_errors():
    bank, scores, x = problem()
    with pytest.raises(
        GraphError, match=r"needs embeddings \(n, d\) and their scores \(n, c\); got \(40, 4\) and \(39"
    ):
        InductiveHead(bank, scores[1:])
    with pytest.raises(ConfigError, match=r"weight must be one of .*; got 'flat'"):
        InductiveHead(bank, scores, weight="flat")
    with pytest.raises(ConfigError, match=r"metric must be one of .*; got 'l1'"):
        InductiveHead(bank, scores, metric="l1")
    for options in ({"k": 0}, {"bandwidth": 0.0}):
        with pytest.raises(ConfigError, match=r"k must be at least 1 and bandwidth greater than 0"):
            InductiveHead(bank, scores, **options)
    for wrong in (x[0], x[:, :3]):
        with pytest.raises(GraphError, match=r"x must hold embeddings \(m, 4\), as wide as the bank"):
            InductiveHead(bank, scores)(wrong)


@pytest.mark.parametrize("weight", WEIGHTS)
def test_vectors_of_length_zero_have_no_direction(weight):
    """By the cosine they neither vote nor are voted on; in the search they stand at right angles to all."""
    generator = torch.Generator().manual_seed(0)
    z = torch.randn(40, 8, generator=generator)
    scores = torch.eye(2)[torch.arange(40) % 2]
    x = torch.randn(9, 8, generator=generator)
    plain = InductiveHead(z, scores, k=5, weight=weight, metric="cosine")
    zeros, ones = torch.zeros(6, 8), torch.eye(2)[torch.zeros(6, dtype=torch.int64)]
    head = InductiveHead(torch.cat([z, zeros]), torch.cat([scores, ones]), k=5, weight=weight, metric="cosine")
    torch.testing.assert_close(head(x), plain(x))
    probability, distance = head.vote(torch.zeros(1, 8))
    assert probability.tolist() == [[0.5, 0.5]]
    assert distance.item() == pytest.approx(2**0.5)


@pytest.mark.parametrize("far", [1e11, 1e18])
def test_a_row_far_off_takes_no_digits_of_the_others(far):
    bank = torch.randn(200, 4, generator=seeded(21))
    x = torch.randn(30, 4, generator=seeded(22))
    probability = torch.rand(200, 3, generator=seeded(23))
    expected = InductiveHead(bank, probability, k=5, metric="euclidean", weight="uniform")(x)
    bank, probability = torch.cat([bank, torch.full((1, 4), far)]), torch.cat([probability, torch.ones(1, 3)])
    found = InductiveHead(bank, probability, k=5, metric="euclidean", weight="uniform")(x)
    torch.testing.assert_close(found, expected)
