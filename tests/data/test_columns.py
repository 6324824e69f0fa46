import csv
from pathlib import Path

import pytest
import torch

from lspread.data.columns import read_columns
from lspread.data.features import table_features, text_features
from lspread.errors import DataError


def write(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


@pytest.mark.parametrize("mark", [",", ";", "\t"])
def test_cells_and_lines(tmp_path: Path, mark: str) -> None:
    text = '\ufeffid, text ,x\na,"one\nline more",1\n\nb,"say ""no""",2\n'.replace(",", mark)
    columns = read_columns(write(tmp_path / "a.csv", text))
    assert columns.cells == {"id": ["a", "b"], "text": ["one\nline more", 'say "no"'], "x": ["1", "2"]}
    assert columns.line == [3, 5]
    assert len(columns) == 2
    assert columns.name_rows(None) == (["a", "b"], "id")
    assert columns.name_rows("x") == (["1", "2"], "x")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a,b\n1\n", "line 2: needs 2 cells, but has 1"),
        ("a,b\n", "needs a first line that names the columns, and rows below it"),
        ("a,a\n1,2\n", "two columns of one name"),
    ],
)
def test_files_that_cannot_be_used(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        read_columns(write(tmp_path / "a.csv", text))
    with pytest.raises(DataError, match=r"There is no file .*gone\.csv"):
        read_columns(tmp_path / "gone.csv")
    (tmp_path / "latin.csv").write_bytes("a\nü\n".encode("latin-1"))
    with pytest.raises(DataError, match="is not UTF-8 text"):
        read_columns(tmp_path / "latin.csv")


def test_rows_of_which_nothing_is_known_are_rows(tmp_path: Path) -> None:
    columns = read_columns(write(tmp_path / "a.csv", 'text\none\n""\n\nthree\n""\n'))
    assert columns.cells == {"text": ["one", "", "three", ""]}
    columns = read_columns(write(tmp_path / "a.csv", "x,y\n1,2\n,\n3,4\n,\n , \n"))
    assert columns.cells == {"x": ["1", "", "3"], "y": ["2", "", "4"]}  # a spreadsheet leaves empty rows at the end
    assert columns.line == [2, 3, 4]


def test_names_and_columns_that_are_missing(tmp_path: Path) -> None:
    columns = read_columns(write(tmp_path / "a.csv", "x,y\n1,2\n1,3\n"))
    assert columns.name_rows(None) == (["1", "2"], None)
    with pytest.raises(DataError, match="`x` must name every row once, but '1' occurs again"):
        columns.name_rows("x")
    with pytest.raises(DataError, match="has no column `z`; it has x, y"):
        columns.require("x", None, "z")


def test_texts_or_all_columns_but_some(tmp_path: Path) -> None:
    columns = read_columns(write(tmp_path / "a.csv", "text,x,y\nred apple,1,u\ngreen apple,2,v\nblue sky,3,u\n"))
    found = columns.features()
    assert (found.kind, found.made_by["column"]) == ("text", "text")
    torch.testing.assert_close(found.embedding, text_features(columns.cells["text"]))
    del columns.cells["text"]
    found = columns.features(leave_out=["y", "none"])
    assert found.kind == "table"
    torch.testing.assert_close(found.embedding, table_features({"x": ["1", "2", "3"]}).embedding)
    assert found.made_by["left out"] == "y"


def test_rows_of_another_file_below(tmp_path: Path) -> None:
    first = read_columns(write(tmp_path / "a.csv", "x,label\n1,u\n"))
    second = read_columns(write(tmp_path / "b.csv", "more,x\n8,9\n"))
    both = first.append(second, optional=["label"])
    assert both.cells == {"x": ["1", "9"], "label": ["u", ""]}
    with pytest.raises(DataError, match=r"b\.csv lacks columns that .*a\.csv has: label"):
        first.append(second)


def test_long_texts_and_quotes_that_nothing_closes(tmp_path: Path) -> None:
    path = tmp_path / "long.csv"
    limit = csv.field_size_limit()
    path.write_text(f"text,label\n{'word ' * 100_000},a\n")
    assert len(read_columns(path).cells["text"][0]) == 500_000
    path.write_text('text,label\n"never closed,a\n' + "more,b\n" * 50_000)
    with pytest.raises(DataError, match="needs 2 cells, but has 1"):
        read_columns(path)
    assert csv.field_size_limit() == limit
    path.write_text("id,text\n1,a\n ,b\n")
    with pytest.raises(DataError, match="line 3: the cell `id` is empty"):
        read_columns(path).name_rows(None)
