import re
from pathlib import Path

import pytest
import torch

from lspread.data.labels_csv import LabelTable, class_names_of, read_labels_csv
from lspread.errors import DataError


def read(tmp_path: Path, text: str | bytes) -> LabelTable:
    path = tmp_path / "labels.csv"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return read_labels_csv(path, tmp_path)


@pytest.mark.parametrize(
    "text",
    [
        "file,label\na.png,cat\nb/c.png,\nd.png,dog\n",
        "label,file\ncat,a.png\n,b/c.png\ndog,d.png",
        "file;label\r\na.png;cat\r\nb/c.png;\r\nd.png;dog\r\n",
        "file\tlabel\n./a.png\t cat \n\nb\\c.png\t\nd.png\tdog\n",
        b'\xef\xbb\xbffile,label\na.png,cat\nb/x/../c.png,\n"d.png","dog"\n',
    ],
)
def test_forms_of_the_same_table(tmp_path: Path, text: str | bytes) -> None:
    table = read(tmp_path, text)
    assert table.file == ("a.png", "b/c.png", "d.png")
    assert table.label == ("cat", "", "dog")
    assert class_names_of(table) == ["cat", "dog"]
    rows, label = table.match(["0.png", "a.png", "b/c.png", "d.png"], tmp_path, ["cat", "dog"])
    assert rows.tolist() == [1, 2, 3]
    assert label.tolist() == [0, -1, 1]
    assert rows.dtype == label.dtype == torch.int64


def test_a_label_counts_whichever_row_of_its_file_has_it(tmp_path: Path) -> None:
    table = read(tmp_path, "file,label\na.png,\nb.png,cat\nc.png,\na.png,dog\nb.png,\nc.png,\n")
    assert table.file == ("a.png", "b.png", "c.png")
    assert table.label == ("dog", "cat", "")
    assert table.line == (5, 3, 4)


def test_absolute_paths_inside_the_folder(tmp_path: Path) -> None:
    assert read(tmp_path, f"file,label\n{tmp_path}/b/a.png,x\n").file == ("b/a.png",)


def test_numbers_sort_by_value(tmp_path: Path) -> None:
    table = read(tmp_path, "file,label\n" + "".join(f"{i}.png,{i}\n" for i in (10, 9, 0, 100)) + "z.png,other\n")
    assert class_names_of(table) == ["0", "9", "10", "100", "other"]


@pytest.mark.parametrize("mark", ["NA", "-1", "nan", "<NA>"])
def test_marks_of_missing_values_warn(tmp_path: Path, mark: str) -> None:
    table = read(tmp_path, f"file,label\na.png,cat\nb.png,{mark}\nc.png,{mark}\n")
    with pytest.warns(UserWarning, match=rf"'{mark}' \(2 of 3 rows\) counts as a class"):
        assert set(class_names_of(table)) == {"cat", mark}


def test_names_that_differ_in_case_warn(tmp_path: Path) -> None:
    table = read(tmp_path, "file,label\na.png,Cat\nb.png,cat\n")
    with pytest.warns(UserWarning, match="'Cat' and 'cat' differ only in case"):
        assert class_names_of(table) == ["Cat", "cat"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "",
            "needs exactly the columns `file` and `label` in its first line; got an empty file. Missing: file, label.",
        ),
        ("image,label\na,b\n", "got `image`, `label`. Missing: file. Unknown: image."),
        ("file,label,note\na,b,c\n", "Unknown: note."),
        ("file,file,label\n", "Twice: file."),
        ("file,label\na.png\n", "line 2: needs 2 cells, `file` and `label`, but has 1: a.png"),
        ("file,label\na.png,x,y\n", "line 2: needs 2 cells, `file` and `label`, but has 3"),
        ("file,label\na.png,x\n./a.png,x\n", "line 3: a.png is already in line 2. Keep one"),
        ("file,label\na.png,x\nb.png,y\na.png,y\n", "line 4: a.png has label 'y' here and 'x' in line 2"),
        ("file,label\n,x\n", "line 2: the cell `file` is empty"),
        ("file,label\n../a.png,x\n", "line 2: ../a.png is outside the folder"),
        ("file,label\n/somewhere/a.png,x\n", "line 2: /somewhere/a.png is outside the folder"),
        (b"file,label\na.png,caf\xe9\n", "is not UTF-8 text"),
        ("file,label\n" + "a" * 140_000 + ",x\n", "line 2: not readable as CSV"),
    ],
)
def test_form_errors(tmp_path: Path, text: str | bytes, message: str) -> None:
    with pytest.raises(DataError, match=re.escape(message)) as caught:
        read(tmp_path, text)
    assert str(tmp_path / "labels.csv") in str(caught.value)


def test_missing_label_file(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"There is no label file .*no\.csv. It needs a first line `file,label`"):
        read_labels_csv(tmp_path / "no.csv", tmp_path)


def test_no_label_and_one_class(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"No labels at all: .*labels\.csv has 2 rows and none has a label"):
        class_names_of(read(tmp_path, "file,label\na.png,\nb.png,\n"))
    with pytest.raises(DataError, match=r"one class only: every label in .*labels\.csv is 'x'"):
        class_names_of(read(tmp_path, "file,label\na.png,x\nb.png,\n"))


def test_files_that_are_not_there(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("")
    names = ["gone_1.png", "notes.txt", "c.png", "fotos/1.png"] + [f"much/else_{i}.x" for i in range(4)]
    table = read(tmp_path, "file,label\nok.png,x\n" + "".join(f"{name},y\n" for name in names))
    with pytest.raises(DataError, match="names 8 of 9 files that are not images under") as caught:
        table.match(["ok.png", "b/c.png", "photos/1.png"], tmp_path, ["x", "y"])
    assert str(caught.value).splitlines()[1:] == [
        "  line 3: gone_1.png",
        "  line 4: notes.txt (it exists, but is not an image file that is read here)",
        "  line 5: c.png (did you mean b/c.png?)",
        "  line 6: fotos/1.png (did you mean photos/1.png?)",
        "  line 7: much/else_0.x",
        "  ... and 3 more",
    ]


def test_label_outside_the_classes(tmp_path: Path) -> None:
    table = read(tmp_path, "file,label\na.png,sandal\nb.png,Sandals\n")
    with pytest.raises(
        DataError, match=r"line 3: label 'Sandals' is outside the classes boot, sandal. Did you mean 'sandal'"
    ):
        table.encode(["boot", "sandal"])
