import json
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lspread.data import FewLabelSplit
from lspread.errors import ConfigError, DataError

LABEL = torch.tensor([0, 1, 2, 0, 1, 2, 0, 1, 2, 0, -1, 1])


def parts(split: FewLabelSplit) -> list[list[int]]:
    return [part.tolist() for part in (split.labeled, split.unlabeled, split.val, split.test)]


@settings(max_examples=40, deadline=None)
@given(
    label=st.lists(st.integers(-1, 3), min_size=30, max_size=60),
    num=st.integers(1, 3),
    seed=st.integers(0, 2**31),
)
def test_per_class_is_balanced_nested_and_a_partition(label: list[int], num: int, seed: int) -> None:
    array = np.array(label + [0, 1, 2, 3] * 4)
    test = torch.arange(0, 8)
    small, large = (
        FewLabelSplit.per_class(torch.from_numpy(array), n, num_classes=4, seed=seed, test=test) for n in (num, num + 1)
    )
    assert np.bincount(array[small.labeled.numpy()], minlength=4).tolist() == [num] * 4
    assert set(small.labeled.tolist()) < set(large.labeled.tolist())
    assert sorted(row for part in parts(small) for row in part) == list(range(len(array)))
    assert (
        small.pool.tolist() == sorted(small.labeled.tolist() + small.unlabeled.tolist()) == list(range(8, len(array)))
    )
    again = FewLabelSplit.per_class(torch.from_numpy(array), num, num_classes=4, seed=seed, test=test)
    assert parts(again) == parts(small)


def test_every_item_is_drawn_equally_often() -> None:
    label = torch.arange(2).repeat_interleave(5)
    count = np.zeros(10)
    for seed in range(500):
        count[FewLabelSplit.per_class(label, 1, num_classes=2, seed=seed).labeled.numpy()] += 1
    # Each count is binomial(500, 1/5): mean 100, standard deviation 9.
    assert count.sum() == 1000
    assert np.abs(count - 100).max() < 4.5 * 9


@pytest.mark.parametrize(("fraction", "expected"), [(0.01, [1, 1, 1]), (0.5, [2, 2, 2]), (1.0, [4, 4, 3])])
def test_fraction_rounds_each_class_and_takes_at_least_one(fraction: float, expected: list[int]) -> None:
    split = FewLabelSplit.fraction(LABEL, fraction, num_classes=3, seed=3)
    assert np.bincount(LABEL[split.labeled].numpy(), minlength=3).tolist() == expected
    assert 10 in split.unlabeled


def test_fraction_skips_a_class_without_items() -> None:
    split = FewLabelSplit.fraction(LABEL, 0.5, num_classes=5, seed=3)
    assert split.num_classes == 5
    assert np.bincount(LABEL[split.labeled].numpy(), minlength=5).tolist() == [2, 2, 2, 0, 0]


def test_from_indices_and_from_given() -> None:
    split = FewLabelSplit.from_indices([7, 0], num_items=9, num_classes=2, val=[3], test=torch.tensor([8, 1]))
    assert parts(split) == [[0, 7], [2, 4, 5, 6], [3], [1, 8]]
    assert split.labeled.dtype == split.val.dtype == torch.int64
    split = FewLabelSplit.from_given(LABEL, num_classes=3, test=torch.tensor([0, 1]))
    assert parts(split) == [[2, 3, 4, 5, 6, 7, 8, 9, 11], [10], [], [0, 1]]


def test_hold_out_keeps_labels_and_takes_known_items() -> None:
    split = FewLabelSplit.per_class(LABEL, 1, num_classes=3, seed=0)
    held = split.hold_out(0.3, LABEL, seed=0)
    assert held.labeled.equal(split.labeled)
    assert held.val.numel() == round(0.3 * 11)
    assert 10 not in held.val
    assert sorted(held.val.tolist() + held.unlabeled.tolist()) == split.unlabeled.tolist()
    assert not held.val.equal(split.hold_out(0.3, LABEL, seed=1).val)


def test_save_and_load(tmp_path: Path) -> None:
    split = FewLabelSplit.per_class(LABEL, 1, num_classes=3, seed=5, test=torch.tensor([0]))
    split.save(tmp_path / "split.json")
    loaded = FewLabelSplit.load(tmp_path / "split.json")
    assert parts(loaded) == parts(split)
    assert (loaded.num_classes, loaded.seed) == (3, 5)
    assert json.loads((tmp_path / "split.json").read_text())["test"] == [0]


