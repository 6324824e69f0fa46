"""Columns of a table as features: numbers and categories, scaled so that each column counts alike."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from lspread.errors import DataError

__all__ = ["MOST_LEVELS", "Categories", "Numbers", "TableColumns"]

MOST = float(np.finfo(np.float32).max)
MOST_LEVELS = 50
"""Values that a column of categories may have; columns with more, such as names, tell items apart and no more."""


@dataclass(frozen=True)
class Numbers:
    """A column of numbers, scaled to mean 0 and deviation 1; an empty cell counts as the median.

    Attributes:
        median: Of the filled cells.
        mean: Of all cells, the empty ones filled.
        deviation: Of all cells, the empty ones filled; 1 where it is 0.
        has_empty: Whether one feature more says where cells are empty.
    """

    median: float
    mean: float
    deviation: float
    has_empty: bool

    def encode(self, cells: Sequence[str]) -> list[np.ndarray]:
        """Return features `(n, 1)`, one or two; what is no number, or too large a one, counts as empty."""
        value = np.array([math.nan if number is None else number for number in map(_number, cells)])
        scaled = (value - self.mean) / self.deviation
        is_empty = ~(np.abs(scaled) <= MOST)
        scaled = np.where(is_empty, (self.median - self.mean) / self.deviation, scaled)
        return [scaled[:, None]] + ([is_empty[:, None].astype(float)] if self.has_empty else [])

    def is_unknown(self, cell: str) -> bool:
        """Whether a cell is no number that float32 holds when scaled, or empty where no known cell was."""
        number = _number(cell)
        if number is None or math.isnan(number):
            return number is None or not self.has_empty
        return abs((number - self.mean) / self.deviation) > MOST


@dataclass(frozen=True)
class Categories:
    """A column with one feature for each value.

    Attributes:
        values: In order; two different ones are as far apart as two numbers of a scaled column, drawn at random.
    """

    values: list[str]

    def encode(self, cells: Sequence[str]) -> list[np.ndarray]:
        """Return features `(n, number of values)`; a value that is none of them has zeros."""
        return [(np.array([cell.strip() for cell in cells])[:, None] == np.array(self.values)).astype(float)]

    def is_unknown(self, cell: str) -> bool:
        """Whether a cell holds none of the values."""
        return cell.strip() not in self.values


@dataclass(frozen=True, eq=False)
class TableColumns:
    """What became of the columns of a table.

    Attributes:
        used: By name, in order.
        left_out: Columns that are neither numbers nor categories, or hold one value only.
        spoiled: What keeps a column from being numbers though at least half of its filled cells are, or would be with
            decimal points: its first such row and cell.
    """

    used: dict[str, Numbers | Categories]
    left_out: list[str]
    spoiled: dict[str, tuple[int, str]]

    @classmethod
    def fit(cls, columns: Mapping[str, Sequence[str]], reference: Sequence[int] | None = None) -> "TableColumns":
        """Decide what each column is, its scale and its values.

        A column whose filled cells are all numbers is `Numbers`; any other one with at most 50 values, and half as many
        as rows, is `Categories`.

        Args:
            columns: Name and n cells of each column.
            reference: Rows that decide, as held-out rows must not; None: all.

        Raises:
            DataError: No column can be used.
        """
        used: dict[str, Numbers | Categories] = {}
        left_out: list[str] = []
        spoiled: dict[str, tuple[int, str]] = {}
        for name, cells in columns.items():
            rows = range(len(cells)) if reference is None else reference
            known = [cells[row] for row in rows]
            numbers = _fit_numbers(known)
            if numbers is not None:
                used[name] = numbers
                continue
            place = _spoiling_cell(known)
            if place is not None:
                spoiled[name] = (rows[place], known[place])
            values = sorted({cell.strip() for cell in known})
            if len(values) < 2 or len(values) > min(MOST_LEVELS, max(2, len(known) // 2)):
                left_out.append(name)
            else:
                used[name] = Categories(values)
        if not used:
            raise DataError(
                f"no column can be used: {', '.join(left_out) or 'there is none'}. Features are numbers, or categories "
                f"with at most {MOST_LEVELS} values, and not the same in every row."
            )
        return cls(used, left_out, spoiled)

    @property
    def numeric(self) -> list[str]:
        """Columns taken as numbers."""
        return [name for name, column in self.used.items() if isinstance(column, Numbers)]

    @property
    def categorical(self) -> list[str]:
        """Columns taken as categories."""
        return [name for name, column in self.used.items() if isinstance(column, Categories)]

    def encode(self, columns: Mapping[str, Sequence[str]]) -> Tensor:
        """Return features `(n, d)` float32 of the n rows of these columns; others are not looked at."""
        parts = [part for name, column in self.used.items() for part in column.encode(columns[name])]
        return torch.from_numpy(np.concatenate(parts, 1).astype(np.float32))


def _fit_numbers(cells: Sequence[str]) -> Numbers | None:
    """Return how a column of numbers is scaled; None where its cells are none, or all the same."""
    number = [_number(cell) for cell in cells]
    if None in number:
        return None
    value = np.array(number, dtype=float)
    is_empty = np.isnan(value)
    has_empty = bool(is_empty.any())
    if is_empty.all() or (np.nanmax(value) == np.nanmin(value) and not has_empty):
        return None
    median = float(np.nanmedian(value))
    filled = np.where(is_empty, median, value)
    return Numbers(median, float(filled.mean()), float(filled.std()) or 1.0, has_empty)


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
