"""The 8-bit search: tiles are made small here, so that small data passes through every branch."""

import pytest
import torch

from lspread.graph import exact, find_neighbors, quantized, rounding
from tests import reference
from tests.reference import seeded

TILE = 512


@pytest.fixture(autouse=True, params=["8 bits", "float32"])
def small_tiles(monkeypatch, request):
    monkeypatch.setattr(rounding, "TILE", TILE)
    monkeypatch.setattr(quantized, "TILE", TILE)
    monkeypatch.setattr(quantized, "MIN_ITEMS", 2 * TILE)
    monkeypatch.setattr(quantized, "MIN_ITEMS_IN_FLOAT32", 2 * TILE)
    # Both products are there on every CPU, only not fast on all.
    monkeypatch.setattr(quantized, "has_fast_integers", lambda: request.param == "8 bits")


def gaussians(n, d=16):
    return torch.randn(n, d, generator=seeded(n))


def clusters(n, d=24, apart=20.0):
    generator = seeded(3)
    center = apart * torch.randn(7, d, generator=generator)
    width = torch.tensor([0.01, 0.1, 0.3, 1.0, 1.0, 2.0, 3.0])
    which = torch.randint(7, (n,), generator=generator)
    return center[which] + width[which, None] * torch.randn(n, d, generator=generator)


def heavy_tailed(n, d=20):
    z = gaussians(n, d)
    return z / torch.rand(n, 1, generator=seeded(4)).clamp(min=1e-3)


