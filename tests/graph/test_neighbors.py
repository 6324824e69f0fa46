import pytest
import torch

from lspread.errors import GraphError
from lspread.graph import exact, find_neighbors
from tests import reference
from tests.reference import seeded

METRICS = ["euclidean", "cosine"]


def check_exact(neighbors, z, k, metric="euclidean", atol=1e-6):
    """Compare with all sorted distances; ties may come in any order, so distances are compared, not numbers."""
    index, distance = neighbors.index, neighbors.distance.double()
    every = reference.distances(z, metric)
    wanted = every.topk(k, largest=False).values
    torch.testing.assert_close(distance, wanted, rtol=1e-5, atol=atol)
    torch.testing.assert_close(distance, every.gather(1, index), rtol=1e-5, atol=atol)
    assert (index != torch.arange(len(z))[:, None]).all(), "a node is its own neighbor"
    assert all(len(set(row)) == k for row in index.tolist()), "a neighbor is listed twice"
    assert (neighbors.distance.diff(dim=1) >= 0).all(), "not nearest first"


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("n", "d", "k"), [(2, 1, 1), (7, 3, 6), (60, 5, 15), (300, 2, 7)])
def test_exact(metric, dtype, n, d, k):
    z = torch.randn(n, d, generator=seeded(n), dtype=dtype)
    neighbors = find_neighbors(z, k, metric=metric)
    check_exact(neighbors, z, k, metric)
    assert neighbors.index.dtype == torch.int64
    assert neighbors.distance.dtype == dtype
    assert (neighbors.k, neighbors.num_nodes, neighbors.metric) == (k, n, metric)
    assert neighbors.ptr.tolist() == [0, n]


@pytest.mark.parametrize(
    ("metric", "tile", "shift"),
    [
        ("euclidean", 1, 0.0),
        ("euclidean", 1 << 16, 0.0),
        ("euclidean", 1 << 24, 30.0),
        ("cosine", 1 << 16, 30.0),
        ("cosine", 1 << 24, 0.0),
    ],
)
def test_exact_by_groups_and_tiles(monkeypatch, metric, tile, shift):
    monkeypatch.setattr(exact, "CPU_TILE_ELEMENTS", tile)
    monkeypatch.setattr(exact, "MANY_ROWS", 7)
    monkeypatch.setattr(exact, "LEAST_ROWS", 7)
    n, k = 1500 if tile > 1 else 1409, 3  # the grouped path starts at 4 * 8 * (3 + 8) nodes
    z = torch.randn(n, 6, generator=seeded(1)) + shift
    assert n >= 4 * exact.GROUP * (k + exact.SPARE)
    check_exact(find_neighbors(z, k, metric=metric), z, k, metric)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_grouped_path_with_duplicates(dtype):
    # Ten places only, 150 points each: every neighbor is a duplicate, and groups are full of ties.
    place = torch.randn(10, 4, generator=seeded(2), dtype=dtype)
    z = place[torch.arange(1500) % 10]
    neighbors = find_neighbors(z, 3)
    check_exact(neighbors, z, 3)
    assert (neighbors.distance == 0).all()


def test_duplicates_stay_and_self_goes():
    z = torch.tensor([[1.0, 2.0]]).expand(5, 2)
    neighbors = find_neighbors(z, 4)
    assert neighbors.distance.eq(0).all()
    assert neighbors.index.sort(1).values.tolist() == [[j for j in range(5) if j != i] for i in range(5)]


def test_distances_are_free_of_cancellation():
    # |x|^2 - 2xy + |y|^2 in float32 would answer 0 or 0.25 here.
    z = 1000 + 0.01 * torch.arange(8.0, dtype=torch.float64)[:, None]
    found = find_neighbors(z.float(), 1).distance.double()
    truth = (z.float().double()[1] - z.float().double()[0]).item()
    assert found[0, 0].item() == pytest.approx(truth, rel=1e-6)


@pytest.mark.parametrize(("dtype", "gap"), [(torch.float32, 1e3), (torch.float32, 1e5), (torch.float64, 1e6)])
def test_far_clusters(dtype, gap):
    z = torch.randn(200, 16, generator=seeded(3), dtype=torch.float64)
    z[100:] += gap
    z = z.to(dtype)
    check_exact(find_neighbors(z, 5), z, 5, atol=0)


