import csv
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
import torch
from sklearn.datasets import load_breast_cancer

from lspread.data import RowData
from lspread.data.features import table_features, text_features
from lspread.errors import ConfigError, DataError
from lspread.typing import UNLABELED


def write(path: Path, header: list[str], rows: Iterable[Iterable[Any]]) -> str:
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([header, *rows])
    return str(path)


def ready(path: str, *others: str, **options: Any) -> RowData:
    data = RowData(path, *others, **options)
    data.setup()
    return data


@pytest.fixture
def cancer(tmp_path: Path) -> str:
    """30 measurements of 569 tumors, each with its diagnosis."""
    bunch = load_breast_cancer()
    header = [*map(str, bunch.feature_names), "label"]
    rows = ([*row, bunch.target_names[c]] for row, c in zip(bunch.data, bunch.target, strict=True))
    return write(tmp_path / "cancer.csv", header, rows)


def test_labels_of_a_column_and_labels_drawn_from_it(cancer: str) -> None:
    data = ready(cancer, num_labels_per_class=10, test_fraction=0.2, val_fraction=0.1)
    assert (data.name, data.kind, data.in_channels) == ("cancer", "table", 30)
    assert data.class_names == ["benign", "malignant"]
    split = data.split
    assert data.given_label[split.labeled].bincount().tolist() == [10, 10]
    assert (len(split.labeled), len(split.val), len(split.test)) == (20, 57, 114)
    truth = torch.from_numpy(1 - load_breast_cancer().target)
    assert data.evaluator.label(torch.arange(569)).equal(truth)
    for part in (split.val, split.test):
        assert truth[part].float().mean() == pytest.approx(212 / 569, abs=0.02)
    # Scaled by the pool: held-out rows had no say.
    pool = data.images.fetch(split.pool).flatten(1)
    torch.testing.assert_close(pool.mean(0), torch.zeros(30), atol=1e-5, rtol=0)
    torch.testing.assert_close(pool.std(0, correction=0), torch.ones(30), atol=1e-5, rtol=0)
    assert data.images.fetch(split.test).flatten(1).mean(0).abs().max() > 0.01


def test_empty_cells_are_unlabeled_and_no_column_of_facts_is_a_feature(tmp_path: Path) -> None:
    rows = [
        [f"id{i}", i % 7, "xyz"[i % 3], f"clinic {i % 2}", "a" if i < 3 else "b" if i < 6 else " "] for i in range(30)
    ]
    path = write(tmp_path / "t.csv", ["id", "size", "kind", "site", "label"], rows)
    data = ready(path, leave_out=["site"])
    assert data.items == [f"id{i}" for i in range(30)]
    assert data.excerpts is not None
    assert data.excerpts[5] == "size 5, kind z"
    assert data.given_label.tolist() == [0] * 3 + [1] * 3 + [UNLABELED] * 24
    expected = table_features({"size": [str(r[1]) for r in rows], "kind": [r[2] for r in rows]})
    assert data.images.fetch(torch.arange(30)).flatten(1).equal(expected.embedding)
    assert not data.evaluator.has_truth(data.split.unlabeled)


def test_labels_in_a_file_of_their_own(tmp_path: Path) -> None:
    path = write(tmp_path / "t.csv", ["item", "x", "label"], [[f"r{i}", i, "secret"] for i in range(8)])
    labels = write(tmp_path / "labels.csv", ["item", "label"], [["r1", "u"], ["r6", "v"], ["r7", ""]])
    data = ready(path, labels)
    assert data.class_names == ["u", "v"]
    assert data.given_label.tolist() == [-1, 0, -1, -1, -1, -1, 1, -1]
    assert data.in_channels == 1  # the column `label` is never a feature
    write(tmp_path / "labels.csv", ["item", "label"], [["r1", "u"], ["r9", "v"]])
    with pytest.raises(DataError, match=r"names 1 of 2 items that are not rows of .*t\.csv(.|\n)*line 3: r9"):
        RowData(path, labels)


def test_texts_by_words_and_by_wordllama(tmp_path: Path) -> None:
    texts = ["red apple pie", "apple pie and cream", "cream on a pie", "steel bolts", "bolts and nuts", "nuts of steel"]
    rows = [[text, label] for text, label in zip(texts, ["food", "", "", "tool", "", ""], strict=True)]
    path = write(tmp_path / "t.csv", ["text", "label"], rows)
    data = ready(path)
    assert (data.kind, data.items) == ("text", ["1", "2", "3", "4", "5", "6"])
    torch.testing.assert_close(data.images.fetch(torch.arange(6)).flatten(1), text_features(texts))
    pytest.importorskip("wordllama")
    assert data.excerpts == texts
    data = ready(path, text_model="wordllama")
    torch.testing.assert_close(data.images.fetch(torch.arange(6)).flatten(1), text_features(texts, model="wordllama"))
    with pytest.raises(ConfigError, match="sentence"):
        RowData(path, text_model=str(tmp_path / "none"))


