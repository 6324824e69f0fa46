"""CSV files of texts and tables: their columns, and what names and describes a row."""

import csv
import hashlib
import io
import warnings
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from lspread.data.row_encoder import RowEncoder, TableEncoder, TextEncoder
from lspread.data.table_columns import MOST_LEVELS, TableColumns
from lspread.data.words import Words
from lspread.errors import DataError
from lspread.typing import ItemKind

__all__ = ["Columns", "RowFeatures", "read_columns", "read_separated", "shorten"]

MOST_CELLS, MOST_LETTERS = 6, 300
"""What a person is shown of a row, or of a text."""
_OTHER = " Where another column names the rows, say which (--id of embed and predict, --data.id_column of fit)."
MOST_BYTES = 2**31 - 1
"""Length of a cell."""


@dataclass(frozen=True, eq=False)
class RowFeatures:
    """Features of rows, and what they were made from.

    Attributes:
        embedding: `(n, d)` float32.
        encoder: What made them, and makes those of other rows.
        made_by: For people and reports.
        fingerprint: A hash of the cells that scales, categories and words were taken from: a network fits features of
            the same hash only. None where they depend on no other row.
    """

    embedding: Tensor
    encoder: RowEncoder
    made_by: dict[str, str]
    fingerprint: str | None

    @property
    def kind(self) -> ItemKind:
        """What the rows are, "text" or "table"."""
        return self.encoder.kind


@dataclass(frozen=True, eq=False)
class Columns:
    """The cells of a CSV file by column.

    Attributes:
        path: Where they were read.
        cells: n cells of each column, as text.
        line: Line of the file on which each row ends.
    """

    path: Path
    cells: dict[str, list[str]]
    line: list[int]

    def __len__(self) -> int:
        return len(self.line)

    @property
    def has_labels(self) -> bool:
        """Whether there is a column `label`, and some row has one."""
        return any(cell.strip() for cell in self.cells.get("label", []))

    def require(self, *names: str | None) -> None:
        """Raise `DataError` where one of the columns is missing; None asks for nothing."""
        for name in names:
            if name is not None and name not in self.cells:
                raise DataError(f"{self.path} has no column `{name}`; it has {', '.join(self.cells)}.")

    def name_rows(self, id_column: str | None) -> tuple[list[str], str | None]:
        """Return a name for each row, and its column: `id_column`, or `item` or `id`, else the rows are counted.

        Raises:
            DataError: There is no such column, or two rows have one name.
        """
        self.require(id_column)
        column = id_column or next((name for name in ("item", "id") if name in self.cells), None)
        if column is None:
            return [str(row) for row in range(1, len(self) + 1)], None
        items = [cell.strip() for cell in self.cells[column]]
        seen: set[str] = set()
        for item, line in zip(items, self.line, strict=True):
            if not item:
                raise DataError(f"{self.path}, line {line}: the cell `{column}` is empty, and names the row.{_OTHER}")
            if item in seen:
                raise DataError(f"{self.path}: `{column}` must name every row once, but '{item}' occurs again.{_OTHER}")
            seen.add(item)
        return items, column

    def column_of(self, items: Sequence[str]) -> str | None:
        """Return the first column that holds these names, one a row and in order; None where there is none."""
        names = list(items)
        return next((name for name, cells in self.cells.items() if [cell.strip() for cell in cells] == names), None)

    def are_named(self, items: Sequence[str], fingerprint: str | None = None) -> bool:
        """Whether these are the rows' names: a column holds them, or the rows are counted.

        Rows that are counted must be those of `fingerprint` as well, in their order; None takes any.
        """
        if list(items) == [str(row) for row in range(1, len(self) + 1)]:
            return fingerprint in (None, self.fingerprint())
        return self.column_of(items) is not None

    def fingerprint(self) -> str:
        """Return a hash of all cells and their order but those of `label`, which is filled in later."""
        used = sorted(name for name in self.cells if name != "label")
        return _fingerprint([[name, *(cell.strip() for cell in self.cells[name])] for name in used], None)

    def features(
        self,
        text_column: str | None = None,
        *,
        model: str | None = None,
        leave_out: Collection[str] = (),
        reference: Sequence[int] | None = None,
    ) -> RowFeatures:
        """Return features of the texts in one column or, where there is none, of all columns but some.

        Args:
            text_column: Column of texts; None takes `text`, where there is one.
            model: As in `text_features`.
            leave_out: Columns that are no features.
            reference: Rows that scales, categories and words are taken from; None: all.

        Raises:
            DataError: As `text_features` and `table_features` do.
        """
        column = self._text_column(text_column)
        if column is not None:
            encoder: RowEncoder = TextEncoder(column, model or self._fit_words(column, reference))
            fingerprint = None if model else _fingerprint([self.cells[column]], reference)
            made_by = {"features": model or "words (TF-IDF, SVD)", "column": column}
            return RowFeatures(encoder.encode(self.cells), encoder, made_by, fingerprint)
        used = {name: cells for name, cells in self.cells.items() if name not in leave_out}
        found = TableColumns.fit(used, reference)
        for name, (row, cell) in found.spoiled.items():
            became = "left out" if name in found.left_out else "taken as categories"
            warnings.warn(
                f"{self.path}, line {self.line[row]}: {cell.strip()!r} is no number, so the whole column `{name}` is "
                f"{became}. Numbers are written as 9.42, and unknown ones are empty.",
                stacklevel=2,
            )
        silent = [name for name in found.left_out if name not in found.spoiled]
        if silent:
            warnings.warn(
                f"{self.path}: left out {', '.join(silent)}: a feature is numbers, or categories of at most "
                f"{MOST_LEVELS} values and half as many as rows, and not the same in every row.",
                stacklevel=2,
            )
        made_by = {
            "features": f"{len(found.numeric)} columns of numbers, {len(found.categorical)} of categories",
            "numeric": ", ".join(found.numeric),
            "categorical": ", ".join(found.categorical),
            "left out": ", ".join([*found.left_out, *sorted(set(leave_out) & self.cells.keys())]),
        }
        encoder = TableEncoder(found)
        fingerprint = _fingerprint([used[name] for name in found.used], reference)
        return RowFeatures(encoder.encode(used), encoder, made_by, fingerprint)

    def _fit_words(self, column: str, reference: Sequence[int] | None) -> Words:
        texts = self.cells[column]
        return Words.fit(texts if reference is None else [texts[row] for row in reference])

    def excerpts(self, text_column: str | None = None, *, leave_out: Collection[str] = ()) -> list[str]:
        """Return what a person reads of each row: the start of its text or, of a table, its first cells.

        Args:
            text_column: As in `features`.
            leave_out: Columns that are not shown of a table.

        Raises:
            DataError: There is no such column.
        """
        column = self._text_column(text_column)
        if column is not None:
            return [shorten(text) for text in self.cells[column]]
        shown = [name for name in self.cells if name not in leave_out][:MOST_CELLS]
        return [shorten(", ".join(f"{name} {self.cells[name][row]}" for name in shown)) for row in range(len(self))]

    def _text_column(self, text_column: str | None) -> str | None:
        self.require(text_column)
        return text_column or ("text" if "text" in self.cells else None)

    def append(self, other: "Columns", optional: Collection[str] = ()) -> "Columns":
        """Return these rows and below them those of another file; an `optional` column that it lacks is empty there.

        Raises:
            DataError: The other file lacks a column.
        """
        lacking = [name for name in self.cells if name not in other.cells and name not in optional]
        if lacking:
            raise DataError(f"{other.path} lacks columns that {self.path} has: {', '.join(lacking)}.")
        empty = [""] * len(other)
        cells = {name: own + other.cells.get(name, empty) for name, own in self.cells.items()}
        return Columns(self.path, cells, self.line + other.line)


