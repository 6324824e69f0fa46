"""What commands have in common: a file of embeddings, its graph, labels, pictures, and where to write."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from lspread.errors import ConfigError

if TYPE_CHECKING:
    from torch import Tensor

    from lspread.data import EmbeddedItems
    from lspread.graph import Graph
    from lspread.report import SheetPicture

__all__ = ["LABELS_HELP", "add_graph_options", "check_folder", "graph_of", "read_labels", "sheet_picture", "texts_of"]

LABELS_HELP = "CSV file with the columns file (or item) and label; or the embedded CSV file itself, if it has labels"


def check_folder(folder: Path) -> None:
    """Raise `ConfigError`, before any work, where a folder to write to is a file."""
    file = next((part for part in (folder, *folder.parents) if part.is_file()), None)
    if file is not None:
        raise ConfigError(f"-o {folder} is to be a folder, but {file} is a file; choose another name.")


def add_graph_options(parser: argparse.ArgumentParser) -> None:
    """Add what shapes the graph."""
    group = parser.add_argument_group("graph")
    group.add_argument(
        "--k", type=int, default=7, help="neighbors of an item (default: 7; at most a third of all items)"
    )
    group.add_argument("--metric", choices=("cosine", "euclidean"), help="default: what the embeddings were made for")


def graph_of(items: "EmbeddedItems", options: argparse.Namespace) -> "Graph":
    """Return the graph of all items, not normalized."""
    from lspread.graph import build_graph, find_neighbors

    n = len(items.items)
    if n < 2:
        raise ConfigError(f"a graph needs at least two items; the file has {n}.")
    if options.k < 1:
        raise ConfigError(f"--k must be at least 1; got {options.k}.")
    z = items.embedding
    # Joining all of a few items with all would say nothing.
    neighbors = find_neighbors(z, min(options.k, max(1, (n - 1) // 3)), metric=options.metric or items.metric)
    return build_graph(z, neighbors)


def read_labels(items: "EmbeddedItems", path: Path | None) -> "tuple[Tensor, list[str]]":
    """Return labels `(n,)` and class names; without a file, none of either."""
    if path is not None:
        return items.read_labels(path)
    import torch

    from lspread.typing import UNLABELED

    return torch.full((len(items.items),), UNLABELED), []


def sheet_picture(items: "EmbeddedItems", row: int, *lines: str) -> "SheetPicture":
    """Return an item for a contact sheet; one without a picture has its name alone."""
    from lspread.report import SheetPicture

    name = items.items[row]
    path = Path(items.root) / name if items.kind == "image" else None
    return SheetPicture(path, (name, *lines))


def texts_of(items: "EmbeddedItems") -> list[str] | None:
    """Return what to read of each item: the start of its text, or the first cells of its row.

    None for images, and where the file of the rows is gone or no longer holds these rows.
    """
    if items.kind == "image":
        return None
    from lspread.data.columns import read_columns
    from lspread.errors import DataError

    try:
        columns = read_columns(items.root)
    except DataError:
        return None
    if not columns.are_named(items.items, items.rows):
        return None
    if items.kind == "table":
        named = columns.column_of(items.items)
        return columns.excerpts(leave_out=[name for name in (named, "label") if name is not None])
    column = items.made_by.get("column", "")
    return columns.excerpts(column) if column in columns.cells else None
