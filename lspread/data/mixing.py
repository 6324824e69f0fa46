"""Images mixed in pairs."""

import torch
from torch import Tensor

from lspread.errors import ConfigError

__all__ = ["mix_images"]


def mix_images(image: Tensor, concentration: float) -> tuple[Tensor, Tensor, Tensor]:
    """Return every image mixed with another one of the batch (mixup).

    Args:
        image: `(m, ch, h, w)` float.
        concentration: alpha > 0 of the Beta(alpha, alpha) that the share comes from; small ones mix little.

    Returns:
        The mixed images; who each was mixed with `(m,)` int64; the share of the image itself, a 0-dimensional tensor in
        [1/2, 1], one for the batch. Nothing is read from the device.

    Raises:
        ConfigError: The concentration is not positive.

    References:
        Zhang et al., "mixup: Beyond Empirical Risk Minimization", ICLR 2018, section 2; the larger share stays with the
        image, as in Berthelot et al., "MixMatch", NeurIPS 2019, equation 9.
    """
    if not concentration > 0:
        raise ConfigError(f"mixup needs a concentration greater than 0; got {concentration}.")
    partner = torch.randperm(len(image), device=image.device)
    both = torch.full((), concentration, device=image.device)
    share = torch.distributions.Beta(both, both, validate_args=False).sample()
    share = torch.maximum(share, 1 - share)
    return torch.lerp(image[partner], image, share.to(image.dtype)), partner, share
