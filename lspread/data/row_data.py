"""Rows of a CSV file as a dataset: texts, or tables of numbers and categories."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch

from lspread.data.columns import Columns, read_columns
from lspread.data.groups import choose_held_out
from lspread.data.labels_csv import class_names_of, label_table_of, read_labels_csv
from lspread.data.vector_data import VectorData
from lspread.errors import DataError
from lspread.typing import UNLABELED

__all__ = ["RowData"]


class RowData(VectorData):
    """The rows of a CSV file, as features of a text or of their columns; a few of them have a label.

    Labels stand in a column, empty where nobody knows, or in a file of their own. Scales, categories and words are
    taken from the training pool, so that held-out rows stay unseen. Rows of `test_csv` need no label; the
    rows of any file get theirs from a finished run by `lspread predict RUN new.csv`, which needs no other file.

    Args:
        path: The CSV file; its first line names the columns.
        labels_csv: Label file with the columns `item` and `label`; null: labels are in `label_column`.
        test_csv: File with the same columns, whose rows are for test; its labels may be missing.
        label_column: Column of labels; empty cells are unlabeled.
        text_column: Column of texts; null takes `text`, where there is one, else the rows are a table.
        text_model: null for words (TF-IDF and SVD), "wordllama", or a local folder of sentence-transformers.
        id_column: Column that names the rows; null takes `item` or `id`, where there is one.
        leave_out: Columns that are no features of a table.
        group_column: Column that names the group of each row, such as a patient or a customer; all of a group is held
            out or nothing, and unlabeled rows of a group with a given label are not judged. Rows of `test_csv`
            without a label may be of any group. No feature.
        class_names: Class names in order; null takes the sorted names of the labels.
        test_fraction: Share of the rows with a known class (with groups: of the groups) to keep for test, about the
            same of every class.
        val_fraction: The same for validation. Labels of neither are training labels.
        num_labels_per_class: Labels to draw from each class; the others stay with the evaluator.
        fraction: Share of each class to draw as labels.
        labeled_indices: Rows to use as labels, counted from 0.
        seed: Seed of the draws.
        batch_size: Rows of the pool per training step.
        labeled_batch_size: Labeled rows per training step.
        eval_batch_size: Rows per step without gradient.
        num_workers: Loader processes.

    Raises:
        DataError: A file cannot be read, lacks a column, has no labels, labels of one class only, ...
        ConfigError: An option outside its range, or a text model that is not there.
    """

    def __init__(
        self,
        path: str,
        labels_csv: str | None = None,
        *,
        test_csv: str | None = None,
        label_column: str = "label",
        text_column: str | None = None,
        text_model: str | None = None,
        id_column: str | None = None,
        leave_out: Sequence[str] = (),
        group_column: str | None = None,
        class_names: Sequence[str] | None = None,
        test_fraction: float = 0.0,
        val_fraction: float = 0.0,
        num_labels_per_class: int | None = None,
        fraction: float | None = None,
        labeled_indices: Sequence[int] | None = None,
        seed: int = 0,
        batch_size: int = 256,
        labeled_batch_size: int = 64,
        eval_batch_size: int = 8192,
        num_workers: int = 0,
    ) -> None:
        columns = read_columns(path)
        columns.require(text_column, group_column, *leave_out)
        items, id_column = columns.name_rows(id_column)
        if labels_csv is None:
            columns.require(label_column)
            table = label_table_of(columns, items, label_column)
        else:
            table = read_labels_csv(labels_csv, None)
        names = class_names_of(table) if class_names is None else list(class_names)
        label = torch.full((len(columns),), UNLABELED)
        rows, given = table.match(items, columns.path, names)
        label[rows] = given

        files = [columns]
        test = torch.empty(0, dtype=torch.int64)
        if test_csv is not None:
            new = read_columns(test_csv)
            files.append(new)
            test = torch.arange(len(columns), len(columns) + len(new))
            new_items = _new_names(new, items, id_column)
            if label_column in new.cells:
                new_label = torch.tensor(label_table_of(new, new_items, label_column).encode(names))
            else:
                new_label = torch.full((len(new),), UNLABELED)
            columns = columns.append(new, optional=[label_column, *leave_out])
            items, label = items + new_items, torch.cat([label, new_label])

        group = None if group_column is None else [name for file in files for name in _groups(file, group_column)]
        if group is not None:
            # Nothing is judged on a row without a label, so it may be of a group that training knows.
            known = set(group[: len(group) - len(test)])
            for row in test[label[test] == UNLABELED].tolist():
                group[row] += f" ({new.path.name})" if group[row] in known else ""
        held_out = choose_held_out(
            label, test_fraction=test_fraction, val_fraction=val_fraction, group=group, apart=test, seed=seed
        )
        test, val = torch.cat([held_out["test"], test]), held_out["val"]
        is_seen = torch.ones(len(label), dtype=torch.bool)
        is_seen[torch.cat([test, val])] = False
        no_features = {label_column, *leave_out} | {name for name in (id_column, group_column) if name is not None}
        found = columns.features(
            text_column, model=text_model, leave_out=no_features, reference=is_seen.nonzero()[:, 0].tolist()
        )
        super().__init__(
            found.embedding,
            label,
            names,
            name=Path(path).stem,
            names=items,
            kind=found.kind,
            group=group,
            val=val,
            test=test,
            num_labels_per_class=num_labels_per_class,
            fraction=fraction,
            labeled_indices=labeled_indices,
            seed=seed,
            batch_size=batch_size,
            labeled_batch_size=labeled_batch_size,
            eval_batch_size=eval_batch_size,
            num_workers=num_workers,
        )
        self.excerpts = columns.excerpts(text_column, leave_out=no_features)
        self.features_fingerprint = found.fingerprint
        self.row_encoder = replace(found.encoder, id_column=id_column)


def _new_names(new: Columns, items: list[str], id_column: str | None) -> list[str]:
    if id_column is None:
        return [f"{new.path.stem}-{row}" for row in range(1, len(new) + 1)]
    names, _ = new.name_rows(id_column)
    known = set(items)
    twice = next((name for name in names if name in known), None)
    if twice is not None:
        raise DataError(f"{new.path}: '{twice}' of `{id_column}` is also a row for training. Remove it from one file.")
    return names


def _groups(columns: Columns, group_column: str) -> list[str]:
    group = [cell.strip() for cell in columns.cells[group_column]]
    if "" in group:
        raise DataError(
            f"{columns.path}, line {columns.line[group.index('')]}: the cell `{group_column}` is empty. Every row "
            "needs its group, also those without a label: any of them may be of a held-out group."
        )
    return group
