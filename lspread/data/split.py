"""Which items carry a label, which do not, and which are kept for validation and test."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path

import torch
from torch import Tensor

from lspread.errors import ConfigError, DataError
from lspread.typing import UNLABELED

__all__ = ["FewLabelSplit"]

_PARTS = ("labeled", "unlabeled", "val", "test")
_FORMAT = "lspread-split-1"


@dataclass(frozen=True, eq=False)
class FewLabelSplit:
    """Four disjoint sets of rows of one dataset, sorted, int64, on the CPU.

    Attributes:
        labeled: Rows whose label the method may see; at least one.
        unlabeled: Rows that the method may see without a label.
        val: Rows kept for validation; the method never sees them.
        test: Rows kept for the final test; the method never sees them.
        num_classes: Number of classes c, at least two.
        seed: Seed of the label draw; None where nothing was drawn.

    Raises:
        DataError: No labels at all, or a row that occurs twice or is negative.
        ConfigError: Fewer than two classes.
    """

    labeled: Tensor
    unlabeled: Tensor
    val: Tensor
    test: Tensor
    num_classes: int
    seed: int | None = None

    def __post_init__(self) -> None:
        _check_num_classes(self.num_classes)
        for part in _PARTS:
            object.__setattr__(self, part, _rows(getattr(self, part), part))
        if self.labeled.numel() == 0:
            raise DataError("No labels at all: `labeled` is empty. Label at least one item of two classes.")
        _check_disjoint({part: getattr(self, part) for part in _PARTS})

    @property
    def pool(self) -> Tensor:
        """Sorted labeled and unlabeled rows (p,) int64: the nodes of the graph."""
        return torch.cat([self.labeled, self.unlabeled]).sort().values

    @classmethod
    def per_class(
        cls,
        label: Tensor,
        num_per_class: int,
        *,
        num_classes: int,
        seed: int,
        val: Tensor | None = None,
        test: Tensor | None = None,
        class_names: Sequence[str] | None = None,
    ) -> "FewLabelSplit":
        """Draw the same number of labels from each class.

        With one seed, the draw of 1 per class is part of the draw of 2 per class, and so on.

        Args:
            label: (n,) int64 true classes; rows with `UNLABELED` are never drawn and become unlabeled.
            num_per_class: Labels to draw from each class.
            num_classes: Number of classes c.
            seed: Seed of the draw.
            val: Rows kept for validation.
            test: Rows kept for test.
            class_names: Names of the classes for messages.

        Raises:
            ConfigError: `num_per_class` below 1 or `num_classes` below 2.
            DataError: A class with too few items, or a label outside the classes.
        """
        if num_per_class < 1:
            raise ConfigError(f"num_per_class must be at least 1, but is {num_per_class}.")

        def count(c: int, available: int) -> int:
            if available < num_per_class:
                name = f"class {c}" + (f" ('{class_names[c]}')" if class_names else "")
                raise DataError(
                    f"Drawing {num_per_class} labels per class needs as many items in each class, but {name} has "
                    f"{available}. Draw at most {available} per class, or give {name} more items with a known class."
                )
            return num_per_class

        return cls._draw(label, count, num_classes=num_classes, seed=seed, val=val, test=test)

    @classmethod
    def fraction(
        cls,
        label: Tensor,
        fraction: float,
        *,
        num_classes: int,
        seed: int,
        val: Tensor | None = None,
        test: Tensor | None = None,
    ) -> "FewLabelSplit":
        """Draw a fraction of each class, rounded, at least one label of every class that has items.

        Args:
            label: (n,) int64 true classes; rows with `UNLABELED` are never drawn and become unlabeled.
            fraction: Share of each class to draw, above 0 and at most 1.
            num_classes: Number of classes c.
            seed: Seed of the draw.
            val: Rows kept for validation.
            test: Rows kept for test.

        Raises:
            ConfigError: `fraction` outside (0, 1] or `num_classes` below 2.
            DataError: No known label, labels of one class only, or a label outside the classes.
        """
        if not 0 < fraction <= 1:
            raise ConfigError(f"fraction must be above 0 and at most 1, but is {fraction}.")

        def count(_: int, available: int) -> int:
            return min(available, max(1, round(fraction * available)))

        return cls._draw(label, count, num_classes=num_classes, seed=seed, val=val, test=test)

    @classmethod
    def from_indices(
        cls,
        labeled: Sequence[int] | Tensor,
        *,
        num_items: int,
        num_classes: int,
        val: Sequence[int] | Tensor | None = None,
        test: Sequence[int] | Tensor | None = None,
        seed: int | None = None,
        label: Tensor | None = None,
    ) -> "FewLabelSplit":
        """Use the given rows as labeled; every other row outside `val` and `test` is unlabeled.

        Args:
            labeled: Rows with a label, in any order.
            num_items: Number of items n of the dataset.
            num_classes: Number of classes c.
            val: Rows kept for validation.
            test: Rows kept for test.
            seed: Kept with the split where these rows were drawn.
            label: (n,) int64; where given, each labeled row must have a class, and there must be two classes.

        Raises:
            DataError: No rows, a row twice or outside the dataset, a row without a class, or one class only.
        """
        parts = {"labeled": labeled, "val": [] if val is None else val, "test": [] if test is None else test}
        rows = {name: _rows(value, name, num_items) for name, value in parts.items()}
        _check_disjoint(rows)
        if label is not None and rows["labeled"].numel():
            given = _check_label(label, num_classes)[rows["labeled"]]
            missing = rows["labeled"][given == UNLABELED]
            if missing.numel():
                raise DataError(
                    f"Every row in `labeled` needs a known class, but {missing.numel()} of them have none "
                    f"(first: {_first(missing)}). Remove these rows or label them."
                )
            _check_two_classes(given)
        is_rest = torch.ones(num_items, dtype=torch.bool)
        is_rest[torch.cat(list(rows.values()))] = False
        return cls(unlabeled=is_rest.nonzero()[:, 0], num_classes=num_classes, seed=seed, **rows)

    @classmethod
    def from_given(
        cls,
        given_label: Tensor,
        *,
        num_classes: int,
        val: Tensor | None = None,
        test: Tensor | None = None,
    ) -> "FewLabelSplit":
        """Use every row that has a label, outside `val` and `test`, as labeled.

        Args:
            given_label: (n,) int64 classes, `UNLABELED` where there is none.
            num_classes: Number of classes c.
            val: Rows kept for validation.
            test: Rows kept for test.

        Raises:
            DataError: No labels at all, labels of one class only, or a label outside the classes.
        """
        label = _check_label(given_label, num_classes)
        labeled = _known(label, val, test).nonzero()[:, 0]
        if labeled.numel() == 0:
            raise _no_labels(label.numel())
        return cls.from_indices(
            labeled, num_items=label.numel(), num_classes=num_classes, val=val, test=test, label=label
        )

    def hold_out(self, fraction: float, label: Tensor, *, seed: int) -> "FewLabelSplit":
        """Move some unlabeled rows to validation; the labeled rows stay as they are.

        Args:
            fraction: Share of the pool's rows with a known class to move, above 0 and below 1.
            label: (n,) int64 true classes, `UNLABELED` where unknown; read only to see which rows have one.
            seed: Seed of the draw, independent of the label draw.

        Raises:
            ConfigError: `fraction` outside (0, 1), or not enough unlabeled rows with a known class.
        """
        if not 0 < fraction < 1:
            raise ConfigError(f"The validation fraction must be above 0 and below 1, but is {fraction}.")
        free = self.unlabeled[label[self.unlabeled] != UNLABELED]
        count = max(1, round(fraction * (free.numel() + self.labeled.numel())))
        if count > free.numel():
            raise ConfigError(
                f"A validation fraction of {fraction} needs {count} items whose class is known and that are not "
                f"training labels, but there are {free.numel()}. Use a smaller fraction, or label more items "
                "for validation."
            )
        # An offset, so that the rows drawn here do not follow the label draw of the same seed.
        generator = torch.Generator().manual_seed(seed + 1_000_003)
        val = free[torch.randperm(free.numel(), generator=generator)[:count]]
        return FewLabelSplit(
            labeled=self.labeled,
            unlabeled=self.unlabeled[~torch.isin(self.unlabeled, val)],
            val=torch.cat([self.val, val]),
            test=self.test,
            num_classes=self.num_classes,
            seed=self.seed,
        )

    def save(self, path: str | Path) -> None:
        """Write the split as JSON, one line per part."""
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        values = {k: v.tolist() if isinstance(v, Tensor) else v for k, v in values.items()}
        lines = [f'  "{key}": {json.dumps(value)}' for key, value in {"format": _FORMAT, **values}.items()]
        Path(path).write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")

    @classmethod
    def load(cls, path: str | Path) -> "FewLabelSplit":
        """Read a split that `save` wrote.

        Raises:
            DataError: The file is missing, is not such a JSON file, or holds an impossible split.
        """
        try:
            content = json.loads(Path(path).read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise DataError(f"There is no split file {path}. FewLabelSplit.save writes one.") from None
        except (OSError, ValueError) as error:
            raise DataError(f"The split file {path} cannot be read as JSON: {error}.") from error
        if not isinstance(content, dict) or content.get("format") != _FORMAT:
            raise DataError(f'{path} is not a split file: it needs "format": "{_FORMAT}".')
        names = [f.name for f in fields(cls)]
        missing = [name for name in names if name not in content]
        if missing:
            raise DataError(
                f"The split file {path} lacks {', '.join(missing)}. Write it again with FewLabelSplit.save."
            )
        try:
            return cls(**{name: content[name] for name in names})
        except (ValueError, TypeError, RuntimeError) as error:
            raise DataError(f"The split file {path} cannot be used: {error}") from error

    @classmethod
    def _draw(
        cls,
        label: Tensor,
        count: Callable[[int, int], int],
        *,
        num_classes: int,
        seed: int,
        val: Tensor | None,
        test: Tensor | None,
    ) -> "FewLabelSplit":
        label = _check_label(label, num_classes)
        is_known = _known(label, val, test)
        if not is_known.any():
            raise _no_labels(label.numel())
        generator = torch.Generator().manual_seed(seed)
        drawn = []
        for c in range(num_classes):
            member = (is_known & (label == c)).nonzero()[:, 0]
            # The whole class is permuted, so that a larger draw contains the smaller one.
            order = torch.randperm(member.numel(), generator=generator)
            drawn.append(member[order[: count(c, member.numel())]])
        return cls.from_indices(
            torch.cat(drawn),
            num_items=label.numel(),
            num_classes=num_classes,
            val=val,
            test=test,
            seed=seed,
            label=label,
        )


def _rows(value: Sequence[int] | Tensor, name: str, num_items: int | None = None) -> Tensor:
    """Return `value` as sorted int64 rows (m,) on the CPU; they must be whole, unique and inside the dataset."""
    rows = torch.as_tensor(value).detach().cpu()
    if rows.numel() == 0:
        return torch.empty(0, dtype=torch.int64)
    if rows.dim() != 1 or rows.is_floating_point() or rows.is_complex() or rows.dtype == torch.bool:
        raise DataError(f"`{name}` needs row numbers (m,) int64; got shape {tuple(rows.shape)}, dtype {rows.dtype}.")
    rows = rows.to(torch.int64).sort().values
    twice = rows[1:][rows[1:] == rows[:-1]]
    if twice.numel():
        raise DataError(f"`{name}` lists {twice.numel()} rows more than once (first: {_first(twice)}). List each once.")
    outside = rows[(rows < 0) | (rows >= (num_items if num_items is not None else rows[-1] + 1))]
    if outside.numel():
        size = "" if num_items is None else f" of a dataset with {num_items} items (rows 0 to {num_items - 1})"
        raise DataError(f"`{name}` names rows outside{size or ' the dataset'}: {_first(outside)}. Remove them.")
    return rows


def _check_disjoint(parts: dict[str, Tensor]) -> None:
    names = list(parts)
    for i, one in enumerate(names):
        for other in names[i + 1 :]:
            shared = parts[one][torch.isin(parts[one], parts[other])]
            if shared.numel():
                raise DataError(
                    f"Each item belongs to one part of the split; `{one}` and `{other}` share {shared.numel()} items "
                    f"(first: {_first(shared)}). Remove them from one of the two."
                )


def _check_label(label: Tensor, num_classes: int) -> Tensor:
    _check_num_classes(num_classes)
    if label.dim() != 1 or label.is_floating_point() or label.is_complex() or label.dtype == torch.bool:
        raise DataError(f"Labels need shape (n,) and dtype int64; got shape {tuple(label.shape)}, dtype {label.dtype}.")
    label = label.detach().cpu().to(torch.int64)
    outside = ((label != UNLABELED) & ((label < 0) | (label >= num_classes))).nonzero()[:, 0]
    if outside.numel():
        raise DataError(
            f"Labels must be 0 to {num_classes - 1} for {num_classes} classes, or {UNLABELED} for unlabeled; "
            f"{outside.numel()} items have a label outside the classes (first: item {int(outside[0])} has label "
            f"{int(label[outside[0]])}). Correct these labels or num_classes."
        )
    return label


def _check_num_classes(num_classes: int) -> None:
    if num_classes < 2:
        raise ConfigError(f"A classifier needs at least two classes, but num_classes is {num_classes}.")


def _check_two_classes(given: Tensor) -> None:
    present = given.unique()
    if present.numel() < 2:
        raise DataError(
            f"The labels name one class only: all {given.numel()} labeled items are of class {int(present[0])}. "
            "Label at least one item of another class."
        )


def _known(label: Tensor, val: Tensor | None, test: Tensor | None) -> Tensor:
    """Return (n,) bool: the class is known and the row is neither in validation nor in test."""
    is_known = label != UNLABELED
    for name, part in (("val", val), ("test", test)):
        if part is not None:
            is_known[_rows(part, name, label.numel())] = False
    return is_known


def _no_labels(num_items: int) -> DataError:
    return DataError(
        f"No labels at all: none of the {num_items} items outside validation and test has a known class. "
        "Label at least one item of two classes."
    )


def _first(rows: Tensor, most: int = 5) -> str:
    text = ", ".join(str(row) for row in rows[:most].tolist())
    return text + (", ..." if rows.numel() > most else "")
