import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.autograd import forward_ad

from lspread.graph import EdgeLayout, edge_dot, edge_matmul, product
from tests.reference import seeded


def make(n=9, e=30, seed=0, dtype=torch.float64):
    """Return a layout with repeated entries, loops, empty rows and empty columns, and weights of both signs."""
    generator = seeded(seed)
    row = torch.randint(n - 1, (e,), generator=generator).sort().values
    column = torch.randint(1, n, (e,), generator=generator)
    return EdgeLayout(row, column, n), torch.randn(e, generator=generator, dtype=dtype)


def dense(layout, weight):
    out = torch.zeros(layout.num_nodes, layout.num_nodes, dtype=weight.dtype)
    return out.index_put((layout.row, layout.column), weight, accumulate=True)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("transpose", [False, True])
@pytest.mark.parametrize("num_columns", [1, 3, 17, 100])
def test_matmul(dtype, transpose, num_columns):
    layout, weight = make(n=40, e=300, dtype=dtype)
    x = torch.randn(40, num_columns, generator=seeded(1), dtype=dtype)
    matrix = dense(layout, weight)
    wanted = (matrix.T if transpose else matrix) @ x
    torch.testing.assert_close(edge_matmul(layout, weight, x, transpose=transpose), wanted)


@pytest.mark.parametrize("chunk", [1, 40, 1 << 24])
def test_dot(monkeypatch, chunk):
    monkeypatch.setattr(product, "CHUNK_ELEMENTS_IN_CACHE", chunk)
    layout, _ = make()
    a, b = torch.randn(2, 9, 5, generator=seeded(2), dtype=torch.float64)
    torch.testing.assert_close(edge_dot(layout, a, b), (a @ b.T)[layout.row, layout.column])


@pytest.mark.parametrize("num_entries", [0, 300])
def test_dot_in_single_precision(num_entries):
    layout, _ = make(n=40, e=num_entries)
    a, b = torch.randn(2, 17, 40, generator=seeded(2)).mT.unbind()
    torch.testing.assert_close(edge_dot(layout, a, b), (a @ b.T)[layout.row, layout.column])


@given(n=st.integers(2, 12), e=st.integers(0, 40), c=st.integers(1, 4), seed=st.integers(0, 10_000))
def test_any_pattern(n, e, c, seed):
    layout, weight = make(n, e, seed)
    x, y = torch.randn(2, n, c, generator=seeded(seed), dtype=torch.float64)
    matrix = dense(layout, weight)
    torch.testing.assert_close(edge_matmul(layout, weight, x), matrix @ x)
    torch.testing.assert_close(edge_matmul(layout, weight, x, transpose=True), matrix.T @ x)
    torch.testing.assert_close(edge_dot(layout, x, y), (x @ y.T)[layout.row, layout.column])


@pytest.mark.parametrize("transpose", [False, True])
def test_matmul_gradients(transpose):
    layout, weight = make(n=6, e=10)
    x = torch.randn(6, 2, generator=seeded(3), dtype=torch.float64, requires_grad=True)
    inputs = (weight.requires_grad_(), x)

    def apply(weight, x):
        return edge_matmul(layout, weight, x, transpose=transpose)

    assert torch.autograd.gradcheck(apply, inputs)
    assert torch.autograd.gradgradcheck(apply, inputs)


def test_dot_gradients():
    layout, _ = make(n=6, e=10)
    inputs = tuple(torch.randn(2, 6, 2, generator=seeded(4), dtype=torch.float64).requires_grad_().unbind())
    assert torch.autograd.gradcheck(lambda a, b: edge_dot(layout, a, b), inputs)
    assert torch.autograd.gradgradcheck(lambda a, b: edge_dot(layout, a, b), inputs)


