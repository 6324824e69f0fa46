"""Embeddings without a network: pixels of images, words of texts, columns of tables."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from lspread.errors import ConfigError, DataError

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


def text_features(texts: Sequence[str], *, model: str | None = None, num_features: int = 256) -> Tensor:
    """Return embeddings of texts.

    Args:
        texts: n texts.
        model: None for words: TF-IDF of words and pairs of words, reduced by a truncated SVD (latent semantic
            analysis). "wordllama" for that package's embeddings; else a local folder of sentence-transformers. Nothing
            is downloaded.
        num_features: Width for words.

    Returns:
        `(n, d)` float32, made for the cosine.

    Raises:
        DataError: There are fewer than two texts, or no words in them.
        ConfigError: The package that `model` needs is not installed, or the folder cannot be loaded.
    """
    if len(texts) < 2:
        raise DataError(f"text_features needs at least two texts; got {len(texts)}.")
    if model == "wordllama":
        try:
            import wordllama
        except ImportError as error:
            raise ConfigError("model 'wordllama' needs the package: pip install wordllama") from error
        # Weights and tokenizer come with the package, which looks for the latter in another folder of its own.
        here = Path(wordllama.__file__).parent
        network = wordllama.WordLlama.load(cache_dir=here, disable_download=True)
        return torch.from_numpy(np.asarray(network.embed(list(texts)), dtype=np.float32))
    if model is not None:
        try:
            from sentence_transformers import SentenceTransformer
        except ImportError as error:
            raise ConfigError(
                f"model {model!r} needs the package sentence-transformers: pip install sentence-transformers"
            ) from error
        try:
            encoder = SentenceTransformer(model, local_files_only=True)
        except (OSError, ValueError) as error:
            raise ConfigError(f"{model} cannot be loaded as a sentence-transformers folder: {error}") from error
        return torch.from_numpy(np.asarray(encoder.encode(list(texts), show_progress_bar=True), dtype=np.float32))

    from sklearn.decomposition import TruncatedSVD
    from sklearn.feature_extraction.text import TfidfVectorizer

    try:
        words = TfidfVectorizer(sublinear_tf=True, ngram_range=(1, 2), min_df=2 if len(texts) > 500 else 1)
        count = words.fit_transform(texts)
    except ValueError as error:
        raise DataError(f"the texts have no words to compare ({error}).") from error
    width = min(num_features, min(count.shape) - 1)
    if width < 1:
        return torch.from_numpy(count.toarray().astype(np.float32))
    found = TruncatedSVD(width, random_state=0).fit_transform(count)
    return torch.from_numpy(found.astype(np.float32))


@dataclass(frozen=True, eq=False)
class TableFeatures:
    """Embeddings of the rows of a table, and what became of its columns.

    Attributes:
        embedding: `(n, d)` float32.
        numeric: Columns taken as numbers, scaled.
        categorical: Columns taken as categories, one feature for each value.
        left_out: Columns that are neither, or hold one value only.
    """

    embedding: Tensor
    numeric: list[str]
    categorical: list[str]
    left_out: list[str]


def table_features(columns: Mapping[str, Sequence[str]]) -> TableFeatures:
    """Return features of the rows of a table: numbers and categories, scaled so that each column counts alike.

    A column whose filled cells are all numbers is scaled to mean 0 and deviation 1; an empty cell counts as the median,
    and one feature more says where cells are empty. Any other column with at most 50 values has one feature for each,
    whose squared distance between two different values is that of two numbers drawn at random.

    Args:
        columns: Name and n cells of each column.

    Raises:
        DataError: No column can be used.
    """
    parts: list[np.ndarray] = []
    numeric, categorical, left_out = [], [], []
    for name, cells in columns.items():
        found = _numbers(cells)
        if found is not None:
            numeric.append(name)
            parts += found
            continue
        values = sorted({cell.strip() for cell in cells})
        if _is_constant(cells) or len(values) > min(MOST_LEVELS, max(2, len(cells) // 2)):
            left_out.append(name)
            continue
        categorical.append(name)
        place = {value: number for number, value in enumerate(values)}
        one_hot = np.zeros((len(cells), len(values)))
        one_hot[np.arange(len(cells)), [place[cell.strip()] for cell in cells]] = 1.0
        parts.append(one_hot)
    if not parts:
        raise DataError(
            f"no column can be used: {', '.join(left_out) or 'there is none'}. Features are numbers, or categories "
            f"with at most {MOST_LEVELS} values, and not the same in every row."
        )
    embedding = torch.from_numpy(np.concatenate(parts, 1).astype(np.float32))
    return TableFeatures(embedding, numeric, categorical, left_out)


def _is_constant(cells: Sequence[str]) -> bool:
    return len({cell.strip() for cell in cells}) < 2


def _numbers(cells: Sequence[str]) -> list[np.ndarray] | None:
    """Return the features of a column of numbers, each `(n, 1)`, or None where it is none or constant."""
    value = np.full(len(cells), np.nan)
    for row, cell in enumerate(cells):
        text = cell.strip()
        if not text or text.lower() in ("nan", "na", "null", "none"):
            continue
        try:
            value[row] = float(text)
        except ValueError:
            return None
        if not math.isfinite(value[row]):
            return None
    is_empty = np.isnan(value)
    if is_empty.all() or (np.nanmax(value) == np.nanmin(value) and not is_empty.any()):
        return None
    filled = np.where(is_empty, np.nanmedian(value), value)
    deviation = filled.std()
    parts = [((filled - filled.mean()) / (deviation if deviation > 0 else 1))[:, None]]
    if is_empty.any():
        parts.append(is_empty[:, None].astype(float))
    return parts
