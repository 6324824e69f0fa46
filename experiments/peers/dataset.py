"""What every contestant is given: embeddings, draws of few labels, graphs. What only the judges see: true labels."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from lspread.data import Digits, FashionMNIST, FewLabelData
from lspread.errors import DataError

NUM_DRAWS = 3
LABELS_PER_CLASS = 10


@dataclass(frozen=True)
class Sizes:
    """Sizes of one run: items, principal components, nodes of layers, (graphs, nodes) of a batch."""

    knn: int
    width: int
    approximate: int
    layer: tuple[int, ...]
    batch: tuple[int, int]
    large: int
    growth: tuple[int, ...]


FULL = Sizes(
    knn=70_000,
    width=128,
    approximate=200_000,
    layer=(256, 1024, 4096),
    batch=(32, 80),
    large=1_000_000,
    growth=(1_000, 3_000, 10_000, 30_000, 100_000, 300_000, 1_000_000),
)
QUICK = Sizes(
    knn=600, width=32, approximate=1_000, layer=(64, 96, 128), batch=(4, 40), large=1_500, growth=(300, 600, 1_200)
)


class Dataset:
    """Images as pixels and as principal components, and a larger set of the same images shifted and mirrored.

    The large set takes every image at nine shifts of at most one pixel, as it is and mirrored, projected on the same
    components, in an order drawn by seed: any prefix is a random sample of it.
    """

    def __init__(self, data: FewLabelData, sizes: Sizes, folder: Path) -> None:
        items = data.load_items()
        self.sizes, self.folder = sizes, folder
        self.image = items.images.fetch(torch.arange(len(items.images))).squeeze(1).numpy()
        self._true = items.label.numpy()
        if len(self.image) != sizes.knn:
            chosen = np.random.default_rng(0).permutation(len(self.image))[: sizes.knn]
            self.image, self._true = self.image[chosen], self._true[chosen]
        pixels = self.image.reshape(len(self.image), -1).astype(np.float32) / 255
        self.mean = pixels.mean(0)
        centered = pixels - self.mean
        _, vectors = np.linalg.eigh((centered.T @ centered).astype(np.float64))
        self.components = vectors[:, ::-1][:, : sizes.width].astype(np.float32)
        self.truth: dict[str, np.ndarray] = {}
        self._save("pixels", pixels)
        self._save("components", centered @ self.components)
        self.draw_labels("components", self._true)

    def path(self, name: str) -> Path:
        """Where an array lies."""
        return self.folder / f"{name}.npy"

    def _save(self, name: str, array: np.ndarray) -> Path:
        np.save(self.path(name), array)
        return self.path(name)

    def draw_labels(self, name: str, true: np.ndarray) -> Path:
        """Save `NUM_DRAWS` rows of labels `(draws, n)` int64, -1 where unknown; the truth stays here."""
        self.truth[name] = true
        given = np.full((NUM_DRAWS, len(true)), -1, dtype=np.int64)
        for seed, row in enumerate(given):
            generator = np.random.default_rng(seed)
            for number in np.unique(true):
                members = np.flatnonzero(true == number)
                chosen = generator.choice(members, LABELS_PER_CLASS, replace=False)
                row[chosen] = number
        return self._save(f"{name}_given", given)

    def subset(self, count: int) -> str:
        """Save the first `count` rows of the large set with draws of labels, and return the name."""
        name = f"sample_{count}"
        if not self.path(name).exists():
            self._make_large()
            self._save(name, np.load(self.path("large"), mmap_mode="r")[:count])
            self.draw_labels(name, self.truth["large"][:count])
        return name

    def _make_large(self) -> None:
        if self.path("large").exists():
            return
        num_images, height, width = self.image.shape
        copies = [(dy, dx, flip) for flip in (False, True) for dy in (0, -1, 1) for dx in (0, -1, 1)]
        largest = max(self.sizes.large, self.sizes.approximate)
        if num_images * len(copies) < largest:
            raise DataError(f"{num_images} images in {len(copies)} positions are fewer than {largest} items.")
        order = np.random.default_rng(0).permutation(num_images * len(copies))[:largest]
        place = np.empty(num_images * len(copies), dtype=np.int64)
        place.fill(-1)
        place[order] = np.arange(largest)
        large = np.lib.format.open_memmap(
            self.path("large"), mode="w+", dtype=np.float32, shape=(largest, self.components.shape[1])
        )
        true = np.empty(largest, dtype=np.int64)
        for number, (dy, dx, flip) in enumerate(copies):
            image = self.image[:, :, ::-1] if flip else self.image
            padded = np.pad(image, ((0, 0), (1, 1), (1, 1)))
            moved = padded[:, 1 + dy : 1 + dy + height, 1 + dx : 1 + dx + width]
            rows = place[number * num_images : (number + 1) * num_images]
            kept = np.flatnonzero(rows >= 0)
            for part in np.array_split(kept, -(-len(kept) // 10_000)):
                pixels = moved[part].reshape(len(part), -1).astype(np.float32) / 255
                large[rows[part]] = (pixels - self.mean) @ self.components
            true[rows[kept]] = self._true[kept]
        large.flush()
        self.truth["large"] = true


def load_dataset(sizes: Sizes, folder: Path, *, is_quick: bool) -> Dataset:
    """Read Fashion-MNIST, or for a quick run scikit-learn's digits; raises `DataError` where it is missing."""
    data = Digits() if is_quick else FashionMNIST()
    return Dataset(data, sizes, folder)
