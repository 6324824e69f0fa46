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


def boxes(image, mixed, partner):
    """Return where the partner is seen `(h, w)`, the same in all images and channels, and nothing in between."""
    is_own = mixed == image
    is_other = mixed == image[partner]
    assert (is_own | is_other).all()
    is_box = ~is_own.all(dim=(0, 1))
    assert is_other[:, :, is_box].all()
    return is_box


def test_a_box_of_the_partner_covers_what_the_share_says():
    image = torch.rand(6, 2, 12, 16, generator=seeded(0))
    torch.manual_seed(1)
    shares, covered = [], torch.zeros(12, 16)
    for _ in range(2000):
        mixed, partner, share = mix_images(image, 0.0, cutmix=1.0)
        assert partner.sort().values.tolist() == list(range(6))
        if torch.equal(partner, torch.arange(6)):
            continue
        is_box = boxes(image, mixed, partner)
        # One rectangle, and the share counts its pixels.
        assert torch.equal(is_box, is_box.any(1)[:, None] & is_box.any(0))
        rows, columns = is_box.any(1).nonzero().flatten(), is_box.any(0).nonzero().flatten()
        if len(rows):
            assert len(rows) == rows[-1] - rows[0] + 1
            assert len(columns) == columns[-1] - columns[0] + 1
        assert share.item() == pytest.approx(1 - is_box.float().mean().item())
        shares.append(share.item())
        covered += is_box
    assert min(shares) < 0.4
    assert max(shares) == 1
    # Uniform shares of 1/2 on average, before edges cut the boxes.
    assert 0.5 < sum(shares) / len(shares) < 0.75
    # Turned over, the image is covered as often: no side is favored.
    assert (covered - covered.flip(0, 1)).abs().mean() < 0.08 * covered.mean()
    assert covered[6, 8] > 1.5 * covered[0, 0]


def test_a_coin_decides_between_blend_and_box():
    image = torch.rand(4, 1, 8, 8, generator=seeded(0))
    torch.manual_seed(2)
    num_blends = 0
    for _ in range(400):
        mixed, partner, share = mix_images(image, 8.0, 1.0)
        if torch.equal(partner, torch.arange(4)):
            continue
        blended = share * image + (1 - share) * image[partner]
        if torch.allclose(mixed, blended):
            num_blends += 1
            assert share >= 0.5
        else:
            boxes(image, mixed, partner)
    assert 160 < num_blends < 250, "a few boxes are empty"


def test_half_precision_stays():
    mixed, _, _ = mix_images(torch.rand(3, 1, 4, 4).bfloat16(), 1.0, 1.0)
    assert mixed.dtype == torch.bfloat16


@pytest.mark.parametrize(("mixup", "cutmix"), [(0.0, 0.0), (-1.0, 1.0), (1.0, -1.0), (float("nan"), 1.0)])
def test_refuses_to_mix_nothing(mixup, cutmix):
    with pytest.raises(ConfigError, match=f"one of them above 0; got mixup={mixup}, cutmix={cutmix}"):
        mix_images(torch.rand(2, 1, 2, 2), mixup, cutmix)
