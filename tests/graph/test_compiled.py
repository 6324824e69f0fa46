"""Kernels that numba compiles, against the open formulas; tests/labels/test_large_graphs.py has whole solves."""

import subprocess
import sys

import pytest
import torch

from lspread.graph import EdgeLayout, product
from tests.reference import seeded

pytest.importorskip("numba", reason="kernels are compiled by numba (extra 'numba')")
compiled = pytest.importorskip("lspread.graph.compiled")


@pytest.fixture(params=[1, 2, 3], ids="{}_threads".format)
def _threads(request):
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield
    torch.set_num_threads(before)


def make(n, dtype=torch.float64, e=None):
    """Return boundaries and columns of a pattern with repeated entries, loops and empty rows, and its weights."""
    generator = seeded(n)
    row = torch.randint(max(1, n - 1), (5 * n if e is None else e,), generator=generator).sort().values
    layout = EdgeLayout(row, torch.randint(n, row.shape, generator=generator), n)
    weight = torch.randn(len(row), generator=generator, dtype=dtype)
    matrix = torch.zeros(n, n, dtype=dtype).index_put((layout.row, layout.column), weight, accumulate=True)
    return layout, weight, matrix


@pytest.mark.usefixtures("_threads")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("n", [1, 2, 3, 40, 600])
def test_combine_rows(n, dtype):
    layout, weight, matrix = make(n, dtype)
    column, boundary = layout.bags
    for width in [*range(1, 36), 48, 63, 64, 65, 100]:
        x, rhs, out = torch.randn(3, n, width, generator=seeded(width), dtype=dtype)
        wanted = 0.3 * x - 0.7 * (matrix @ x) + 0.2 * rhs + 0.5 * out
        inner = torch.empty(1, width, dtype=dtype)
        compiled.combine_rows(
            boundary, column, weight, x, out, own=0.3, others=-0.7, rhs=rhs, of_rhs=0.2, of_out=0.5, inner=inner
        )
        torch.testing.assert_close(out, wanted)
        torch.testing.assert_close(inner[0], (x * wanted).sum(0), rtol=1e-4, atol=1e-4)


def test_terms_with_factor_zero_are_not_read():
    layout, weight, matrix = make(7)
    column, boundary = layout.bags
    x = torch.randn(7, 3, generator=seeded(1), dtype=torch.float64)
    out = torch.full_like(x, torch.nan)
    compiled.combine_rows(boundary, column, weight, x, out, own=0, others=1, rhs=out.clone())
    torch.testing.assert_close(out, matrix @ x)
    x[2] = torch.nan  # reaches the rows that have an entry there, and no others
    compiled.combine_rows(boundary, column, weight, x, out, own=0, others=1)
    assert torch.equal(out.isnan().any(1), matrix[:, 2] != 0)


@pytest.mark.usefixtures("_threads")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("n", "width"), [(1, 1), (15, 3), (1000, 10), (777, 33)])
def test_vectors(n, width, dtype):
    x, r, p, ap = torch.randn(4, n, width, generator=seeded(2), dtype=dtype)
    coef = torch.randn(1, width, generator=seeded(3), dtype=dtype)
    torch.testing.assert_close(compiled.inner(x, r), (x.double() * r.double()).sum(0, keepdim=True).to(dtype))
    out = torch.empty_like(x)
    compiled.add_scaled(x, coef, p, out)
    torch.testing.assert_close(out, x + coef * p)
    wanted = x + coef * p, r - coef * ap
    found = compiled.descend(x, r, p, ap, coef)
    torch.testing.assert_close((x, r), wanted)
    torch.testing.assert_close(found, r.square().sum(0, keepdim=True))


def test_inner_products_of_many_rows_keep_their_digits():
    x = torch.rand(300_000, 2, generator=seeded(4))
    exact = x.double().square().sum(0, keepdim=True)
    torch.testing.assert_close(compiled.inner(x, x).double(), exact, rtol=1e-7, atol=0)


@pytest.mark.usefixtures("_threads")
def test_cells_grow_by_one_edge_a_round():
    n = 30  # a path, seeds at 0 and 15
    row = torch.cat([torch.arange(n - 1), torch.arange(1, n)])
    column = torch.cat([torch.arange(1, n), torch.arange(n - 1)])
    order = torch.argsort(row, stable=True)
    column, boundary = EdgeLayout(row[order], column[order], n).bags
    cell = compiled.grow_cells(boundary, column, 2)
    # Node 8 is seven steps from 15 and eight from 0.
    assert cell.tolist() == [0] * 8 + [1] * 22
    alone = torch.tensor([0, 0, 0, 0], dtype=torch.int32)
    assert compiled.grow_cells(alone, column[:0], 1).tolist() == [0, -1, -1]


@pytest.mark.usefixtures("_threads")
@pytest.mark.parametrize("value", [torch.float32, torch.float64, torch.int32])
def test_rows_move(value):
    layout, _, _ = make(50)
    column, boundary = layout.bags
    permutation = torch.randperm(50, generator=seeded(5))
    rank = torch.argsort(permutation).int()
    start = torch.cat([boundary[:1], boundary.diff()[permutation].cumsum(0, dtype=torch.int32)])
    entry = torch.arange(len(column)).to(value)
    moved, carried = compiled.move_rows(boundary, column, entry, start, rank)
    rows = EdgeLayout.from_bags(moved, start).row
    assert torch.equal(layout.row[carried.long()], permutation[rows])
    assert torch.equal(layout.column[carried.long()], permutation[moved.long()])


def test_rule(monkeypatch):
    x = torch.ones(2, 3)
    large = product.LEAST_COMPILED // 3 + 1
    assert product.compiled_for(large, 3, x) is compiled
    assert product.compiled_for(large - 2, 3, x) is None
    assert product.compiled_for(large, 3, x.to("meta")) is None
    assert product.compiled_for(large, 3, torch._efficientzerotensor(2, 3)) is None
    monkeypatch.setattr(product, "load_compiled", lambda: None)
    assert product.compiled_for(large, 3, x) is None


@pytest.mark.parametrize(
    ("prepare", "is_there"),
    [
        ("import sys; sys.modules['numba'] = None", False),
        ("import os; os.environ['NUMBA_DISABLE_JIT'] = '1'", False),
        ("import numba; numba.__version__ = '0.61.2'", False),
        ("", True),
    ],
    ids=["not installed", "told not to compile", "too old", "installed"],
)
def test_numba_is_optional_and_loads_late(prepare, is_there):
    code = (
        "import sys\nfrom lspread.graph.product import load_compiled\nassert 'numba' not in sys.modules\n"
        f"{prepare}\nassert (load_compiled() is not None) is {is_there}"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)
