import pytest
import torch

from lspread.graph.eigen import eigh
from lspread.graph.whitening import whiten
from tests.reference import seeded


def low_rank(dtype=torch.float64):
    axes = torch.randn(3, 8, generator=seeded(0), dtype=dtype)
    return axes.T @ axes


@pytest.fixture
def failing_library(monkeypatch):
    """Let the library's first solve give NaN, as a CPU's does for a few matrices of low rank."""
    solve, matrices = torch.linalg.eigh, []

    def fail_once(matrix):
        matrices.append(matrix)
        value, vector = solve(matrix)
        return (value * torch.nan, vector * torch.nan) if len(matrices) == 1 else (value, vector)

    monkeypatch.setattr(torch.linalg, "eigh", fail_once)
    return matrices


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_failed_solve_is_made_good(failing_library, dtype):
    matrix = low_rank(dtype)
    value, vector = eigh(matrix)
    assert len(failing_library) == 2
    assert value.dtype == vector.dtype == dtype
    assert value.diff().ge(0).all()
    torch.testing.assert_close(vector * value @ vector.T, matrix)
    torch.testing.assert_close(vector.T @ vector, torch.eye(8, dtype=dtype))


def test_a_solve_made_good_has_its_gradient(failing_library):
    whole = low_rank() + torch.diag(torch.arange(8.0, dtype=torch.float64))
    matrix = whole.clone().requires_grad_()
    eigh(matrix)[0].square().sum().backward()
    assert len(failing_library) == 2
    torch.testing.assert_close(matrix.grad, 2 * whole)


def test_whitening_outlives_a_failed_solve(failing_library):
    z = torch.randn(6, 2, generator=seeded(1)) @ torch.randn(2, 20, generator=seeded(2))
    assert whiten(z).isfinite().all()
    assert len(failing_library) == 2


def test_what_is_not_finite_stays_so(failing_library):
    assert eigh(torch.full((2, 2), torch.nan))[0].isnan().all()
    assert len(failing_library) == 1
