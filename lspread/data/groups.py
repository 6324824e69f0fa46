"""Held-out items, and groups that stay together: all images of a patient on one side of a split."""

import warnings
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from lspread.data.columns import read_columns
from lspread.data.labels_csv import relative_path
from lspread.data.split import FewLabelSplit
from lspread.errors import ConfigError, DataError
from lspread.typing import UNLABELED

__all__ = ["check_groups", "choose_held_out", "hide_relatives", "read_groups_csv", "whole_groups"]

_MOST_FOLDS = 20
"""Fractions are met to a twentieth."""


def choose_held_out(
    label: Tensor,
    *,
    test_fraction: float = 0.0,
    val_fraction: float = 0.0,
    group: Sequence[str] | None = None,
    apart: Tensor | None = None,
    seed: int,
) -> dict[str, Tensor]:
    """Choose items for test and validation, in each about the same share of every class.

    Chosen before any label is drawn; labels of chosen items are no training labels.

    Args:
        label: `(n,)` int64 classes, `UNLABELED` where unknown.
        test_fraction: Share for test, in [0, 1); of the items with a known class or, with `group`, of all groups.
        val_fraction: The same for validation.
        group: A name for each item; items of one group are held out together, those without a known class as well.
        apart: Items that are held out already `(m,)` int64; not chosen, and without them the others are chosen alike.
        seed: Of the draw.

    Returns:
        "test" and "val", ascending rows, empty where the fraction is 0. Without groups every class keeps one item.

    Raises:
        ConfigError: A fraction out of range, or both leave nothing.
        DataError: Too few items of known class, or too few groups.

    Note:
        By scikit-learn's StratifiedGroupKFold or, without groups, StratifiedKFold: a fraction is met as m of k folds,
        k at most 20, the number of groups, and the size of the largest class.
    """
    if min(test_fraction, val_fraction) < 0 or test_fraction + val_fraction >= 1:
        raise ConfigError(
            f"test_fraction and val_fraction must be 0 or more and together below 1; got {test_fraction} and "
            f"{val_fraction}."
        )
    is_free = torch.ones(len(label), dtype=torch.bool) if group is not None else label != UNLABELED
    if apart is not None:
        is_free[apart] = False
    held_out = {}
    for part, share in (("test", test_fraction), ("val", val_fraction / (1 - test_fraction))):
        held_out[part] = _choose(label, share, is_free, group, seed) if share else torch.empty(0, dtype=torch.int64)
        is_free[held_out[part]] = False
    return held_out


def whole_groups(rows: Tensor, group: Sequence[str]) -> Tensor:
    """Return all rows of the groups that any of `rows` belongs to, ascending."""
    number = _numbered(group)
    return torch.isin(number, number[rows]).nonzero()[:, 0]


def check_groups(split: FewLabelSplit, group: Sequence[str]) -> None:
    """Check that no group stands in two of pool, validation and test.

    Raises:
        DataError: One does; the message names it.
    """
    number = _numbered(group)
    parts = {"the training pool": split.pool, "validation": split.val, "test": split.test}
    place: dict[int, str] = {}
    for part, rows in parts.items():
        for one, row in zip(number[rows].tolist(), rows.tolist(), strict=True):
            if place.setdefault(one, part) != part:
                raise DataError(
                    f"group '{group[row]}' stands in {place[one]} and in {part}. All items of a group belong on one "
                    "side: move them together."
                )


def hide_relatives(label: Tensor, split: FewLabelSplit, group: Sequence[str]) -> Tensor:
    """Return true classes `(n,)` without those of unlabeled items whose group has a given label.

    What is right on other pictures of a patient whose label was seen tells little about new patients.
    """
    relatives = whole_groups(split.labeled, group)
    label = label.clone()
    label[relatives[torch.isin(relatives, split.unlabeled)]] = UNLABELED
    return label


def read_groups_csv(path: str | Path, root: Path, column: str) -> dict[str, str]:
    """Read which group each file belongs to; other columns are left alone.

    Args:
        path: CSV file with the columns `file` (or `item`) and `column`.
        root: The folder that relative paths in `file` start from.
        column: Name of the column of groups, such as "patient".

    Raises:
        DataError: The file is missing, lacks a column or a cell, or gives a file two groups.
    """
    columns = read_columns(path, errors="surrogateescape")
    name = "item" if "item" in columns.cells else "file"
    columns.require(name, column)
    found: dict[str, str] = {}
    for cell, group, line in zip(columns.cells[name], columns.cells[column], columns.line, strict=True):
        file, group = relative_path(cell.strip(), root, columns.path, line), group.strip()
        if not group:
            raise DataError(f"{path}, line {line}: the cell `{column}` of {file} is empty. Every file needs its group.")
        if found.setdefault(file, group) != group:
            raise DataError(f"{path}, line {line}: {file} is of '{group}' here and of '{found[file]}' above.")
    return found


def _numbered(group: Sequence[str]) -> Tensor:
    return torch.from_numpy(np.unique(np.asarray(group, dtype=object), return_inverse=True)[1].astype(np.int64))


def _choose(label: Tensor, share: float, is_free: Tensor, group: Sequence[str] | None, seed: int) -> Tensor:
    from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold

    rows = is_free.nonzero()[:, 0]
    # Numbered among these rows alone: rows that are apart must not change the draw.
    number = None if group is None else _numbered([group[row] for row in rows.tolist()])
    num_units = len(rows) if number is None else len(number.unique())
    if num_units < 2:
        what = "items with a known class" if number is None else "groups"
        raise DataError(
            f"holding out a share of {share:.3g} needs at least 2 {what} to choose from; there are {num_units}. "
            "Hold out less, or bring more."
        )
    kind = label[rows] - UNLABELED  # UNLABELED is a kind of its own: 0
    most = min(_MOST_FOLDS, num_units, int(torch.bincount(kind).max()))
    if most < 2:
        raise DataError(
            f"holding out a share of {share:.3g} needs at least 2 items of one class; every class has one. "
            "Label more items."
        )
    folds = Fraction(share).limit_denominator(most)
    if folds == 0:
        folds = Fraction(1, most)
    elif folds == 1:
        folds = Fraction(most - 1, most)
    splitter, units = StratifiedKFold(folds.denominator, shuffle=True, random_state=seed), None
    if number is not None:
        # Of groups that are alike the one with the lower number comes first, so a random order of numbers is a random
        # choice. The splitter's own shuffle forgets, before scikit-learn 1.8, which group has which classes.
        order = torch.randperm(int(number.max()) + 1, generator=torch.Generator().manual_seed(seed))
        splitter, units = StratifiedGroupKFold(folds.denominator), order[number].numpy()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # classes rarer than the folds: some folds have none of them
        parts = splitter.split(np.zeros(len(rows)), kind.numpy(), units)
        chosen = [fold for _, fold in parts][: folds.numerator]
    is_chosen = torch.zeros(len(rows), dtype=torch.bool)
    is_chosen[torch.from_numpy(np.concatenate(chosen))] = True
    if number is None:
        generator = torch.Generator().manual_seed(seed)
        for c in kind.unique():
            own = (kind == c).nonzero()[:, 0]
            if is_chosen[own].all():  # a class keeps one item at least
                is_chosen[own[torch.randint(len(own), (1,), generator=generator)]] = False
    return rows[is_chosen]