def test_third_derivative():
    # f = sum (W (w) x)^3 has a third derivative; the dense matrix under plain autograd is the judge.
    layout, start = make(n=5, e=8)
    x = torch.randn(5, 2, generator=seeded(5), dtype=torch.float64)
    derivatives = []
    for multiply in (lambda w: edge_matmul(layout, w, x), lambda w: dense(layout, w) @ x):
        weight = start.clone().requires_grad_()
        value = multiply(weight).pow(3).sum()
        for _ in range(3):
            (grad,) = torch.autograd.grad(value, weight, create_graph=True)
            value = grad.sum()
        derivatives.append(grad.detach())
    torch.testing.assert_close(*derivatives)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_strides(dtype):
    """Gradients of sums come expanded, transposed blocks with odd strides: a fast kernel must not read past them."""
    layout, _ = make(n=40, e=300)
    weight = torch.randn(600, generator=seeded(6), dtype=dtype)[::2]
    x = torch.randn(7, 40, generator=seeded(7), dtype=dtype).T
    torch.testing.assert_close(edge_matmul(layout, weight, x), dense(layout, weight) @ x)
    one = torch.ones((), dtype=dtype).expand(300)
    torch.testing.assert_close(edge_matmul(layout, one, x), dense(layout, one) @ x)
    a, b = torch.randn(2, 40, 3, generator=seeded(8), dtype=dtype).requires_grad_().unbind()
    found = torch.autograd.grad(edge_dot(layout, a, b).sum(), (a, b))
    wanted = torch.autograd.grad((a @ b.T)[layout.row, layout.column].sum(), (a, b))
    torch.testing.assert_close(found, wanted)


def test_nan_stays_in_its_row():
    layout, weight = make()
    weight[4] = torch.nan
    out = edge_matmul(layout, weight, torch.zeros(9, 2, dtype=torch.float64))
    is_hit = torch.arange(9) == layout.row[4]
    assert out[is_hit].isnan().all()
    assert out[~is_hit].eq(0).all()


@pytest.mark.parametrize("transpose", [False, True])
def test_forward_mode(transpose):
    layout, weight = make(n=6, e=10)
    a, b = torch.randn(2, 6, 2, generator=seeded(9), dtype=torch.float64).unbind()

    def multiply(weight, x):
        return edge_matmul(layout, weight, x, transpose=transpose)

    one = torch.ones_like
    for function, inputs in ((multiply, (weight, a)), (lambda a, b: edge_dot(layout, a, b), (a, b))):
        needing = tuple(x.clone().requires_grad_() for x in inputs)
        assert torch.autograd.gradcheck(function, needing, check_forward_ad=True, check_backward_ad=False)
        # A tangent that is left out counts as zero.
        for place in (0, 1):
            tangents = tuple(one(x) * (i == place) for i, x in enumerate(inputs))
            _, wanted = torch.func.jvp(function, inputs, tangents)
            with forward_ad.dual_level():
                duals = [forward_ad.make_dual(x, one(x)) if i == place else x for i, x in enumerate(inputs)]
                torch.testing.assert_close(forward_ad.unpack_dual(function(*duals)).tangent, wanted)

    def loss(weight):
        return multiply(weight, a).pow(3).sum()

    def dense_loss(weight):
        matrix = dense(layout, weight)
        return ((matrix.T if transpose else matrix) @ a).pow(3).sum()

    torch.testing.assert_close(torch.func.hessian(loss)(weight), torch.func.hessian(dense_loss)(weight))


@pytest.mark.parametrize("in_dims", [(None, 0), (None, 2), (0, None), (0, 1)])
def test_vmap(in_dims):
    layout, _ = make(n=6, e=10)
    weight = torch.randn(10, generator=seeded(10), dtype=torch.float64)
    x = torch.randn(6, 2, generator=seeded(11), dtype=torch.float64)
    scale = torch.tensor([1.0, 2.0, -1.0], dtype=torch.float64)
    batch = [
        value if dim is None else torch.stack([value * s for s in scale], dim)
        for value, dim in zip((weight, x), in_dims, strict=True)
    ]
    power = sum(dim is not None for dim in in_dims)
    wanted = torch.stack([dense(layout, weight) @ x * s**power for s in scale])
    found = torch.func.vmap(lambda w, x: edge_matmul(layout, w, x), in_dims)(*batch)
    torch.testing.assert_close(found, wanted)
    ends = torch.stack([x * s for s in scale])
    dots = torch.func.vmap(lambda a: edge_dot(layout, a, x))(ends)
    torch.testing.assert_close(dots, torch.stack([(x * s @ x.T)[layout.row, layout.column] for s in scale]))


def test_dot_under_another_default_dtype():
    layout, a, b = EdgeLayout(torch.tensor([0, 1]), torch.tensor([1, 0]), 2), torch.rand(2, 3), torch.rand(2, 3)
    torch.set_default_dtype(torch.float64)
    try:
        found = edge_dot(layout, a, b)
    finally:
        torch.set_default_dtype(torch.float32)
    torch.testing.assert_close(found, (a * b.flip(0)).sum(1))
