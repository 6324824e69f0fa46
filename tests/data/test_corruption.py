import pytest
import torch

from lspread.data import RandomCorruption, StrongAugmentation, WeakAugmentation
from lspread.errors import ConfigError, DataError
from tests.reference import seeded


def numbered(m: int = 400, d: int = 30) -> torch.Tensor:
    """Vectors whose every value says which feature it is and which vector it comes from."""
    return torch.arange(d) * 1000.0 + torch.arange(1, m + 1)[:, None]


def test_exchanged_values_come_from_the_same_feature() -> None:
    x = numbered()
    found = RandomCorruption(exchange=0.4)(x, seeded(0))
    assert (found // 1000).equal(x // 1000)
    # A vector may meet its own value again: 1 in 400.
    assert (found != x).float().mean() == pytest.approx(0.4 * 399 / 400, abs=0.02)
    sources = (found - torch.arange(30) * 1000)[found != x]
    assert len(sources.unique()) > 390  # from all over the batch, each feature for itself


def test_shares_of_dropped_and_blurred_features() -> None:
    x = numbered()
    dropped = RandomCorruption(exchange=0, drop=0.25)(x, seeded(1))
    assert ((dropped == 0) | (dropped == x)).all()
    assert (dropped == 0).float().mean() == pytest.approx(0.25, abs=0.02)
    scale = torch.tensor([1.0, 50.0])
    normal = torch.randn(5000, 2, generator=seeded(2)) * scale
    change = RandomCorruption(exchange=0, noise=0.3)(normal, seeded(3)) - normal
    torch.testing.assert_close(change.std(0), 0.3 * scale, rtol=0.05, atol=0)


@pytest.mark.parametrize("shape", [(6, 4), (6, 4, 1, 1), (1, 4, 1, 1)])
def test_shape_and_seed(shape: tuple[int, ...]) -> None:
    x = torch.randn(shape, generator=seeded(0))
    change = RandomCorruption(0.5, 0.1, 0.1)
    found = change(x, seeded(4))
    assert found.shape == shape
    assert torch.isfinite(found).all()
    assert found.equal(change(x, seeded(4)))
    assert RandomCorruption(0)(x).equal(x)


@pytest.mark.parametrize("options", [{"exchange": 1.1}, {"drop": -0.1}, {"noise": 11.0}])
def test_options_out_of_range(options: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match=f"{next(iter(options))} must be 0 to"):
        RandomCorruption(**options)


def test_each_augmentation_refuses_what_is_the_others() -> None:
    with pytest.raises(DataError, match="Images are changed by WeakAugmentation"):
        RandomCorruption()(torch.zeros(2, 3, 8, 8))
    for change in (WeakAugmentation(), StrongAugmentation()):
        with pytest.raises(DataError, match=r"Rows of tables and texts are changed by lspread\.data\.RandomCorruption"):
            change(torch.zeros(2, 30, 1, 1))
