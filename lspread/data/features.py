"""Embeddings without a network: pixels of images, words of texts, columns of tables."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lspread.data.table_columns import TableColumns
from lspread.data.text_models import embed_with_model
from lspread.data.words import Words

__all__ = ["TableFeatures", "pixel_features", "table_features", "text_features"]


def pixel_features(image: Tensor) -> Tensor:
    """Return pixels as features: each image less its own mean, at unit length.

    Args:
        image: `(m, ch, h, w)` uint8 or floating point.

    Returns:
        `(m, ch * h * w)` float32; brightness and contrast of the whole image no longer matter. Zero for an image of one
        value.
    """
    flat = image.flatten(1).float()
    return torch.nn.functional.normalize(flat - flat.mean(1, keepdim=True), dim=1)


def text_features(
    texts: Sequence[str],
    *,
    model: str | None = None,
    num_features: int = 256,
    reference: Sequence[int] | None = None,
) -> Tensor:
    """Return embeddings of texts.

    Args:
        texts: n texts.
        model: None for words: TF-IDF of words and pairs of words, reduced by a truncated SVD (latent semantic
            analysis). "wordllama" for that package's embeddings; else a local folder of sentence-transformers. Nothing
            is downloaded.
        num_features: Width for words.
        reference: Rows whose words count, as held-out texts must not; None: all. A model has its words already.

    Returns:
        `(n, d)` float32, made for the cosine.

    Raises:
        DataError: Words of fewer than two texts are asked for, or there are none in them.
        ConfigError: The package that `model` needs is not installed, or the folder cannot be loaded.
    """
    if model is not None:
        return embed_with_model(texts, model)
    return Words.fit(texts if reference is None else [texts[row] for row in reference], num_features).encode(texts)


@dataclass(frozen=True, eq=False)
class TableFeatures:
    """Embeddings of the rows of a table, and what became of its columns.

    Attributes:
        embedding: `(n, d)` float32.
        numeric: Columns taken as numbers, scaled.
        categorical: Columns taken as categories, one feature for each value.
        left_out: Columns that are neither, or hold one value only.
        spoiled: What keeps a column from being numbers though at least half of its filled cells are, or would be with
            decimal points: its first such row and cell.
    """

    embedding: Tensor
    numeric: list[str]
    categorical: list[str]
    left_out: list[str]
    spoiled: dict[str, tuple[int, str]]


def table_features(columns: Mapping[str, Sequence[str]], *, reference: Sequence[int] | None = None) -> TableFeatures:
    """Return features of the rows of a table: numbers and categories, scaled so that each column counts alike.

    A column whose filled cells are all numbers is scaled to mean 0 and deviation 1; an empty cell counts as the median,
    and one feature more says where cells are empty. Any other column with at most 50 values has one feature for each,
    whose squared distance between two different values is that of two numbers drawn at random.

    Args:
        columns: Name and n cells of each column.
        reference: Rows that decide what a column is, its scale and its values, as held-out rows must not; None: all.
            Elsewhere, what is no number counts as empty, and an unknown category as none of the known ones.

    Raises:
        DataError: No column can be used.
    """
    found = TableColumns.fit(columns, reference)
    return TableFeatures(found.encode(columns), found.numeric, found.categorical, found.left_out, found.spoiled)
