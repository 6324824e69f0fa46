"""Backends of approximate search: one list of tests for all of them."""

import logging
import sys

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from lspread.errors import GraphError
from lspread.graph import approximate, faiss_index, find_neighbors, ivf, neighbors, recall_at_k
from tests import reference
from tests.reference import seeded
from tests.test_fake_cuda import needs_slices

# pynndescent compiles for a minute in every process that uses it.
BACKENDS = ["ivf", "faiss", pytest.param("nn_descent", marks=pytest.mark.slow)]
PACKAGES = {"nn_descent": "pynndescent", "faiss": "faiss"}


@pytest.fixture(autouse=True)
def every_size_is_searched_approximately(monkeypatch):
    monkeypatch.setattr(approximate, "SMALL", 0)
    monkeypatch.setattr(faiss_index, "FLAT_ITEMS", 500)


@pytest.fixture(params=BACKENDS)
def backend(request):
    if request.param in PACKAGES:
        pytest.importorskip(PACKAGES[request.param])
    return request.param


def surface(n, width=24, seed=0, dtype=torch.float32):
    """Points of four dimensions bent into more, in ten clusters."""
    generator = seeded(seed)
    latent = 2 * torch.randn(10, 4, generator=generator)[torch.arange(n) % 10] + torch.randn(n, 4, generator=generator)
    return (latent @ torch.randn(4, width, generator=generator)).tanh().to(dtype)


def check(found, z, metric="euclidean", recall=0.95, rtol=1e-5, atol=1e-6):
    """What is listed is measured truly, and most of what is near is listed."""
    every = reference.distances(z, metric)
    index, k = found.index, found.k
    assert index.min() >= 0
    assert index.max() < len(z)
    assert all(len(set(row)) == k for row in index.tolist()), "a neighbor is listed twice"
    assert (index != torch.arange(len(z))[:, None]).all(), "a node is its own neighbor"
    torch.testing.assert_close(found.distance.double(), every.gather(1, index), rtol=rtol, atol=atol)
    assert (found.distance.diff(dim=1) >= 0).all(), "not nearest first"
    farthest = every.topk(k, largest=False).values[:, -1:]
    assert (every.gather(1, index) <= farthest * (1 + rtol) + atol).double().mean() >= recall


