import pytest
import torch
from torch.nn.functional import relu

from lspread.errors import ConfigError, DataError
from lspread.nn import VectorMLP
from tests.reference import seeded


def test_two_layers_by_hand():
    torch.manual_seed(0)
    network = VectorMLP(5, (7, 3)).eval()
    assert network.num_features == 3
    first, norm, _, _, second, _ = network.layers
    norm.running_mean.copy_(torch.randn(7, generator=seeded(0)))
    norm.running_var.copy_(torch.rand(7, generator=seeded(1)) + 0.5)
    x = torch.randn(4, 5, generator=seeded(2))
    hidden = x @ first.weight.T + first.bias
    hidden = relu((hidden - norm.running_mean) / (norm.running_var + norm.eps).sqrt())
    torch.testing.assert_close(network(x), hidden @ second.weight.T + second.bias)
    torch.testing.assert_close(network(x[:, :, None, None]), network(x))


def test_dropout_works_in_training_only():
    torch.manual_seed(0)
    network, x = VectorMLP(6, (64, 64), dropout=0.5), torch.randn(8, 6, generator=seeded(0))
    assert (network(x) == 0).float().mean() == pytest.approx(0.5, abs=0.1)
    assert (network.eval()(x) == 0).sum() == 0


@pytest.mark.parametrize(
    "options", [{"in_channels": 0}, {"widths": ()}, {"widths": (4, 0)}, {"dropout": 1.0}, {"dropout": -0.1}]
)
def test_options_out_of_range(options):
    with pytest.raises(ConfigError, match="VectorMLP needs in_channels and widths >= 1"):
        VectorMLP(**{"in_channels": 3, **options})


@pytest.mark.parametrize("x", [torch.zeros(2, 4), torch.zeros(2, 3, 2, 2), torch.zeros(2, 3, dtype=torch.uint8)])
def test_other_inputs_are_refused(x):
    with pytest.raises(DataError, match=r"floating point vectors \(m,3\) or \(m,3,1,1\); got shape"):
        VectorMLP(3)(x)
