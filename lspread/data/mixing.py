"""Images mixed in pairs."""

import torch
from torch import Tensor

from lspread.errors import ConfigError

__all__ = ["mix_images"]


def mix_images(image: Tensor, mixup: float, cutmix: float = 0.0) -> tuple[Tensor, Tensor, Tensor]:
    """Return every image mixed with another one of the batch: blended (mixup), or with a box cut from it (CutMix).

    Args:
        image: `(m, ch, h, w)` float.
        mixup: alpha > 0 of the Beta(alpha, alpha) that the share of a blend comes from; small ones mix little. 0 never
            blends.
        cutmix: The same for the share that a box leaves; 0 never cuts. Where both are above 0, a coin decides for the
            whole batch.

    Returns:
        The mixed images; who each was mixed with `(m,)` int64; the share of the image itself, a 0-dimensional tensor,
        one for the batch: in [1/2, 1] for a blend; in [0, 1] for a box, whose pixels it counts. Nothing is read from
        the device.

    Raises:
        ConfigError: One of the two is negative, or both are 0.

    References:
        Zhang et al., "mixup: Beyond Empirical Risk Minimization", ICLR 2018, section 2; the larger share stays with the
        image, as in Berthelot et al., "MixMatch", NeurIPS 2019, equation 9.
        Yun et al., "CutMix: Regularization Strategy to Train Strong Classifiers with Localizable Features", ICCV 2019,
        equations 1 and 2.
    """
    if not (mixup >= 0 and cutmix >= 0 and mixup + cutmix > 0):
        raise ConfigError(
            f"mix_images needs mixup and cutmix of 0 or more, one of them above 0; got mixup={mixup}, cutmix={cutmix}."
        )
    partner = torch.randperm(len(image), device=image.device)
    if not cutmix:
        share = _blend_share(mixup, image.device)
        return torch.lerp(image[partner], image, share.to(image.dtype)), partner, share
    # Where the image itself is seen `(h, w)`: everywhere a little, or outside the box wholly.
    seen = _outside_box(cutmix, image)
    if mixup:
        is_cut = torch.rand((), device=image.device) < 0.5
        seen = torch.where(is_cut, seen, _blend_share(mixup, image.device))
    return torch.lerp(image[partner], image, seen.to(image.dtype)), partner, seen.mean()


def _beta(concentration: float, device: torch.device) -> Tensor:
    both = torch.full((), concentration, device=device)
    return torch.distributions.Beta(both, both, validate_args=False).sample()


def _blend_share(concentration: float, device: torch.device) -> Tensor:
    share = _beta(concentration, device)
    return torch.maximum(share, 1 - share)


def _outside_box(concentration: float, image: Tensor) -> Tensor:
    """Return 0 inside a box `(h, w)` float32, 1 outside; its center lies anywhere, so edges may cut it."""
    side = (1 - _beta(concentration, image.device)).sqrt()
    is_inside = []
    for length in image.shape[-2:]:
        center = (torch.rand((), device=image.device) * (length + 1)).floor()
        half = (side * length / 2).floor()
        place = torch.arange(length, device=image.device)
        is_inside.append((place >= center - half) & (place < center + half))
    return 1 - (is_inside[0][:, None] & is_inside[1]).float()