@pytest.mark.parametrize("metric", ["euclidean", "cosine"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_recall_and_distances(backend, metric, dtype):
    z = surface(1500, dtype=dtype)
    found = find_neighbors(z, 15, metric=metric, backend=backend)
    assert found.distance.dtype == dtype
    assert (found.metric, found.ptr.tolist()) == (metric, [0, 1500])
    check(found, z, metric, rtol=1e-5 if dtype == torch.float32 else 1e-10)


def test_far_from_the_origin(backend):
    z = surface(1500) + 1000
    check(find_neighbors(z, 5, backend=backend), z, atol=1e-4)


def test_few_places_for_many_points(backend):
    place = torch.randn(6, 8, generator=seeded(1))
    z = place[torch.arange(1200) % 6]
    found = find_neighbors(z, 7, backend=backend)
    check(found, z)
    assert (found.distance == 0).all()


@pytest.mark.parametrize("num_zeros", [3, 40])
def test_cosine_with_zero_vectors(backend, num_zeros):
    z = surface(1200)
    z[torch.arange(num_zeros) * 7] = 0
    found = find_neighbors(z, 5, metric="cosine", backend=backend)
    check(found, z, "cosine")
    assert (found.distance[torch.arange(num_zeros) * 7] == 1).all()


def test_all_directions_opposite_or_missing(backend):
    # Unit vectors around the origin are farther from each other than from a zero vector left in its place.
    z = torch.cat([torch.eye(300), -torch.eye(300), torch.zeros(300, 300)])
    found = find_neighbors(z, 4, metric="cosine", backend=backend)
    assert (found.distance == 1).all()


def test_graphs_are_their_loop(backend):
    sizes, k = [700, 3, 0, 1, 900], 6
    z = torch.cat([surface(size, seed=size) for size in sizes])
    ptr = torch.tensor([0, *sizes]).cumsum(0)
    found = find_neighbors(z, k, ptr=ptr, backend=backend)
    for start, size in zip(ptr.tolist(), sizes, strict=False):
        rows = slice(start, start + size)
        index = torch.where(found.index[rows] < 0, -1, found.index[rows] - start)
        if size <= k:
            assert (found.is_neighbor[rows].sum(1) == max(size - 1, 0)).all()
            assert found.distance[rows, size:].isinf().all()
            assert (index < size).all()
        else:
            alone = find_neighbors(z[rows], k, backend=backend)
            assert torch.equal(index, alone.index)
            assert torch.equal(found.distance[rows], alone.distance)


def test_stacked_graphs(backend):
    z = torch.stack([surface(600, seed=1), surface(600, seed=2)])
    found = find_neighbors(z, 4, backend=backend)
    assert found.ptr.tolist() == [0, 600, 1200]
    assert (found.index[600:] >= 600).all()
    assert recall_at_k(found, z).value > 0.95


def test_autocast_is_left(backend):
    z = surface(1500)
    with torch.autocast("cpu", torch.bfloat16):
        found = find_neighbors(z, 15, backend=backend)
    wanted = find_neighbors(z, 15, backend=backend)
    assert torch.equal(found.index, wanted.index)
    assert torch.equal(found.distance, wanted.distance)


def test_seed(backend):
    z = surface(2000, width=40)
    one, same, other = (find_neighbors(z, 8, backend=backend, effort=0.1, seed=seed) for seed in (3, 3, 4))
    assert torch.equal(one.index, same.index)
    assert torch.equal(one.distance, same.distance)
    assert not torch.equal(one.index, other.index)


def test_effort():
    z = torch.randn(3000, 24, generator=seeded(2))  # no structure: hard
    less, more = (recall_at_k(find_neighbors(z, 10, backend="ivf", effort=effort), z).value for effort in (0.1, 1.0))
    assert less < more - 0.1
    assert recall_at_k(find_neighbors(z, 10, backend="ivf", effort=9.0), z).value == 1


@pytest.mark.parametrize("tile", [1, 1 << 14, 1 << 26])
def test_ivf_in_blocks(monkeypatch, tile):
    z = surface(1300)
    wanted = find_neighbors(z, 5, backend="ivf", effort=0.2)
    monkeypatch.setattr(ivf, "_tile_elements", lambda _: tile)
    found = find_neighbors(z, 5, backend="ivf", effort=0.2)
    check(found, z, recall=0.9)
    assert (found.index == wanted.index).double().mean() > 0.99  # other products round otherwise


@pytest.mark.parametrize(("n", "k"), [(2, 1), (5, 2), (63, 20), (64, 30), (65, 32), (200, 90)])
def test_ivf_small_and_wide(n, k):
    z = torch.randn(n, 3, generator=seeded(n))
    check(find_neighbors(z, k, backend="ivf"), z, recall=1)


def test_ivf_finds_k_with_least_effort():
    z = torch.randn(2500, 6, generator=seeded(3))
    found = find_neighbors(z, 70, backend="ivf", effort=1e-9)
    assert found.is_neighbor.all()
    check(found, z, recall=0.3)


def test_tiles_hold_every_item_once():
    cell = torch.randint(7, (1000,), generator=seeded(4))
    position = torch.randn(1000, generator=seeded(5))
    table = ivf._cut_into_tiles(cell, position, 8)  # one cell is empty
    items = table[table < 1000]
    assert items.sort().values.tolist() == list(range(1000))
    for tile in table:
        held = tile[tile < 1000]
        assert len(held)
        assert len(cell[held].unique()) == 1
        assert (position[held].diff() >= 0).all()


def test_smallest_by_groups():
    score = torch.randn(3, 40, 4096, generator=seeded(6))
    found = score.gather(-1, ivf._smallest(score, 15)).sort(-1).values
    assert torch.equal(found, score.sort(-1).values[..., :15])


@pytest.mark.parametrize("backend", ["nn_descent", "faiss"])
def test_missing_slots_are_searched_exactly(monkeypatch, backend):
    z = surface(900)
    wanted = find_neighbors(z, 5, metric="cosine")

    def find_little(points, k, *, effort, seed):
        index = wanted.index.clone()
        index[::3, 1:] = -1
        index[1::3, 2] = torch.arange(900)[1::3]  # itself
        return index

    monkeypatch.setattr(
        getattr(approximate, backend if backend == "nn_descent" else "faiss_index"), "find_candidates", find_little
    )
    found = find_neighbors(z, 5, metric="cosine", backend=backend)
    torch.testing.assert_close(found.distance, wanted.distance)
    check(found, z, "cosine", recall=1)


@needs_slices
@pytest.mark.parametrize("metric", ["euclidean", "cosine"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_ivf_reads_nothing_from_a_gpu(metric, dtype):
    with FakeTensorMode():
        z = torch.empty(20_000, 16, device="cuda", dtype=dtype)
        found = find_neighbors(z, 15, metric=metric, backend="ivf")
        assert found.index.shape == found.distance.shape == (20_000, 15)
        assert {part.device.type for part in (found.index, found.distance, found.ptr)} == {"cuda"}


@pytest.mark.parametrize("backend", ["nn_descent", "faiss"])
def test_only_on_the_cpu(backend):
    pytest.importorskip(PACKAGES[backend])
    with (
        FakeTensorMode(),
        pytest.raises(GraphError, match=rf"backend='{backend}' runs on the CPU only; got z on cuda:0"),
    ):
        find_neighbors(torch.empty(5000, 4, device="cuda"), 3, backend=backend)


@pytest.mark.parametrize(("backend", "extra"), [("nn_descent", "nn-descent"), ("faiss", "faiss")])
def test_not_installed(monkeypatch, backend, extra):
    monkeypatch.setitem(sys.modules, PACKAGES[backend], None)
    with pytest.raises(GraphError, match=rf"backend='{backend}' needs the package.*lspread\[{extra}\].*backend='ivf'"):
        find_neighbors(surface(100), 3, backend=backend)


@pytest.mark.parametrize("effort", [0.0, -1.0, float("nan")])
def test_effort_must_be_positive(effort):
    with pytest.raises(GraphError, match=r"effort must be positive.*got"):
        find_neighbors(surface(100), 3, backend="ivf", effort=effort)


def test_nothing_else_is_changed(backend):
    z = surface(800)
    before, threads = z.clone(), torch.get_num_threads()
    find_neighbors(z, 5, backend=backend)
    assert torch.equal(z, before)
    assert torch.get_num_threads() == threads


def test_threads_of_faiss_are_given_back():
    faiss = pytest.importorskip("faiss")
    before = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(before + 1)
    try:
        find_neighbors(surface(800), 5, backend="faiss")
        assert faiss.omp_get_max_threads() == before + 1
    finally:
        faiss.omp_set_num_threads(before)


def test_what_pynndescent_is_asked_for(monkeypatch):
    """With its descent replaced by an exact search: its options, its threads and what comes back."""
    pynndescent, numba = pytest.importorskip("pynndescent"), pytest.importorskip("numba")
    asked, threads = {}, numba.get_num_threads()

    class Descent:
        def __init__(self, points, **options):
            asked.update(options, dtype=str(points.dtype))
            numba.set_num_threads(1)
            near = reference.knn(torch.from_numpy(points), options["n_neighbors"] - 1)[0]
            itself = torch.arange(len(points))[:, None]
            self.neighbor_graph = torch.cat([itself, near], 1).int().numpy(), None

    monkeypatch.setattr(pynndescent, "NNDescent", Descent)
    z = surface(400, dtype=torch.float64)
    z[:3] = 0
    for metric in ("euclidean", "cosine"):
        check(find_neighbors(z, 6, metric=metric, backend="nn_descent", seed=5, effort=1.5), z, metric, recall=1)
    assert (asked["n_neighbors"], asked["random_state"], asked["dtype"]) == (10, 5, "float32")
    assert asked["n_jobs"] == min(torch.get_num_threads(), threads)
    assert numba.get_num_threads() == threads


@pytest.mark.parametrize(("limit", "choice", "level"), [(700, "exact", logging.DEBUG), (699, "ivf", logging.INFO)])
def test_auto(monkeypatch, caplog, limit, choice, level):
    monkeypatch.setattr(neighbors, "EXACT_NODES", limit)
    z, ptr = surface(1000), torch.tensor([0, 300, 1000])
    with caplog.at_level(logging.DEBUG, logger="lspread.graph"):
        found = find_neighbors(z, 4, ptr=ptr)
    assert [(record.levelno, record.getMessage()) for record in caplog.records] == [
        (level, f"find_neighbors: backend '{choice}' for 2 graphs, up to 700 nodes")
    ]
    assert torch.equal(found.index, find_neighbors(z, 4, ptr=ptr, backend=choice).index)


def test_auto_is_exact_up_to_a_hundred_thousand_nodes():
    assert neighbors.EXACT_NODES == 100_000
    z = surface(500)
    assert torch.equal(find_neighbors(z, 4).index, find_neighbors(z, 4, backend="exact").index)


def test_small_graphs_are_searched_exactly(monkeypatch, backend):
    monkeypatch.setattr(approximate, "SMALL", 4096)
    z = torch.randn(600, 30, generator=seeded(7))
    assert torch.equal(find_neighbors(z, 4, backend=backend).index, find_neighbors(z, 4, backend="exact").index)
