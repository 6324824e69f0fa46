import pytest
import torch

from lspread.data import mix_images
from lspread.errors import ConfigError
from tests.reference import seeded


@pytest.mark.parametrize("concentration", [0.2, 1.0, 8.0])
def test_every_image_keeps_the_larger_share(concentration):
    image = torch.rand(12, 2, 3, 3, generator=seeded(0))
    torch.manual_seed(1)
    shares = []
    for _ in range(200):
        mixed, partner, share = mix_images(image, concentration)
        torch.testing.assert_close(mixed, share * image + (1 - share) * image[partner])
        assert partner.sort().values.tolist() == list(range(12))
        shares.append(share.item())
    assert min(shares) >= 0.5
    assert max(shares) <= 1
    # The mean of max(s, 1 - s) of a symmetric beta falls from 1 to 1/2 as the concentration grows.
    beta = torch.distributions.Beta(concentration, concentration).sample((20_000,))
    assert sum(shares) / 200 == pytest.approx(torch.maximum(beta, 1 - beta).mean().item(), abs=0.05)


def test_refuses_no_concentration():
    with pytest.raises(ConfigError, match="greater than 0; got 0"):
        mix_images(torch.rand(2, 1, 2, 2), 0.0)