@pytest.mark.parametrize("metric", METRICS)
def test_equal_graphs_are_their_loop(metric):
    z = torch.randn(4, 20, 3, generator=seeded(4))
    together = find_neighbors(z, 5, metric=metric)
    assert together.ptr.tolist() == [0, 20, 40, 60, 80]
    for g in range(4):
        alone = find_neighbors(z[g], 5, metric=metric)
        assert torch.equal(together.index[g * 20 : g * 20 + 20] - g * 20, alone.index)
        torch.testing.assert_close(together.distance[g * 20 : g * 20 + 20], alone.distance, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("form", ["ptr", "batch"])
def test_ragged_graphs_are_their_loop(metric, form):
    sizes, k = [6, 1, 0, 3, 12], 4
    z = torch.randn(sum(sizes), 3, generator=seeded(5))
    z[2] = 0  # a zero vector inside the first graph
    z[20] = 0
    ptr = torch.tensor([0, *sizes]).cumsum(0)
    boundaries = {"ptr": ptr} if form == "ptr" else {"batch": torch.repeat_interleave(torch.tensor(sizes))}
    found = find_neighbors(z, k, metric=metric, **boundaries)
    assert found.ptr.tolist() == ptr.tolist()
    for start, size in zip(ptr.tolist(), sizes, strict=False):
        index, distance = found.index[start : start + size], found.distance[start : start + size]
        num = max(min(k, size - 1), 0)
        assert (index[:, num:] == -1).all()
        assert distance[:, num:].isinf().all()
        assert found.is_neighbor[start : start + size].sum().item() == size * num
        if num:
            _, wanted = reference.knn(z[start : start + size], num, metric)
            torch.testing.assert_close(distance[:, :num].double(), wanted, rtol=1e-5, atol=1e-6)
            assert (index[:, :num] >= start).all()
            assert (index[:, :num] < start + size).all()


def test_equal_sizes_given_by_ptr():
    z = torch.randn(12, 2, generator=seeded(6))
    by_ptr = find_neighbors(z, 3, ptr=torch.tensor([0, 6, 12]))
    stacked = find_neighbors(z.view(2, 6, 2), 3)
    assert torch.equal(by_ptr.index, stacked.index)
    assert torch.equal(by_ptr.distance, stacked.distance)


@pytest.mark.parametrize("n", [12, 1500])
def test_cosine_with_zero_vectors(n):
    z = torch.randn(n, 3, generator=seeded(7))
    z[[4, 7]] = 0
    k = 10 if n == 12 else 3
    check_exact(find_neighbors(z, k, metric="cosine"), z, k, "cosine")
    some = find_neighbors(z, k, metric="cosine")
    assert (some.distance[[4, 7]] == 1).all(), "a zero vector is at distance 1 from all others"
    is_zero = (some.index == 4) | (some.index == 7)
    assert (some.distance[is_zero] == 1).all()


@pytest.mark.parametrize("factor", [1e-15, 1e15])
def test_cosine_ignores_length(factor):
    z = torch.randn(30, 4, generator=seeded(8))
    one, other = find_neighbors(z, 5, metric="cosine"), find_neighbors(z * factor, 5, metric="cosine")
    assert torch.equal(one.index, other.index)
    torch.testing.assert_close(one.distance, other.distance, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_searched_in_float32(dtype):
    z = torch.randn(50, 6, generator=seeded(9)).to(dtype)
    neighbors = find_neighbors(z, 5)
    assert neighbors.distance.dtype == torch.float32
    check_exact(neighbors, z, 5)


@pytest.mark.parametrize("metric", METRICS)
def test_autocast_is_left(metric):
    z = torch.randn(300, 6, generator=seeded(13))
    wanted = find_neighbors(z, 5, metric=metric)
    with torch.autocast("cpu", torch.bfloat16):
        found = find_neighbors(z, 5, metric=metric)
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == torch.bfloat16, "autocast ended for the caller"
    assert torch.equal(found.index, wanted.index)
    assert torch.equal(found.distance, wanted.distance)


PRECISE, ROUGH = torch.finfo(torch.float32).eps, 2.0**-7
SWITCHES = {
    name: switch
    for name, switch in {
        "all": torch.backends,
        "cuda": torch.backends.cuda.matmul,
        "mkldnn": getattr(torch.backends.mkldnn, "matmul", None),
    }.items()
    if hasattr(switch, "fp32_precision")
}
"""Which products of float32 may be rough; torch before 2.9 has the older switch only."""
CASES = [
    ("older", "highest", PRECISE),
    ("older", "high", ROUGH),
    ("older", "medium", ROUGH),
    ("all", "ieee", PRECISE),
    ("all", "tf32", ROUGH),
    ("mkldnn", "ieee", PRECISE),
    ("mkldnn", "bf16", ROUGH),
    ("cuda", "tf32", PRECISE),  # says nothing about a CPU
]


@pytest.fixture
def precision_is_put_back():
    older = torch.get_float32_matmul_precision()
    newer = {name: switch.fp32_precision for name, switch in SWITCHES.items()}
    yield
    torch.set_float32_matmul_precision(older)
    for name, precision in newer.items():
        SWITCHES[name].fp32_precision = precision


@pytest.mark.usefixtures("precision_is_put_back")
@pytest.mark.parametrize(
    ("switch", "precision", "eps"), [case for case in CASES if case[0] == "older" or case[0] in SWITCHES]
)
def test_products_may_be_rough(switch, precision, eps):
    if switch == "older":
        torch.set_float32_matmul_precision(precision)
    else:
        SWITCHES[switch].fp32_precision = precision
    z = torch.randn(60, 4, generator=seeded(14))
    check_exact(find_neighbors(z, 5), z, 5)
    assert exact._product_eps(z) == eps
    assert exact._product_eps(z.double()) == torch.finfo(torch.float64).eps


def test_no_gradient_and_input_untouched():
    z = torch.randn(20, 3, generator=seeded(10), requires_grad=True)
    before = z.detach().clone()
    assert not find_neighbors(z, 3).distance.requires_grad
    assert torch.equal(z.detach(), before)


@pytest.mark.parametrize(
    ("z", "k", "options", "message"),
    [
        (torch.zeros(5, 2), 5, {}, r"k must be at least 1 and smaller.*got k=5 for a graph of 5 nodes.*Use k <= 4"),
        (torch.zeros(5, 2), 0, {}, r"k must be at least 1.*got k=0"),
        (torch.zeros(1, 2), 1, {}, r"got k=1 for a graph of 1 nodes"),
        (torch.zeros(0, 2), 1, {}, r"k must be at least 1"),
        (torch.zeros(2, 5, 2), 5, {}, r"for 2 graphs, the largest of 5 nodes"),
        (torch.zeros(6, 2), 3, {"ptr": torch.tensor([0, 3, 6])}, r"the largest of 3 nodes.*Use k <= 2"),
        (torch.zeros(5), 1, {}, r"shape \(n, d\) or \(b, n, d\); got \(5,\)"),
        (torch.zeros(5, 2, dtype=torch.int64), 1, {}, r"needs floating-point embeddings.*torch.int64"),
        (torch.zeros(5, 2), 1, {"metric": "manhattan"}, r"metric must be one of.*got 'manhattan'"),
        (torch.zeros(5, 2), 1, {"backend": "magic"}, r"backend must be one of.*got 'magic'"),
        (torch.zeros(2, 5, 2), 1, {"ptr": torch.tensor([0, 5, 10])}, r"already says where graphs end"),
        (
            torch.zeros(4, 2),
            1,
            {"ptr": torch.tensor([0, 4]), "batch": torch.zeros(4, dtype=torch.int64)},
            r"give ptr or batch, not both",
        ),
        (torch.zeros(4, 2), 1, {"batch": torch.tensor([0, 1, 0, 1])}, r"batch must be ascending"),
        (
            torch.zeros(4, 2),
            1,
            {"batch": torch.zeros(3, dtype=torch.int64)},
            r"one int64 graph number per node.*\(3,\)",
        ),
        (torch.zeros(4, 2), 1, {"batch": torch.zeros(4)}, r"one int64 graph number per node.*float32"),
        (torch.zeros(4, 2), 1, {"ptr": torch.tensor([0, 3])}, r"ptr must run from 0 to the 4 rows"),
        (torch.zeros(4, 2), 1, {"ptr": torch.tensor([0, 3, 2, 4])}, r"without decreasing"),
        (torch.zeros(4, 2), 1, {"ptr": torch.tensor([0.0, 4.0])}, r"ptr must be int64"),
    ],
)
def test_errors(z, k, options, message):
    with pytest.raises(GraphError, match=message):
        find_neighbors(z, k, **options)


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf, 1e25])
@pytest.mark.parametrize("shape", [(6, 3), (2, 3, 3)])
def test_not_finite(value, shape):
    z = torch.randn(shape, generator=seeded(11))
    z.view(-1, 3)[4, 1] = value
    with pytest.raises(GraphError, match=r"1 of 6 rows of z hold NaN, infinity or values too large.*first is row 4"):
        find_neighbors(z, 1)


