"""A small residual network for small images."""

from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn.functional import adaptive_avg_pool2d, relu

from lspread.errors import ConfigError, DataError

__all__ = ["SmallResNet"]


class SmallResNet(nn.Module):
    """A residual network for small images, from 8x8 digits (`stem_stride=1`) over 28x28 to 32x32.

    A 3x3 stem, then one stage of basic blocks per width; the first stage keeps the size and every later one halves
    it; an average over the map ends it. No head: `forward` returns embeddings.

    Args:
        in_channels: Channels of the images.
        widths: Channels of each stage; the last one is the width of the embeddings.
        blocks_per_stage: Basic blocks (two 3x3 convolutions each) in every stage.
        stem_stride: Stride of the stem. 2 is four times cheaper, 1 keeps more of tiny images.
        pool_size: Side of the grid that the last map is averaged to. 1 forgets where things were; 2 keeps the four
            quarters apart, which tells more where the objects are aligned, as in centered product pictures.

    Attributes:
        num_features: d, the width of the embeddings.

    Raises:
        ConfigError: A width, number or stride is below 1, or there is no width.

    References:
        He et al., "Deep Residual Learning for Image Recognition", CVPR 2016, sections 3.3 and 4.2.
    """

    def __init__(
        self,
        in_channels: int = 1,
        widths: Sequence[int] = (16, 32, 64),
        blocks_per_stage: int = 1,
        stem_stride: int = 2,
        pool_size: int = 1,
    ) -> None:
        super().__init__()
        if not widths or min(in_channels, blocks_per_stage, stem_stride, pool_size, *widths) < 1:
            raise ConfigError(
                f"SmallResNet needs at least one width and only numbers >= 1; got in_channels={in_channels}, "
                f"widths={tuple(widths)}, blocks_per_stage={blocks_per_stage}, stem_stride={stem_stride}, "
                f"pool_size={pool_size}. The defaults are widths=(16, 32, 64), blocks_per_stage=1, stem_stride=2, "
                "pool_size=1."
            )
        self.in_channels = in_channels
        self.pool_size = pool_size
        self.num_features = int(widths[-1]) * pool_size**2
        self.stem = nn.Conv2d(in_channels, widths[0], 3, stride=stem_stride, padding=1, bias=False)
        self.stem_norm = nn.BatchNorm2d(widths[0])
        stages = []
        num_in = widths[0]
        for number, width in enumerate(widths):
            strides = [1 if number == 0 else 2] + [1] * (blocks_per_stage - 1)
            stages.append(
                nn.Sequential(
                    *(_BasicBlock(num_in if s == 0 else width, width, strides[s]) for s in range(blocks_per_stage))
                )
            )
            num_in = width
        self.stages = nn.Sequential(*stages)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, image: Tensor) -> Tensor:
        """Embed images.

        Args:
            image: (m,ch,h,w) floating point; any memory format, channels_last is faster.

        Returns:
            (m,d) embeddings, not normalized; full gradient; the dtype of `image`, or autocast's.

        Raises:
            DataError: `image` has other dimensions, another number of channels or no floating point dtype.
        """
        if image.ndim != 4 or image.shape[1] != self.in_channels or not image.is_floating_point():
            raise DataError(
                f"SmallResNet needs floating point images (m,{self.in_channels},h,w); got shape {tuple(image.shape)}, "
                f"{image.dtype}. Scale uint8 images with image.float() / 255; in_channels= sets the channels."
            )
        hidden = self.stages(relu(self.stem_norm(self.stem(image))))
        return adaptive_avg_pool2d(hidden, self.pool_size).flatten(1)


class _BasicBlock(nn.Module):
    """Two 3x3 convolutions beside a shortcut, which is a 1x1 convolution where the shape changes."""

    def __init__(self, num_in: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(num_in, width, 3, stride=stride, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(width)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or num_in != width:
            self.shortcut = nn.Sequential(_Pointwise(num_in, width, stride), nn.BatchNorm2d(width))

    def forward(self, hidden: Tensor) -> Tensor:
        inner = self.norm2(self.conv2(relu(self.norm1(self.conv1(hidden)))))
        return relu(inner + self.shortcut(hidden))


class _Pointwise(nn.Conv2d):
    """A 1x1 convolution of every stride-th pixel.

    The pixels are taken before and not by the convolution: with a stride and fewer than eight channels, oneDNN's
    gradient of the weights is wrong on CPUs with AVX2 only, and it writes where it must not (oneDNN issue 6035).
    """

    def __init__(self, num_in: int, width: int, stride: int) -> None:
        super().__init__(num_in, width, 1, bias=False)
        self.step = stride

    def forward(self, hidden: Tensor) -> Tensor:
        return super().forward(hidden[:, :, :: self.step, :: self.step])
