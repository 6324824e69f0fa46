import pytest
import torch

from lspread.errors import GraphError
from lspread.graph import fit_whitening, whiten
from tests.reference import seeded


def sample(n=200, d=5):
    return torch.randn(n, d, generator=seeded(0), dtype=torch.float64) @ torch.randn(
        d, d, generator=seeded(1), dtype=torch.float64
    )


def test_distances_are_mahalanobis():
    z = sample()
    white = whiten(z, ridge=1e-12)
    torch.testing.assert_close(torch.cov(white.T), torch.eye(5, dtype=torch.float64), rtol=1e-6, atol=1e-6)
    step = z[3] - z[7]
    wanted = (step @ torch.linalg.solve(torch.cov(z.T), step)).sqrt()
    torch.testing.assert_close((white[3] - white[7]).norm(), wanted, rtol=1e-6, atol=0)


def test_others_are_whitened_alike():
    z, new = sample(), 3 * sample(20) + 1
    found = fit_whitening(z, num_components=3, ridge=1e-12)
    assert torch.equal(found(z), whiten(z, num_components=3, ridge=1e-12))
    assert found(new).shape == (20, 3)
    whole = fit_whitening(z, ridge=1e-12)
    step = new[3] - z[7]
    wanted = (step @ torch.linalg.solve(torch.cov(z.T), step)).sqrt()
    torch.testing.assert_close((whole(new)[3] - whole(z)[7]).norm(), wanted, rtol=1e-6, atol=0)


@pytest.mark.parametrize("num_components", [1, 3, 5, 9])
def test_components_and_ridge(num_components):
    z = sample()
    _, scale, axes = torch.linalg.svd(z - z.mean(0), full_matrices=False)
    variance = scale.square() / 199
    wanted = ((z - z.mean(0)) @ axes.T) / (variance + 0.1 * variance[0]).sqrt()
    found = whiten(z, num_components=num_components, ridge=0.1)
    assert found.shape == (200, min(num_components, 5))
    torch.testing.assert_close(found.abs(), wanted[:, :num_components].abs())


def test_distances_are_differentiable():
    z = sample(8, 3).requires_grad_()
    assert torch.autograd.gradcheck(lambda z: (whiten(z)[:, None] - whiten(z)).square().sum(-1), z)


def test_equal_embeddings_and_half_precision():
    assert whiten(torch.ones(4, 3)).eq(0).all()
    z = sample().to(torch.bfloat16)
    torch.testing.assert_close(whiten(z), whiten(z.float()))


@pytest.mark.parametrize(
    ("z", "options", "message"),
    [
        (torch.zeros(1, 3), {}, r"\(n, d\) with n >= 2; got \(1, 3\)"),
        (torch.zeros(2, 4, 3), {}, r"got \(2, 4, 3\)"),
        (torch.zeros(4, 3, dtype=torch.int64), {}, r"torch.int64"),
        (torch.zeros(4, 3), {"num_components": 0}, r"num_components must be at least 1; got 0"),
        (torch.zeros(4, 3), {"ridge": 0.0}, r"ridge must be greater than 0; got 0.0"),
    ],
)
def test_errors(z, options, message):
    with pytest.raises(GraphError, match=message):
        whiten(z, **options)


def test_autocast_changes_nothing():
    z = sample().float()
    plain = whiten(z)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(whiten(z), plain)