def test_largest_embeddings_still_work():
    z = torch.randn(20, 3, generator=seeded(12), dtype=torch.float64)
    large = find_neighbors((z * 1e18).float(), 4)
    assert torch.equal(large.index, find_neighbors(z.float(), 4).index)
    assert torch.isfinite(large.distance).all()


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize(
    ("power", "dtype"), [(-60, torch.float32), (-120, torch.float32), (-120, torch.float64), (-1000, torch.float64)]
)
def test_smallest_embeddings_still_work(power, dtype, metric):
    z = torch.randn(300, 5, generator=seeded(14)).to(dtype)
    one, other = (find_neighbors(x, 4, metric=metric) for x in (z, z * 2.0**power))
    assert torch.equal(one.index, other.index)
    unit = 2.0**power if metric == "euclidean" else 1.0
    torch.testing.assert_close(other.distance / unit, one.distance, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("far", [1e6, 1e11, 1e15])
def test_rows_far_off_take_no_digits_of_the_others(dtype, far):
    z = torch.randn(300, 5, generator=seeded(11), dtype=torch.float64)
    z[7], z[8] = far, -2 * far
    z = z.to(dtype)
    found = find_neighbors(z, 6, metric="euclidean")
    distance = torch.cdist(z.double(), z.double(), compute_mode="donot_use_mm_for_euclid_dist").fill_diagonal_(
        torch.inf
    )
    expected, index = distance.topk(6, largest=False)
    torch.testing.assert_close(found.distance.double(), expected, rtol=1e-5, atol=0)
    rest = torch.arange(300) > 8
    assert torch.equal(found.index[rest].sort(1).values, index[rest].sort(1).values)
