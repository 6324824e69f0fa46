"""Random changes of images: drawn for each image, done for the whole batch at once on its device."""

import math
from collections.abc import Callable
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lspread.errors import ConfigError, DataError

__all__ = [
    "Padding",
    "PerImage",
    "RandomAffine",
    "RandomColor",
    "RandomErase",
    "StrongAugmentation",
    "WeakAugmentation",
    "check_range",
]

Padding = Literal["zeros", "border", "reflection"]


class RandomAffine(nn.Module):
    """Crop, shift, rotate, scale, shear and mirror each image by its own random amounts, in one bilinear resampling.

    Args:
        crop: Smallest and largest share of the image's area that is cut out, at a random place, and enlarged to the
            image's size.
        aspect: Smallest ratio of width to height of the cut-out, in (0, 1]; the largest is its inverse.
        shift: Largest shift along each axis, as a share of the image's size.
        rotate: Largest rotation either way, in degrees, below 180 or equal.
        scale: Smallest and largest magnification; drawn so that its logarithm is uniform.
        shear: Largest horizontal shear either way, in degrees, below 90.
        flip: Probability of a mirror image (left and right swapped).
        padding: What lies outside the image: "zeros" (black), "border" or "reflection".
        size: Height and width of the result in pixels; None keeps the image's. Smaller ones are cheaper to learn from,
            and show a cut-out as large as the whole image will be seen.

    Raises:
        ConfigError: An option outside its range.
    """

    def __init__(
        self,
        shift: float = 0.0,
        rotate: float = 0.0,
        scale: tuple[float, float] = (1.0, 1.0),
        shear: float = 0.0,
        flip: float = 0.0,
        padding: Padding = "zeros",
        crop: tuple[float, float] = (1.0, 1.0),
        aspect: float = 1.0,
        size: int | None = None,
    ) -> None:
        super().__init__()
        check_range("shift", shift, 0, 1)
        check_range("aspect", aspect, 0.1, 1)
        if len(crop) != 2 or not 0 < crop[0] <= crop[1] <= 1:
            raise ConfigError(
                f"crop must be two shares of the area with 0 < smallest <= largest <= 1, but is {tuple(crop)}."
            )
        check_range("rotate", rotate, 0, 180)
        check_range("shear", shear, 0, 89)
        check_range("flip", flip, 0, 1)
        if len(scale) != 2 or not 0 < scale[0] <= scale[1]:
            raise ConfigError(f"scale must be two numbers with 0 < smallest <= largest, but is {tuple(scale)}.")
        if padding not in ("zeros", "border", "reflection"):
            raise ConfigError(f"padding must be 'zeros', 'border' or 'reflection', but is {padding!r}.")
        if size is not None and size < 1:
            raise ConfigError(f"size must be at least 1 pixel, or None to keep the image's, but is {size}.")
        self.shift, self.rotate, self.shear, self.flip, self.padding = shift, rotate, shear, flip, padding
        self.scale = (scale[0], scale[1])
        self.crop, self.aspect, self.size = (crop[0], crop[1]), aspect, size

    def forward(self, image: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Change each image.

        Args:
            image: (m,ch,h,w) float.
            generator: Source of randomness on the images' device; None takes torch's global one.

        Returns:
            (m,ch,h,w), or (m,ch,size,size), same dtype and device.
        """
        _check_image(image)
        m, channels, height, width = image.shape
        draw = torch.rand(10, m, device=image.device, generator=generator)
        area = self.crop[0] + (self.crop[1] - self.crop[0]) * draw[6]
        ratio = torch.exp((2 * draw[7] - 1) * math.log(self.aspect))
        seen = torch.stack([(area * ratio).sqrt(), (area / ratio).sqrt()]).clamp(max=1)  # shares of width and height
        shift = (2 * draw[:2] - 1) * (2 * self.shift)  # grid_sample's image is 2 wide
        x_shift, y_shift = shift + (2 * draw[8:10] - 1) * (1 - seen)
        angle = (2 * draw[2] - 1) * math.radians(self.rotate)
        low, high = math.log(self.scale[0]), math.log(self.scale[1])
        shrink = torch.exp(-(low + (high - low) * draw[3]))
        tangent = torch.tan((2 * draw[4] - 1) * math.radians(self.shear))
        mirror = 1 - 2 * (draw[5] < self.flip).to(draw.dtype)
        # theta maps a place in the result to one in the source: crop @ rotation @ shear @ mirror / scale, in pixels.
        # The off-diagonal entries change between the units of the two axes.
        cos, sin = torch.cos(angle) * shrink, torch.sin(angle) * shrink
        theta = torch.stack(
            [
                torch.stack([cos * mirror, (cos * tangent - sin) * (height / width)], -1) * seen[0, :, None],
                torch.stack([sin * mirror * (width / height), sin * tangent + cos], -1) * seen[1, :, None],
            ],
            -2,
        )
        theta = torch.cat([theta, torch.stack([x_shift, y_shift], -1)[:, :, None]], -1)
        # In float32 at least: a place in half precision is off by whole pixels.
        dtype = torch.promote_types(image.dtype, torch.float32)
        with torch.autocast(image.device.type, enabled=False):
            shape = [m, channels, self.size or height, self.size or width]
            grid = F.affine_grid(theta.to(dtype), shape, align_corners=False)
            moved = F.grid_sample(image.to(dtype), grid, padding_mode=self.padding, align_corners=False)
        return moved.to(image.dtype)

    def extra_repr(self) -> str:
        """Return the options for `repr`."""
        return (
            f"shift={self.shift}, rotate={self.rotate}, scale={self.scale}, shear={self.shear}, flip={self.flip}, "
            f"padding={self.padding!r}, crop={self.crop}, aspect={self.aspect}, size={self.size}"
        )


class RandomColor(nn.Module):
    """Change brightness, contrast and saturation of each image by its own random factors; clamped to [0, 1].

    Args:
        brightness: Factors are drawn from 1 - brightness to 1 + brightness; in [0, 1].
        contrast: The same, around the image's mean.
        saturation: The same, around the image's grey version; does nothing to images of one channel.

    Raises:
        ConfigError: An option outside [0, 1].
    """

    def __init__(self, brightness: float = 0.0, contrast: float = 0.0, saturation: float = 0.0) -> None:
        super().__init__()
        check_range("brightness", brightness, 0, 1)
        check_range("contrast", contrast, 0, 1)
        check_range("saturation", saturation, 0, 1)
        self.brightness, self.contrast, self.saturation = brightness, contrast, saturation

    def forward(self, image: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Change each image (m,ch,h,w) in [0, 1]; same shape, dtype and device."""
        _check_image(image)
        draw = 2 * torch.rand(3, image.shape[0], 1, 1, 1, device=image.device, generator=generator) - 1
        factor = draw.to(image.dtype)
        image = image * (1 + self.brightness * factor[0])
        image = _blend(image, image.mean((1, 2, 3), keepdim=True), 1 + self.contrast * factor[1])
        if image.shape[1] > 1:
            image = _blend(image, image.mean(1, keepdim=True), 1 + self.saturation * factor[2])
        return image.clamp(0, 1)

    def extra_repr(self) -> str:
        """Return the options for `repr`."""
        return f"brightness={self.brightness}, contrast={self.contrast}, saturation={self.saturation}"


class RandomErase(nn.Module):
    """Paint over one box in some of the images.

    Args:
        probability: Share of images that get a box.
        size: Smallest and largest side of the box, as a share of the image's; height and width are drawn apart. The
            box's center lies anywhere in the image, so that parts of it may lie outside.
        fill: Value inside the box; None takes the mean of each image's channels.

    Raises:
        ConfigError: An option outside its range.

    References:
        DeVries and Taylor, "Improved Regularization of Convolutional Neural Networks with Cutout", 2017.
    """

    def __init__(
        self, probability: float = 0.5, size: tuple[float, float] = (0.2, 0.5), fill: float | None = None
    ) -> None:
        super().__init__()
        check_range("probability", probability, 0, 1)
        if len(size) != 2 or not 0 <= size[0] <= size[1] <= 1:
            raise ConfigError(f"size must be two numbers with 0 <= smallest <= largest <= 1, but is {tuple(size)}.")
        self.probability, self.size, self.fill = probability, (size[0], size[1]), fill

    def forward(self, image: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Paint over boxes in (m,ch,h,w); same shape, dtype and device."""
        _check_image(image)
        m, _, height, width = image.shape
        draw = torch.rand(5, m, 1, device=image.device, generator=generator)
        low, high = self.size
        y = (torch.arange(height, device=image.device) + 0.5) / height
        x = (torch.arange(width, device=image.device) + 0.5) / width
        in_rows = (y - draw[0]).abs() <= (low + (high - low) * draw[1]) / 2
        in_columns = (x - draw[2]).abs() <= (low + (high - low) * draw[3]) / 2
        is_chosen = draw[4] < self.probability
        box = (in_rows[:, :, None] & in_columns[:, None, :] & is_chosen[:, :, None])[:, None]
        if self.fill is not None:
            return image.masked_fill(box, self.fill)
        return torch.where(box, image.mean((2, 3), keepdim=True), image)

    def extra_repr(self) -> str:
        """Return the options for `repr`."""
        return f"probability={self.probability}, size={self.size}, fill={self.fill}"


class WeakAugmentation(RandomAffine):
    """Small changes that keep an image typical of its class: shift and mirror.

    The defaults fit 28 x 28 grey clothes on black. Set `flip=0` for digits, letters and everything that a mirror
    changes; set `padding="reflection"` for photographs.

    Args:
        shift: Largest shift along each axis, as a share of the image's size.
        flip: Probability of a mirror image.
        rotate: Largest rotation either way, in degrees.
        scale: Smallest and largest magnification.
        padding: What lies outside the image.
        size: Height and width of the result in pixels; None keeps the image's.
    """

    def __init__(
        self,
        shift: float = 0.07,
        flip: float = 0.5,
        rotate: float = 0.0,
        scale: tuple[float, float] = (1.0, 1.0),
        padding: Padding = "zeros",
        size: int | None = None,
    ) -> None:
        super().__init__(shift=shift, rotate=rotate, scale=scale, flip=flip, padding=padding, size=size)


class StrongAugmentation(nn.Module):
    """Large changes after which the class can just be told: geometry, then color, then a painted box.

    The defaults fit 28 x 28 grey clothes on black. Set `flip=0` for digits and letters; for photographs set
    `padding="reflection"` and `saturation=0.4`.

    Args:
        shift: Largest shift along each axis, as a share of the image's size.
        rotate: Largest rotation either way, in degrees.
        scale: Smallest and largest magnification.
        shear: Largest horizontal shear either way, in degrees.
        flip: Probability of a mirror image.
        brightness: Largest relative change of brightness.
        contrast: Largest relative change of contrast.
        saturation: Largest relative change of saturation.
        erase: Probability of a painted box.
        erase_size: Smallest and largest side of the box, as a share of the image's.
        padding: What lies outside the image.
        crop: Smallest and largest share of the image's area that is cut out and enlarged; matters for contrastive
            learning.
        aspect: Smallest ratio of width to height of the cut-out.
        size: Height and width of the result in pixels; None keeps the image's.
    """

    def __init__(
        self,
        shift: float = 0.12,
        rotate: float = 15.0,
        scale: tuple[float, float] = (0.8, 1.25),
        shear: float = 10.0,
        flip: float = 0.5,
        brightness: float = 0.3,
        contrast: float = 0.3,
        saturation: float = 0.0,
        erase: float = 0.5,
        erase_size: tuple[float, float] = (0.2, 0.5),
        padding: Padding = "zeros",
        crop: tuple[float, float] = (1.0, 1.0),
        aspect: float = 1.0,
        size: int | None = None,
    ) -> None:
        super().__init__()
        self.affine = RandomAffine(
            shift=shift,
            rotate=rotate,
            scale=scale,
            shear=shear,
            flip=flip,
            padding=padding,
            crop=crop,
            aspect=aspect,
            size=size,
        )
        self.color = RandomColor(brightness=brightness, contrast=contrast, saturation=saturation)
        self.erase = RandomErase(probability=erase, size=erase_size)

    def forward(self, image: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Change each image (m,ch,h,w) in [0, 1]; same dtype and device, and the same shape without `size`."""
        image = self.affine(image, generator)
        image = self.color(image, generator)
        return self.erase(image, generator)


class PerImage(nn.Module):
    """Apply a transform, such as one of torchvision's v2, to each image by itself.

    It is slower than the batched modules here; results must have one shape.

    Args:
        transform: Takes and returns one image (ch,h,w).
    """

    def __init__(self, transform: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.transform = transform

    def forward(self, image: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Change each image (m,ch,h,w); with `generator`, torch's global generator is seeded from it meanwhile."""
        _check_image(image)
        if generator is None:
            return torch.stack([self.transform(one) for one in image])
        devices = [image.device] if image.is_cuda else []
        with torch.random.fork_rng(devices):
            seed = torch.randint(2**62, (), device=generator.device, generator=generator)
            torch.manual_seed(int(seed))  # sync: a seed is a Python number
            return torch.stack([self.transform(one) for one in image])


def _blend(image: Tensor, base: Tensor, factor: Tensor) -> Tensor:
    return base + (image - base) * factor


def _check_image(image: Tensor) -> None:
    if image.dim() != 4 or not image.is_floating_point():
        raise DataError(
            f"Augmentation needs float images (m,ch,h,w) in [0, 1]; got shape {tuple(image.shape)}, dtype "
            f"{image.dtype}. Divide uint8 images by 255 first."
        )
    if image.shape[2:] == (1, 1):
        raise DataError(
            f"Images of one pixel, shape {tuple(image.shape)}, cannot be shifted, turned or painted over. Rows of "
            "tables and texts are changed by lspread.data.RandomCorruption: set it as weak, strong and view."
        )


def check_range(name: str, value: float, low: float, high: float) -> None:
    """Raise `ConfigError` where an option lies outside [low, high]."""
    if not low <= value <= high:
        raise ConfigError(f"{name} must be {low} to {high}, but is {value}.")