def read_columns(path: str | Path, *, errors: str = "strict") -> Columns:
    """Read a CSV file, whose first line names the columns; the separator may be a comma, a semicolon or a tab.

    `errors` is that of `read_separated`.

    Raises:
        DataError: The file is missing or not UTF-8, has no rows, a row with too few or too many cells, or two columns
            of one name.
    """
    path = Path(path)
    missing = f"There is no file {path}. It needs a first line that names the columns, and rows below."
    text, separator = read_separated(path, missing, errors=errors)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator)
    header: list[str] = []
    rows, line = [], []
    limit = csv.field_size_limit(MOST_BYTES)  # by itself Python refuses texts of more than 128 KiB
    try:
        header = [cell.strip() for cell in next(reader, [])]
        for row in reader:
            if not row:  # a blank line; cells that are all empty are a row of which nothing is known
                continue
            if len(row) != len(header):
                raise DataError(f"{path}, line {reader.line_num}: needs {len(header)} cells, but has {len(row)}.")
            rows.append(row)
            line.append(reader.line_num)
    except csv.Error as error:
        raise DataError(f"{path}, line {reader.line_num}: not readable as CSV ({error}).") from error
    finally:
        csv.field_size_limit(limit)
    while rows and len(header) > 1 and not any(cell.strip() for cell in rows[-1]):
        rows.pop()  # what spreadsheets leave below a table
        line.pop()
    if not header or not rows:
        raise DataError(f"{path} needs a first line that names the columns, and rows below it.")
    if len(set(header)) < len(header):
        raise DataError(f"{path} has two columns of one name: {', '.join(header)}.")
    return Columns(path, {name: [row[place] for row in rows] for place, name in enumerate(header)}, line)


def read_separated(path: Path, missing: str, *, errors: str = "strict") -> tuple[str, str]:
    """Return the text of a CSV file, and what separates its cells: a comma, a semicolon or a tab.

    Args:
        path: The file, UTF-8 with or without a byte order mark.
        missing: What to say where there is no such file.
        errors: "surrogateescape" lets in names of files that are no UTF-8, as the commands write them.

    Raises:
        DataError: The file is missing, not UTF-8, or cannot be read.
    """
    try:
        text = path.read_text(encoding="utf-8-sig", errors=errors)
    except FileNotFoundError:
        raise DataError(missing) from None
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8 text ({error.reason}). Save it as CSV in UTF-8.") from None
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}.") from error
    return text, max(",;\t", key=text.split("\n", 1)[0].count)


def _fingerprint(columns: Sequence[Sequence[str]], reference: Sequence[int] | None) -> str:
    digest = hashlib.blake2b(digest_size=16)
    for column in columns:
        digest.update(repr(list(column) if reference is None else [column[row] for row in reference]).encode())
    return digest.hexdigest()


def shorten(text: str, most: int = MOST_LETTERS) -> str:
    """Return a text on one line, of so many letters at most."""
    text = " ".join(text.split())
    return text if len(text) <= most else text[: most - 1] + "…"