def with_duplicates(n, d=16):
    z = gaussians(n, d)
    z[: n // 3] = z[n // 2]
    return z


DATA = {
    "gaussians": gaussians(1500),
    "three tiles": gaussians(3 * TILE + 12, 17),
    "a last tile with few": gaussians(2 * TILE + 12, 16),
    "wide": gaussians(1200, 300),
    "clusters": clusters(2000),
    "far clusters": clusters(1300, apart=1e4),
    "heavy tails": heavy_tailed(1700),
    "duplicates": with_duplicates(1400),
    "far from the origin": gaussians(1300) + 500,
    "one value": torch.ones(1300, 16),
    "tiny": 1e-12 * gaussians(1300),
    "large": 1e15 * gaussians(1300),
    "a line": torch.arange(1500.0)[:, None] * torch.ones(16),
}


def every_distance(z, metric="euclidean"):
    if metric == "cosine":
        return reference.distances(z, metric)
    z = z.double()
    return torch.cdist(z, z, compute_mode="donot_use_mm_for_euclid_dist").fill_diagonal_(torch.inf)


def check(z, k, metric="euclidean"):
    neighbors = find_neighbors(z, k, metric=metric, backend="exact")
    every = every_distance(z, metric)
    found = every.gather(1, neighbors.index)
    wanted = every.topk(k, largest=False).values
    # As near as the k-th of all, up to the rounding of a distance by differences.
    scale = z.double().abs().max() if metric == "euclidean" else 1.0
    torch.testing.assert_close(found.sort(1).values, wanted, rtol=1e-5, atol=1e-7 * float(scale))
    assert (neighbors.index != torch.arange(len(z))[:, None]).all()
    assert all(len(set(row)) == k for row in neighbors.index.tolist())
    return neighbors


@pytest.mark.parametrize("name", DATA)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_exact(name, dtype):
    check(DATA[name].to(dtype), 7)


@pytest.mark.parametrize("k", [1, 40, 128])
def test_any_k(k):
    check(gaussians(1300), k)


def test_cosine():
    z = clusters(1500)
    check(z, 9, "cosine")
    z[5] = 0
    check(z, 9, "cosine")


def test_it_is_this_search_that_runs(monkeypatch):
    z = gaussians(1500)
    found = []
    real = quantized.search_quantized
    monkeypatch.setattr(exact, "search_quantized", lambda *given: found.append(real(*given)) or found[-1])
    neighbors = check(z, 5)
    index, squared, is_found = found[0]
    num_wild = rounding.WILD_PER_TILE * 3
    assert is_found.sum() >= len(z) - num_wild
    assert torch.equal(neighbors.index[is_found], index[is_found])
    torch.testing.assert_close(neighbors.distance[is_found].square(), squared[is_found])


def test_excluded_rows_are_neither_searched_nor_found():
    z = gaussians(1500)
    excluded = torch.zeros(len(z), dtype=torch.bool)
    excluded[::3] = True
    index, _, is_found = quantized.search_quantized(z, 5, excluded)
    assert not is_found[excluded].any()
    assert not excluded[index[is_found]].any()
    every = every_distance(z).masked_fill(excluded, torch.inf)
    torch.testing.assert_close(
        every.gather(1, index.clamp(min=0))[is_found], every.topk(5, largest=False).values[is_found]
    )


def test_zero_vectors_under_cosine(monkeypatch):
    """Most rows have nearer neighbors than the vectors without direction; one looks away from all others."""
    searched = []

    def search(z, k, excluded):
        answer = quantized.search_quantized(z, k, excluded)
        searched.append(answer[2].sum())
        return answer

    monkeypatch.setattr(exact, "search_quantized", search)
    z = gaussians(1500).abs()
    z[::5] = 0
    z[1] = -z[1]
    neighbors = find_neighbors(z, 5, metric="cosine")
    assert 1100 < searched[0] <= 1200, "only wild rows and zero vectors are left to the other search"
    unit = torch.nn.functional.normalize(z.double(), dim=1)
    distance = (1 - unit @ unit.T).fill_diagonal_(torch.inf)
    wanted = distance.topk(5, largest=False).values
    torch.testing.assert_close(neighbors.distance.double(), wanted, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(distance.gather(1, neighbors.index), wanted, rtol=1e-5, atol=1e-6)
    assert (neighbors.index[1] % 5 == 0).all(), "zero vectors are the nearest of the one that looks away"


@pytest.mark.parametrize("name", ["gaussians", "clusters"])
@pytest.mark.parametrize("metric", ["euclidean", "cosine"])
def test_autocast_is_left(name, metric):
    with torch.autocast("cpu", torch.bfloat16):
        neighbors = find_neighbors(DATA[name], 7, metric=metric, backend="exact")
    assert torch.equal(neighbors.index, find_neighbors(DATA[name], 7, metric=metric, backend="exact").index)


def test_products_of_float32_may_be_rough():
    """Autocast stands for the bfloat16 or TF32 that users may allow in them on CPUs that have it."""
    z = heavy_tailed(1700)
    with torch.autocast("cpu", torch.bfloat16):
        index, squared, is_found = quantized.search_quantized(z, 7)
    assert is_found.sum() >= len(z) - rounding.WILD_PER_TILE * 4
    wanted = every_distance(z).topk(7, largest=False).values
    torch.testing.assert_close(every_distance(z).gather(1, index)[is_found], wanted[is_found], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(squared[is_found].sqrt().double(), wanted[is_found], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("is_rough", [False, True])
def test_the_bound_of_every_pair_holds(is_rough):
    """|x' - y'|^2 from the integers is what the rounded vectors say, and radii cover what rounding lost."""
    z = clusters(1500)
    with torch.autocast("cpu", torch.bfloat16, enabled=is_rough):
        items = rounding.round_items(z, None)
    rounded = items.center[:, None] + torch.tensor(items.step)[:, None, None] * items.q.float()
    rounded = rounded.flatten(0, 1)[: items.num_rounded].double()
    turned = rounding._rotate(z - z.mean(0))[items.number[: items.num_rounded]].double()
    lost = (turned - rounded).norm(dim=1)
    assert (lost <= items.radius.flatten()[: items.num_rounded]).all()
    assert (items.radius.flatten()[: items.num_rounded] <= 1.2 * lost + 1e-2).all()
    every, product = torch.arange(TILE), quantized._Product()
    for tile, other in [(0, 1), (1, 0), (0, 2)]:
        pair = quantized._Pair.of(items, tile, other)
        score = pair.multiply(every, every, product).double() - pair.column
        num_rows, num_columns = (min(TILE, items.num_rounded - i * TILE) for i in (tile, other))
        squared = (pair.unit * (pair.offset - score))[:num_rows, :num_columns]
        x, y = (rounded[i * TILE : (i + 1) * TILE] for i in (tile, other))
        wanted = torch.cdist(x, y).square()
        assert ((squared - wanted).abs() <= pair.unit * pair.slack).all()


@pytest.mark.parametrize("width", [16, 1040, 1041, 3000])
def test_products_are_exact(width):
    a = torch.randint(-127, 128, (TILE, width), dtype=torch.int8, generator=seeded(width))
    a[0] = 127  # the largest sum
    product = quantized._Product()
    for rows in (256, TILE):
        assert torch.equal(product(a[:rows], a), (a[:rows].long() @ a.long().T).int())


def test_small_graphs_are_searched_plainly():
    assert quantized.is_quantized_faster(gaussians(2 * TILE), 5)
    assert not quantized.is_quantized_faster(gaussians(2 * TILE - 1), 5)
    assert not quantized.is_quantized_faster(gaussians(2 * TILE, 15), 5)
    assert not quantized.is_quantized_faster(gaussians(2 * TILE), 129)


def test_rotation_keeps_distances():
    for width in (16, 128, 130, 300):
        z = torch.randn(50, width, generator=seeded(0), dtype=torch.float64)
        turned = rounding._rotate(z)
        torch.testing.assert_close(turned @ turned.T, z @ z.T)


@pytest.mark.parametrize("threads", [1, 2])
def test_threads_are_given_back(threads):
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(threads)
        check(gaussians(1200), 3)
        assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)


def test_a_full_row_keeps_its_nearest():
    nearest = quantized._Nearest.empty(3, 4, torch.float32)
    generator = seeded(0)
    met = {0: [], 1: [], 2: []}
    for _ in range(6):
        row = torch.randint(3, (5,), generator=generator)
        distance = torch.rand(5, generator=generator)
        column = torch.randint(1000, (5,), generator=generator)
        nearest.insert(row, column, distance)
        for r, c, d in zip(row.tolist(), column.tolist(), distance.tolist(), strict=True):
            met[r].append((d, c))
    for row, pairs in met.items():
        kept = sorted(zip(nearest.distance[row].tolist(), nearest.column[row].tolist(), strict=True))
        wanted = sorted(pairs)[:4]
        assert kept[: len(wanted)] == wanted
        assert nearest.count[row] == min(len(pairs), 4)