def test_a_test_file_with_and_without_labels(tmp_path: Path) -> None:
    path = write(tmp_path / "t.csv", ["id", "x", "label"], [[i, i, "ab"[i % 2]] for i in range(10)])
    new = write(tmp_path / "new.csv", ["x", "id", "label"], [[1000, 50, "b"], [2, 51, ""]])
    data = ready(path, test_csv=new)
    assert data.split.test.tolist() == [10, 11]
    assert data.items[10:] == ["50", "51"]
    assert data.evaluator.label(data.split.test).tolist() == [1, UNLABELED]
    # The row of 1000 did not touch the scale of the others.
    seen = table_features({"x": [str(i) for i in range(10)]}).embedding
    torch.testing.assert_close(data.images.fetch(torch.arange(10)).flatten(1), seen)
    bare = write(tmp_path / "bare.csv", ["id", "x"], [[50, 3]])
    assert not (found := ready(path, test_csv=bare)).evaluator.has_truth(found.split.test)
    # Labels are drawn as without the file.
    assert ready(path, test_csv=new, num_labels_per_class=1).split.labeled.equal(
        ready(path, num_labels_per_class=1).split.labeled
    )
    nameless = write(tmp_path / "u.csv", ["x", "label"], [[i, "ab"[i % 2]] for i in range(10)])
    assert ready(nameless, test_csv=write(tmp_path / "later.csv", ["x"], [[4]])).items[-1] == "later-1"


@pytest.mark.parametrize(
    ("header", "row", "message"),
    [
        (["id", "label"], [50, "a"], r"new\.csv lacks columns that .*t\.csv has: x"),
        (["id", "x"], [3, 1], r"new\.csv: '3' of `id` is also a row for training"),
        (["id", "x", "label"], [50, 1, "c"], r"new\.csv, line 2: label 'c' is outside the classes a, b"),
        (["x"], [1], r"new\.csv has no column `id`"),
    ],
)
def test_test_files_that_do_not_fit(tmp_path: Path, header: list[str], row: list[Any], message: str) -> None:
    path = write(tmp_path / "t.csv", ["id", "x", "label"], [[i, i, "ab"[i % 2]] for i in range(10)])
    with pytest.raises(DataError, match=message):
        RowData(path, test_csv=write(tmp_path / "new.csv", header, [row]))


def test_customers_stay_together(tmp_path: Path) -> None:
    rows = [[i % 12, i, "ab"[i % 2] if i < 60 else ""] for i in range(96)]
    path = write(tmp_path / "t.csv", ["customer", "x", "label"], rows)
    data = ready(path, group_column="customer", test_fraction=0.25, val_fraction=0.25, num_labels_per_class=2)
    split = data.split
    sides = [{row % 12 for row in part.tolist()} for part in (split.pool, split.val, split.test)]
    assert [len(side) for side in sides] == [6, 3, 3]
    assert set.union(*sides) == set(range(12))
    assert data.in_channels == 1  # the customer is no feature
    # Rows of a customer with a given label are not judged.
    known = {row % 12 for row in split.labeled.tolist()}
    for row in split.unlabeled.tolist():
        assert data.evaluator.has_truth(torch.tensor([row])) == (row % 12 not in known and row < 60)


@pytest.mark.parametrize("group_column", [None, "author"])
def test_new_rows_change_nothing_for_the_others(group_column: str | None, tmp_path: Path) -> None:
    rows = [[f"author {i // 3}", f"word{i} thing{i % 7} {'red' if i % 2 else 'blue'}", "ab"[i % 2]] for i in range(60)]
    path = write(tmp_path / "t.csv", ["author", "text", "label"], rows)
    new = write(tmp_path / "new.csv", ["author", "text"], [[f"author {i}b", f"word{i} red"] for i in range(20)])
    options: dict[str, Any] = {"group_column": group_column, "test_fraction": 0.2, "val_fraction": 0.2}
    alone, beside = ready(path, **options), ready(path, test_csv=new, **options)
    assert beside.split.pool.equal(alone.split.pool)
    assert beside.split.val.equal(alone.split.val)
    assert beside.split.test.tolist() == [*alone.split.test.tolist(), *range(60, 80)]
    torch.testing.assert_close(beside.images.fetch(torch.arange(60)), alone.images.fetch(torch.arange(60)))
    assert beside.features_fingerprint == alone.features_fingerprint
    # Another pool has other words.
    options["test_fraction"] = 0.3
    assert ready(path, **options).features_fingerprint != alone.features_fingerprint