@pytest.mark.parametrize(
    ("call", "kind", "message"),
    [
        (
            lambda: FewLabelSplit.per_class(LABEL, 0, num_classes=3, seed=0),
            ConfigError,
            "num_per_class must be at least 1",
        ),
        (
            lambda: FewLabelSplit.per_class(LABEL, 4, num_classes=3, seed=0, class_names=["a", "b", "c"]),
            DataError,
            "class 2 ('c') has 3. Draw at most 3 per class",
        ),
        (
            lambda: FewLabelSplit.per_class(LABEL, 1, num_classes=2, seed=0),
            DataError,
            "3 items have a label outside the classes (first: item 2 has label 2)",
        ),
        (lambda: FewLabelSplit.per_class(LABEL, 1, num_classes=1, seed=0), ConfigError, "at least two classes"),
        (lambda: FewLabelSplit.per_class(LABEL.float(), 1, num_classes=3, seed=0), DataError, "dtype torch.float32"),
        (lambda: FewLabelSplit.fraction(LABEL, 0.0, num_classes=3, seed=0), ConfigError, "fraction must be above 0"),
        (
            lambda: FewLabelSplit.fraction(torch.full((5,), -1), 0.5, num_classes=3, seed=0),
            DataError,
            "No labels at all: none of the 5 items",
        ),
        (
            lambda: FewLabelSplit.from_given(torch.tensor([-1, -1]), num_classes=2),
            DataError,
            "No labels at all: none of the 2 items",
        ),
        (
            lambda: FewLabelSplit.from_given(torch.tensor([-1, 1, 1]), num_classes=2),
            DataError,
            "one class only: all 2 labeled items are of class 1",
        ),
        (lambda: FewLabelSplit.from_indices([], num_items=3, num_classes=2), DataError, "No labels at all: `labeled`"),
        (
            lambda: FewLabelSplit.from_indices([0, 3], num_items=3, num_classes=2),
            DataError,
            "`labeled` names rows outside of a dataset with 3 items (rows 0 to 2): 3",
        ),
        (
            lambda: FewLabelSplit.from_indices([-1], num_items=3, num_classes=2),
            DataError,
            "`labeled` names rows outside",
        ),
        (
            lambda: FewLabelSplit.from_indices([1, 1], num_items=3, num_classes=2),
            DataError,
            "more than once (first: 1)",
        ),
        (
            lambda: FewLabelSplit.from_indices(torch.tensor([0.5]), num_items=3, num_classes=2),
            DataError,
            "needs row numbers",
        ),
        (
            lambda: FewLabelSplit.from_indices([0, 1], num_items=3, num_classes=2, test=[1]),
            DataError,
            "`labeled` and `test` share 1 items (first: 1)",
        ),
        (
            lambda: FewLabelSplit.from_indices([0, 10], num_items=12, num_classes=3, label=LABEL),
            DataError,
            "needs a known class, but 1 of them have none (first: 10)",
        ),
        (
            lambda: FewLabelSplit.per_class(LABEL, 1, num_classes=3, seed=0).hold_out(0.9, LABEL, seed=0),
            ConfigError,
            "needs 10 items whose class is known and that are not training labels, but there are 8",
        ),
        (
            lambda: FewLabelSplit.per_class(LABEL, 1, num_classes=3, seed=0).hold_out(1.0, LABEL, seed=0),
            ConfigError,
            "above 0 and below 1",
        ),
    ],
)
def test_errors(call: Callable[[], object], kind: type[Exception], message: str) -> None:
    with pytest.raises(kind, match=re.escape(message)):
        call()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "cannot be read as JSON"),
        ("[]", "is not a split file"),
        ('{"format": "lspread-split-1", "labeled": [1]}', "lacks unlabeled, val, test, num_classes, seed"),
        (
            '{"format": "lspread-split-1", "labeled": [1], "unlabeled": [1], "val": [], "test": [], '
            '"num_classes": 2, "seed": null}',
            "share 1 items",
        ),
        (
            '{"format": "lspread-split-1", "labeled": ["x"], "unlabeled": [1], "val": [], "test": [], '
            '"num_classes": 2, "seed": null}',
            "cannot be used",
        ),
    ],
)
def test_load_errors_name_the_file(tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "split.json"
    path.write_text(content)
    with pytest.raises(DataError, match=re.escape(message)) as caught:
        FewLabelSplit.load(path)
    assert str(path) in str(caught.value)


def test_load_missing_file(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="There is no split file"):
        FewLabelSplit.load(tmp_path / "no.json")
