"""Embeddings without a network: pixels of images, words of texts, columns of tables."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from lspread.data.text_models import embed_with_folder, embed_with_wordllama
from lspread.errors import DataError

__all__ = ["TableFeatures", "pixel_features", "table_features", "text_features"]

MOST_LEVELS = 50
"""Values that a column of categories may have; columns with more, such as names, tell items apart and no more."""


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
        DataError: There are fewer than two texts, or no words in them.
        ConfigError: The package that `model` needs is not installed, or the folder cannot be loaded.
    """
    if len(texts) < 2:
        raise DataError(f"text_features needs at least two texts; got {len(texts)}.")
    if model == "wordllama":
        return embed_with_wordllama(texts)
    if model is not None:
        return embed_with_folder(texts, model)

    from sklearn.decomposition import TruncatedSVD
    from sklearn.feature_extraction.text import TfidfVectorizer

    known = texts if reference is None else [texts[row] for row in reference]
    try:
        words = TfidfVectorizer(sublinear_tf=True, ngram_range=(1, 2), min_df=2 if len(known) > 500 else 1).fit(known)
    except ValueError as error:
        raise DataError(f"the texts have no words to compare ({error}).") from error
    count, known_count = words.transform(texts), words.transform(known)
    width = min(num_features, min(known_count.shape) - 1)
    if width < 1:
        return torch.from_numpy(count.toarray().astype(np.float32))
    found = TruncatedSVD(width, random_state=0).fit(known_count).transform(count)
    return torch.from_numpy(found.astype(np.float32))


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
    parts: list[np.ndarray] = []
    numeric, categorical, left_out = [], [], []
    spoiled: dict[str, tuple[int, str]] = {}
    for name, cells in columns.items():
        rows = range(len(cells)) if reference is None else reference
        known = [cells[row] for row in rows]
        found = _numbers(cells, known)
        if found is not None:
            numeric.append(name)
            parts += found
            continue
        place = _spoiling_cell(known)
        if place is not None:
            spoiled[name] = (rows[place], known[place])
        values = sorted({cell.strip() for cell in known})
        if len(values) < 2 or len(values) > min(MOST_LEVELS, max(2, len(known) // 2)):
            left_out.append(name)
            continue
        categorical.append(name)
        parts.append((np.array([cell.strip() for cell in cells])[:, None] == np.array(values)).astype(float))
    if not parts:
        raise DataError(
            f"no column can be used: {', '.join(left_out) or 'there is none'}. Features are numbers, or categories "
            f"with at most {MOST_LEVELS} values, and not the same in every row."
        )
    embedding = torch.from_numpy(np.concatenate(parts, 1).astype(np.float32))
    return TableFeatures(embedding, numeric, categorical, left_out, spoiled)


def _numbers(cells: Sequence[str], known: Sequence[str]) -> list[np.ndarray] | None:
    """Return the features of a column of numbers, each `(n, 1)`, or None where the known cells are none or constant."""
    reference = [_number(cell) for cell in known]
    if None in reference:
        return None
    known_value = np.array(reference, dtype=float)
    has_empty = bool(np.isnan(known_value).any())
    if np.isnan(known_value).all() or (np.nanmax(known_value) == np.nanmin(known_value) and not has_empty):
        return None
    value = np.array([np.nan if number is None else number for number in map(_number, cells)])
    median, is_empty = np.nanmedian(known_value), np.isnan(value)
    known_filled = np.where(np.isnan(known_value), median, known_value)
    deviation = known_filled.std()
    filled = np.where(is_empty, median, value)
    parts = [((filled - known_filled.mean()) / (deviation if deviation > 0 else 1))[:, None]]
    if has_empty:
        parts.append(is_empty[:, None].astype(float))
    return parts


def _spoiling_cell(cells: Sequence[str]) -> int | None:
    """Return the place of the first cell that is no number, where at least half of the filled ones are or look so."""
    number = [_number(cell) for cell in cells]
    if None not in number:
        return None
    like = [_number(cell.replace(",", ".", 1)) for cell in cells]
    num_filled = sum(value is None or not math.isnan(value) for value in like)
    num_like = sum(value is not None and not math.isnan(value) for value in like)
    return number.index(None) if 2 * num_like >= num_filled else None


def _number(cell: str) -> float | None:
    """Return the number in a cell, NaN for an empty one, None where it is neither."""
    text = cell.strip()
    if not text or text.lower() in ("nan", "na", "null", "none"):
        return math.nan
    try:
        value = float(text)
    except ValueError:
        return None
    return value if math.isfinite(value) else None
