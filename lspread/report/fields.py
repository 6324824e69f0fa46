"""Reading a JSON object field by field: a value is checked where it comes in, and its place named when it is wrong."""

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ..errors import DataError

__all__ = ["Fields", "clean_text"]

_MISSING: Any = object()


def clean_text(value: object) -> str:
    """Return `value` as text that can be written as UTF-8 on one line.

    File names may carry bytes that are no UTF-8 (Python reads them as lone surrogates) or line breaks; both would
    break a page or a figure, so the first become "?" and the second become spaces.
    """
    return " ".join(str(value).encode("utf-8", "replace").decode("utf-8").split())


class Fields:
    """One JSON object of a run folder, read with checks.

    Args:
        value: What the JSON holds at this place; anything but an object is refused.
        path: The file, for messages.
        where: The place inside the file, such as `data` or `scores[2]`; empty for the whole file.

    Raises:
        DataError: Here and in every method, when the value at the place is not what is needed. A field that is
            absent or null gives the method's default; without a default it is an error.
    """

    def __init__(self, value: object, path: Path, where: str = "") -> None:
        self.path = path
        self.where = where
        if not isinstance(value, dict):
            raise self._error("an object {...}", value, where or "the file")
        self._value: dict[str, Any] = value

    def __iter__(self) -> Iterator[str]:
        """Go over the names of the fields."""
        return iter(self._value)

    def text(self, name: str, default: Any = _MISSING) -> Any:
        """Return a field as one line of text; numbers become text too."""
        value = self._get(name, default)
        if value is default:
            return default
        if isinstance(value, (dict, list)):
            raise self._error("text", value, self._at(name))
        return clean_text(value)

    def number(self, name: str, default: Any = _MISSING, *, low: float = -math.inf, high: float = math.inf) -> Any:
        """Return a finite number in [low, high]."""
        value = self._get(name, default)
        return default if value is default else self._number(value, self._at(name), low, high)

    def count(self, name: str, default: Any = _MISSING) -> Any:
        """Return a whole number >= 0."""
        value = self._get(name, default)
        return default if value is default else self._count(value, self._at(name))

    def numbers(
        self,
        name: str,
        default: Any = _MISSING,
        *,
        size: int | None = None,
        low: float = -math.inf,
        high: float = math.inf,
    ) -> Any:
        """Return a list of finite numbers in [low, high], `size` of them where that is given."""
        value = self._get(name, default)
        if value is default:
            return default
        items = self._list(value, self._at(name), size)
        return [self._number(item, f"{self._at(name)}[{i}]", low, high) for i, item in enumerate(items)]

    def numbers_or_none(self, name: str, *, size: int, low: float, high: float) -> list[float | None] | None:
        """Return a list of `size` finite numbers in [low, high] or nulls; None where the list is absent or null."""
        value = self._get(name, None)
        if value is None:
            return None
        items = enumerate(self._list(value, self._at(name), size))
        return [None if item is None else self._number(item, f"{self._at(name)}[{i}]", low, high) for i, item in items]

    def counts(self, name: str, default: Any = _MISSING, *, size: int | None = None) -> Any:
        """Return a list of whole numbers >= 0, `size` of them where that is given."""
        value = self._get(name, default)
        if value is default:
            return default
        items = self._list(value, self._at(name), size)
        return [self._count(item, f"{self._at(name)}[{i}]") for i, item in enumerate(items)]

    def count_table(self, name: str, size: int) -> list[list[int]]:
        """Return a square table of whole numbers >= 0 as a list of `size` rows."""
        rows = self._list(self._get(name, _MISSING), self._at(name), size)
        table = []
        for i, row in enumerate(rows):
            cells = self._list(row, f"{self._at(name)}[{i}]", size)
            table.append([self._count(cell, f"{self._at(name)}[{i}][{j}]") for j, cell in enumerate(cells)])
        return table

    def texts(self, name: str, default: Any = _MISSING, *, size: int | None = None) -> Any:
        """Return a list of one-line texts."""
        value = self._get(name, default)
        if value is default:
            return default
        return [clean_text(item) for item in self._list(value, self._at(name), size)]

    def flags(self, name: str, size: int) -> list[bool]:
        """Return a list of `size` truth values."""
        return [bool(item) for item in self._list(self._get(name, _MISSING), self._at(name), size)]

    def child(self, name: str) -> "Fields | None":
        """Return an object inside this one, or None where it is absent or null."""
        value = self._get(name, None)
        return None if value is None else Fields(value, self.path, self._at(name))

    def children(self, name: str) -> list["Fields"]:
        """Return the objects of a list inside this one; none where the list is absent or null."""
        value = self._get(name, None)
        items = [] if value is None else self._list(value, self._at(name), None)
        return [Fields(item, self.path, f"{self._at(name)}[{i}]") for i, item in enumerate(items)]

    def require(self, name: str, ok: bool, needed: str) -> None:
        """Refuse a field whose value does not fit the others."""
        if not ok:
            raise self._error(needed, self._value.get(name), self._at(name))

    def _get(self, name: str, default: Any) -> Any:
        value = self._value.get(name)
        if value is None:
            if default is _MISSING:
                raise self._error("a value", None, self._at(name))
            return default
        return value

    def _at(self, name: str) -> str:
        return f"{self.where}.{name}" if self.where else name

    def _number(self, value: Any, where: str, low: float, high: float) -> float:
        is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
        if not is_number or not math.isfinite(value) or not low <= value <= high:
            bounds = "" if math.isinf(low) and math.isinf(high) else f" between {low:g} and {high:g}"
            raise self._error(f"a finite number{bounds}", value, where)
        return float(value)

    def _count(self, value: Any, where: str) -> int:
        number = self._number(value, where, 0, math.inf)
        if number != int(number):
            raise self._error("a whole number", value, where)
        return int(number)

    def _list(self, value: Any, where: str, size: int | None) -> list[Any]:
        if not isinstance(value, list) or (size is not None and len(value) != size):
            raise self._error("a list" if size is None else f"a list of {size} values", value, where)
        return value

    def _error(self, needed: str, value: object, where: str) -> DataError:
        came = f"a list of {len(value)} values" if isinstance(value, list) else clean_text(repr(value))[:80]
        return DataError(
            f"{self.path}: {where} must be {needed}; got {came}. "
            "The file is written at the end of a run: correct that value, or repeat the run to write it anew."
        )
