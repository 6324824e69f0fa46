"""Texts as their words: TF-IDF, pressed into a few numbers."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from lspread.errors import DataError

if TYPE_CHECKING:
    from sklearn.feature_extraction.text import TfidfVectorizer

__all__ = ["MOST_WORDS", "Words"]

MOST_WORDS = 50_000
"""Words and pairs of words that count, the commonest: what is kept of them with a run takes 50 MB at most."""


@dataclass(frozen=True, eq=False)
class Words:
    """Words and pairs of words that texts are compared by (latent semantic analysis).

    Attributes:
        vocabulary: The v words and pairs of words, in order.
        idf: How rare each is, `(v,)` float64.
        components: Directions of the truncated SVD, `(d, v)` float32; None where words or texts are too few.
    """

    vocabulary: list[str]
    idf: Tensor
    components: Tensor | None

    @classmethod
    def fit(cls, texts: Sequence[str], num_features: int = 256) -> "Words":
        """Take words and directions from texts.

        Args:
            texts: n texts.
            num_features: Width d, where there are as many words and texts.

        Raises:
            DataError: There are fewer than two texts, or no words in them.
        """
        if len(texts) < 2:
            raise DataError(f"words are taken from at least two texts; got {len(texts)}.")
        from sklearn.decomposition import TruncatedSVD

        counter = _vectorizer(min_df=2 if len(texts) > 500 else 1, max_features=MOST_WORDS)
        try:
            count = counter.fit_transform(texts)
        except ValueError as error:
            raise DataError(f"the texts have no words to compare ({error}).") from error
        vocabulary = [str(word) for word in counter.get_feature_names_out()]
        idf = torch.from_numpy(np.asarray(counter.idf_, dtype=np.float64))
        width = min(num_features, min(count.shape) - 1)
        if width < 1:
            return cls(vocabulary, idf, None)
        found = TruncatedSVD(width, random_state=0).fit(count).components_
        return cls(vocabulary, idf, torch.from_numpy(found.astype(np.float32)))

    def encode(self, texts: Sequence[str]) -> Tensor:
        """Return embeddings `(n, d)` float32 of n texts, made for the cosine; zeros where no word is known."""
        counter = _vectorizer(vocabulary=self.vocabulary)
        counter.idf_ = self.idf.numpy()
        count = counter.transform(texts)
        found = count.toarray() if self.components is None else count @ self.components.numpy().T
        return torch.from_numpy(np.asarray(found, dtype=np.float32))


def _vectorizer(**options: Any) -> "TfidfVectorizer":
    from sklearn.feature_extraction.text import TfidfVectorizer

    return TfidfVectorizer(sublinear_tf=True, ngram_range=(1, 2), **options)