def test_columns_that_are_no_features_are_named(tmp_path: Path) -> None:
    rows = [[i, f"{i},5", "?" if i == 4 else i, f"name {i}", "ab"[i % 2]] for i in range(60)]
    path = write(tmp_path / "t.csv", ["x", "price", "size", "person", "label"], rows)
    with pytest.warns(UserWarning, match="is no number") as found:
        assert ready(path).in_channels == 1
    said = [str(one.message).removeprefix(path) for one in found]
    assert said[0].startswith(", line 2: '0,5' is no number, so the whole column `price` is left out. Numbers are")
    assert said[1].startswith(", line 6: '?' is no number, so the whole column `size` is left out.")
    assert said[2].startswith(": left out person: a feature is numbers, or categories of at most 50 values")
    assert len(said) == 3


def test_groups_that_cannot_be_used(tmp_path: Path) -> None:
    path = write(tmp_path / "t.csv", ["who", "x", "label"], [["p" if i else "", i, "ab"[i % 2]] for i in range(8)])
    with pytest.raises(DataError, match="has no column `patient`; it has who, x, label"):
        RowData(path, group_column="patient")
    with pytest.raises(DataError, match=r"line 2: the cell `who` is empty\. Every row needs its group"):
        RowData(path, group_column="who")
    path = write(tmp_path / "t.csv", ["who", "x", "label"], [["p", i, "ab"[i % 2]] for i in range(8)])
    new = write(tmp_path / "new.csv", ["who", "x", "label"], [["q", 3, "a"], ["", 4, "b"]])
    with pytest.raises(DataError, match=r"new\.csv, line 3: the cell `who` is empty"):
        RowData(path, group_column="who", test_csv=new)
    with pytest.raises(DataError, match="at least 2 groups to choose from; there are 1"):
        RowData(path, group_column="who", test_fraction=0.2)
    new = write(tmp_path / "new.csv", ["who", "x", "label"], [["p", 3, "a"]])
    with pytest.raises(DataError, match="group 'p' stands in the training pool and in test"):
        ready(path, group_column="who", test_csv=new)
    # Without a label there is nothing to judge: the next row of a customer who is known.
    bare = write(tmp_path / "bare.csv", ["who", "x"], [["p", 3]])
    assert ready(path, group_column="who", test_csv=bare).split.test.tolist() == [8]


@pytest.mark.parametrize(
    ("rows", "options", "message"),
    [
        ([[1, ""], [2, ""]], {}, "No labels at all"),
        ([[1, "a"], [2, "a"]], {}, "one class only"),
        ([[1, "a"], [2, "b"]], {"class_names": ["a", "c"]}, "line 3: label 'b' is outside the classes a, c"),
        ([[1, "a"], [2, "b"]], {"label_column": "y"}, "has no column `y`; it has x, label"),
        ([[1, "a"], [2, "b"]], {"leave_out": ["z"]}, "has no column `z`"),
        ([[1, "a"], [1, "b"]], {}, "no column can be used: x"),
    ],
)
def test_files_that_cannot_be_used(tmp_path: Path, rows: list[list[Any]], options: Any, message: str) -> None:
    path = write(tmp_path / "t.csv", ["x", "label"], rows)
    with pytest.raises(DataError, match=message):
        RowData(path, **options)


def test_what_is_no_feature_does_not_count_among_what_features_were_fitted_to(tmp_path: Path) -> None:
    rows = [[f"name {i}", i, "ab"[i % 2]] for i in range(40)]
    path = write(tmp_path / "t.csv", ["cust", "x", "label"], rows)
    with pytest.warns(UserWarning, match="left out cust"):
        data = ready(path)
    told = ready(path, leave_out=["cust"])
    assert data.features_fingerprint == told.features_fingerprint
    renamed = write(tmp_path / "u.csv", ["cust", "size", "label"], rows)
    assert ready(renamed, leave_out=["cust"]).features_fingerprint == told.features_fingerprint
    other = write(tmp_path / "v.csv", ["cust", "x", "label"], [*rows[:-1], ["name 39", 40, "b"]])
    assert ready(other, leave_out=["cust"]).features_fingerprint != told.features_fingerprint
    named = ready(path, id_column="cust").row_encoder
    assert named is not None
    assert (named.id_column, named.columns) == ("cust", ["x"])
