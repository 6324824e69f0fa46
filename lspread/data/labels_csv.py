"""Tables of labels: CSV files with the columns `file` and `label`."""

import csv
import difflib
import io
import posixpath
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from lspread.data.columns import Columns, read_separated
from lspread.errors import DataError
from lspread.typing import UNLABELED

__all__ = ["LabelTable", "class_names_of", "label_table_of", "read_labels_csv", "relative_path"]

_COLUMNS = ("file", "label")
_LIKE_MISSING = ("-1", "?", "<NA>", "N/A", "NA", "NULL", "NaN", "None", "n/a", "nan", "null", "unlabeled", "unlabelled")
"""What other programs write where there is no value, as far as no class is likely to have this name."""
_ROW_NAMES = " `item` is a row's cell in the column that names the rows (`item` or `id`), else its number: 1, 2, 3, ..."


@dataclass(frozen=True)
class LabelTable:
    """The rows of one label file, checked for form but not yet against a folder.

    Attributes:
        path: Where it was read.
        file: Path of each row's image relative to the folder, with forward slashes; or the name of a row.
        label: Class name of each row; "" where nobody labeled it.
        line: Line number of each row in the file, for messages.
    """

    path: Path
    file: tuple[str, ...]
    label: tuple[str, ...]
    line: tuple[int, ...]

    def encode(self, class_names: Sequence[str]) -> list[int]:
        """Return the class of each row, `UNLABELED` where the label is empty.

        Raises:
            DataError: A label that is not among `class_names`.
        """
        class_of = {name: c for c, name in enumerate(class_names)} | {"": UNLABELED}
        for label, line in zip(self.label, self.line, strict=True):
            if label not in class_of:
                close = difflib.get_close_matches(label, class_names, n=1)
                raise DataError(
                    f"{self.path}, line {line}: label '{label}' is outside the classes {_listed(class_names, 20)}."
                    + (f" Did you mean '{close[0]}'?" if close else " Correct the label or add the class.")
                )
        return [class_of[label] for label in self.label]

    def match(self, items: Sequence[str], root: Path, class_names: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Find each row's item.

        Args:
            items: Image paths relative to `root`, with forward slashes.
            root: The folder, for messages and to tell a missing file from one that is not an image.
            class_names: Names of the classes, in order.

        Returns:
            Rows (m,) int64 of `items` and their classes (m,) int64, in the order of the table.

        Raises:
            DataError: A file that is missing or not an image, or a label outside the classes.
        """
        position = {item: row for row, item in enumerate(items)}
        label = self.encode(class_names)
        missing = [i for i, file in enumerate(self.file) if file not in position]
        if missing:
            raise DataError(self._missing(missing, items, root))
        rows = torch.tensor([position[file] for file in self.file], dtype=torch.int64)
        return rows, torch.tensor(label, dtype=torch.int64)

    def _missing(self, missing: list[int], items: Sequence[str], root: Path, most: int = 5) -> str:
        lines = []
        for i in missing[:most]:
            file = self.file[i]
            if (root / file).exists():
                hint = " (it exists, but is not an image file that is read here)"
            else:
                same_name = [item for item in items if posixpath.basename(item) == posixpath.basename(file)]
                close = same_name[:1] or difflib.get_close_matches(file, items[:20_000], n=1, cutoff=0.8)
                hint = f" (did you mean {close[0]}?)" if close else ""
            lines.append(f"  line {self.line[i]}: {file}{hint}")
        if len(missing) > most:
            lines.append(f"  ... and {len(missing) - most} more")
        if root.is_file():
            what = f"items that are not rows of {root}:\n"
        else:
            what = f"files that are not images under {root}. Paths in the column `file` are relative to that folder:\n"
        if any(_is_escaped(self.file[i]) for i in missing):
            lines.append("The label file is not UTF-8 text. Save it as CSV in UTF-8.")
        return f"{self.path} names {len(missing)} of {len(self.file)} {what}" + "\n".join(lines)


def read_labels_csv(path: str | Path, root: str | Path | None, *, besides: Sequence[str] = ()) -> LabelTable:
    """Read a label file.

    The first line names the columns `file` (or `item`) and `label`; the separator may be a comma, a semicolon or a tab.

    Args:
        path: The CSV file, UTF-8.
        root: The folder that relative paths in `file` start from; None: they are names of rows, taken as they are.
        besides: Other columns that may be there; they are not read.

    Raises:
        DataError: The file is missing, a label is not UTF-8, columns are missing or unknown, a row has too few or too
            many cells, a path leaves the folder, or a file has two labels. A row without one may repeat another.
    """
    path = Path(path)
    missing = f"There is no label file {path}. It needs a first line `file,label` and a row per image."
    text, separator = read_separated(path, missing, errors="surrogateescape")
    reader = csv.reader(io.StringIO(text), delimiter=separator)
    item = "item" if root is None else "file"
    header = ["file" if cell.strip() == "item" else cell.strip() for cell in next(reader, [])]
    if sorted(name for name in header if name not in besides) != sorted(_COLUMNS):
        raise DataError(
            f"{path} needs exactly the columns `{item}` and `label` in its first line; got "
            f"{', '.join(f'`{name}`' for name in header) or 'an empty file'}. "
            + _column_advice(header, besides, item)
            + (_ROW_NAMES if root is None else "")
        )
    file_at, label_at = header.index("file"), header.index("label")
    seen: dict[str, tuple[str, int]] = {}
    try:
        for row in reader:
            if not any(cell.strip() for cell in row):
                continue
            line = reader.line_num
            if len(row) != len(header):
                named = ", ".join(f"`{name}`" for name in header[:-1]) + f" and `{header[-1]}`"
                raise DataError(
                    f"{path}, line {line}: needs {len(header)} cells, {named}, but has {len(row)}: "
                    f"{separator.join(row)}"
                )
            file, label = row[file_at].strip(), row[label_at].strip()
            if _is_escaped(label):
                raise DataError(f"{path}, line {line}: the label is not UTF-8 text. Save the file as CSV in UTF-8.")
            if root is not None:
                file = relative_path(file, Path(root), path, line)
            elif not file:
                raise DataError(f"{path}, line {line}: the cell `{header[file_at]}` is empty.")
            other, first = seen.get(file, ("", line))
            if label and label == other:
                raise DataError(f"{path}, line {line}: {file} is already in line {first}. Keep one of the two rows.")
            if label and other:
                raise DataError(
                    f"{path}, line {line}: {file} has label '{label}' here and '{other}' in line {first}. "
                    "Keep the right one."
                )
            if label or file not in seen:  # an empty label says nothing, so that rows may be filled in below it
                seen[file] = (label, line)
    except csv.Error as error:
        raise DataError(f"{path}, line {reader.line_num}: not readable as CSV ({error}).") from error
    return LabelTable(
        path, tuple(seen), tuple(label for label, _ in seen.values()), tuple(line for _, line in seen.values())
    )


def label_table_of(columns: Columns, items: Sequence[str], label_column: str) -> LabelTable:
    """Return the labels that stand in a column of a file of texts or of a table, whose rows have the names `items`."""
    label = tuple(cell.strip() for cell in columns.cells[label_column])
    return LabelTable(columns.path, tuple(items), label, tuple(columns.line))


def class_names_of(table: LabelTable) -> list[str]:
    """Return the class names of a table, sorted; whole numbers sort by value.

    Raises:
        DataError: No labels at all, or one class only.
    """
    names = {label for label in table.label if label}
    if not names:
        raise DataError(
            f"No labels at all: {table.path} has {len(table.file)} rows and none has a label. "
            "Fill the column `label` for at least one image of two classes."
        )
    if len(names) == 1:
        raise DataError(
            f"The labels name one class only: every label in {table.path} is '{next(iter(names))}'. "
            "Label at least one image of another class."
        )
    for name in sorted(names.intersection(_LIKE_MISSING)):
        warnings.warn(
            f"{table.path}: '{name}' ({table.label.count(name):,} of {len(table.label):,} rows) counts as a class. If "
            "it says that nobody labeled these, leave their cells empty.",
            stacklevel=2,
        )
    folded: dict[str, str] = {}
    for name in sorted(names):
        twin = folded.setdefault(name.casefold(), name)
        if twin != name:
            warnings.warn(
                f"{table.path}: '{twin}' and '{name}' differ only in case and count as two classes.", stacklevel=2
            )
    return sorted(names, key=lambda name: (0, int(name), name) if name.isdecimal() else (1, 0, name))


def relative_path(file: str, root: Path, path: Path, line: int) -> str:
    """Return the cell `file` of a line of `path` relative to the folder `root`, with forward slashes.

    Raises:
        DataError: The cell is empty, or leads out of the folder.
    """
    if not file:
        raise DataError(f"{path}, line {line}: the cell `file` is empty.")
    file = file.replace("\\", "/")
    if Path(file).is_absolute():
        base = root.absolute()
        if not Path(file).is_relative_to(base):
            raise DataError(f"{path}, line {line}: {file} is outside the folder {root}. Use paths relative to it.")
        file = Path(file).relative_to(base).as_posix()
    file = posixpath.normpath(file)
    if file.startswith("../") or file == "..":
        raise DataError(f"{path}, line {line}: {file} is outside the folder {root}. Use paths relative to it.")
    return file


def _column_advice(header: list[str], besides: Sequence[str], item: str) -> str:
    missing = [item if name == "file" else name for name in _COLUMNS if name not in header]
    unknown = [name for name in header if name not in (*_COLUMNS, *besides)]
    twice = sorted({name for name in header if header.count(name) > 1})
    advice = []
    if missing:
        advice.append(f"Missing: {', '.join(missing)}.")
    if unknown:
        advice.append(f"Unknown: {', '.join(name or '(no name)' for name in unknown)}.")
    if twice:
        advice.append(f"Twice: {', '.join(twice)}.")
    return " ".join(advice)


def _is_escaped(text: str) -> bool:
    """Whether a text was read from bytes that are no UTF-8."""
    return any("\udc80" <= letter <= "\udcff" for letter in text)


def _listed(names: Sequence[str], most: int) -> str:
    return ", ".join(names[:most]) + (f", ... ({len(names)} in all)" if len(names) > most else "")
