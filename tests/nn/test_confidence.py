import pytest
import torch

from lspread.errors import ConfigError
from lspread.labels import align_distribution
from lspread.nn import AdaptiveThreshold, DistributionAlignment
from tests.reference import seeded


def batches(num=5, m=8, c=3):
    return torch.randn(num, m, c, generator=seeded(0), dtype=torch.float64).mul(3).softmax(-1)


def test_adaptive_threshold_is_freematch_equations_5_to_7():
    layer = AdaptiveThreshold(3, momentum=0.9).double()
    level, frequency = 1 / 3, [1 / 3] * 3
    for batch in batches():
        rows = batch.tolist()
        level = 0.9 * level + 0.1 * sum(max(row) for row in rows) / len(rows)
        frequency = [0.9 * p + 0.1 * sum(row[j] for row in rows) / len(rows) for j, p in enumerate(frequency)]
        expected = torch.tensor([p / max(frequency) * level for p in frequency], dtype=torch.float64)
        torch.testing.assert_close(layer(batch), expected)
    layer.eval()
    torch.testing.assert_close(layer(torch.rand(4, 3).double()), expected)


def test_alignment_follows_a_running_mean():
    layer = DistributionAlignment(3, momentum=0.8).double()
    mean = torch.full((3,), 1 / 3, dtype=torch.float64)
    for batch in batches():
        mean = 0.8 * mean + 0.2 * batch.mean(0)
        torch.testing.assert_close(layer(batch), align_distribution(batch, mean))
    layer.eval()
    torch.testing.assert_close(layer(batch.flip(0)), align_distribution(batch.flip(0), mean))


@pytest.mark.parametrize("layer", [AdaptiveThreshold, DistributionAlignment])
def test_state_is_saved_and_half_precision_is_taken(layer):
    first, second = layer(3), layer(3)
    first(batches()[0].to(torch.bfloat16))
    second.load_state_dict(first.state_dict())
    first.eval(), second.eval()
    probe = batches()[1].float()
    assert torch.equal(first(probe), second(probe))
    assert all(torch.isfinite(value).all() for value in first.state_dict().values())


@pytest.mark.parametrize("layer", [AdaptiveThreshold, DistributionAlignment])
@pytest.mark.parametrize("options", [{"num_classes": 1}, {"num_classes": 3, "momentum": 1.0}])
def test_refuses(layer, options):
    with pytest.raises(ConfigError, match="num_classes must be 2 or more and momentum"):
        layer(**options)
