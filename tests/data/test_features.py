import numpy as np
import pytest
import torch

from lspread.data.features import pixel_features, table_features, text_features
from lspread.errors import DataError
from tests.reference import seeded


def test_pixels_forget_brightness_and_contrast():
    image = torch.randint(0, 100, (2, 1, 3, 3), generator=seeded(0), dtype=torch.uint8)
    z = pixel_features(image)
    torch.testing.assert_close(pixel_features(2 * image.float() + 30), z)
    torch.testing.assert_close(z.norm(dim=1), torch.ones(2))
    torch.testing.assert_close(z.sum(1), torch.zeros(2), atol=1e-6, rtol=0)
    flat = image[0].float().flatten() - image[0].float().mean()
    torch.testing.assert_close(z[0], flat / flat.norm())
    assert pixel_features(torch.full((1, 1, 3, 3), 7)).eq(0).all()


def test_texts_of_like_words_are_near():
    texts = ["red apple pie", "apple pie with cream", "steel bolts and nuts", "nuts of steel"]
    z = torch.nn.functional.normalize(text_features(texts), dim=1)
    cosine = z @ z.T
    assert cosine[0, 1] > cosine[0, 2]
    assert cosine[2, 3] > cosine[2, 1]
    with pytest.raises(DataError, match="words are taken from at least two texts; got 1"):
        text_features(["one"])
    with pytest.raises(DataError, match="no words to compare"):
        text_features(["...", "!!!"])


def test_columns_of_a_table_by_hand():
    found = table_features(
        {
            "height": ["1", "2", "", "5"],
            "width": ["4", "8", "6", "6"],
            "kind": ["a", "b", "a", " b "],
            "same": ["x", "x", "x", "x"],
            "zero": ["0", "0", "0", "0"],
            "name": ["p", "q", "r", "s"],
        }
    )
    assert found.numeric == ["height", "width"]
    assert found.categorical == ["kind"]
    assert found.left_out == ["same", "zero", "name"]
    height = np.array([1, 2, 2, 5.0])  # the median where a cell is empty
    width = np.array([4, 8, 6, 6.0])
    expected = np.stack(
        [
            (height - height.mean()) / height.std(),
            [0, 0, 1, 0],
            (width - width.mean()) / width.std(),
            [1, 0, 1, 0],
            [0, 1, 0, 1],
        ],
        1,
    )
    np.testing.assert_allclose(found.embedding, expected, rtol=1e-6)
    with pytest.raises(DataError, match="no column can be used: same"):
        table_features({"same": ["x", "x"]})


def test_infinite_numbers_are_no_numbers():
    found = table_features({"x": ["1", "inf", "3", "1", "1"], "y": ["1", "2", "3", "4", "5"]})
    assert found.numeric == ["y"]


def test_held_out_rows_decide_nothing_in_a_table():
    seen = {"x": ["1", "3", "", "5"], "kind": ["a", "b", "a", "b"], "one": ["7", "7", "7", "7"]}
    new = {"x": ["100", "what", ""], "kind": ["b", "never seen", "a"], "one": ["1", "2", "3"]}
    both = {name: seen[name] + new[name] for name in seen}
    found = table_features(both, reference=range(4))
    alone = table_features(seen)
    assert (found.numeric, found.categorical, found.left_out) == (["x"], ["kind"], ["one"])
    torch.testing.assert_close(found.embedding[:4], alone.embedding)
    # Mean 3 and deviation sqrt(2) of 1, 3, 3 (for the empty cell) and 5; what is no number counts as empty.
    expected = [[97 / 2**0.5, 0, 0, 1], [0, 1, 0, 0], [0, 1, 1, 0]]
    torch.testing.assert_close(found.embedding[4:], torch.tensor(expected))


def test_held_out_texts_decide_nothing():
    texts = ["red apple pie", "apple pie with cream", "steel bolts and nuts", "nuts of steel"]
    more = ["steel nuts steel nuts", "words that nobody knows"]
    found = text_features(texts + more, reference=range(4))
    torch.testing.assert_close(found[:4], text_features(texts), atol=1e-5, rtol=0)
    cosine = torch.nn.functional.normalize(found[4], dim=0) @ torch.nn.functional.normalize(found[:4], dim=1).T
    assert cosine.argmax() == 3
    assert found[5].abs().max() < 1e-6
