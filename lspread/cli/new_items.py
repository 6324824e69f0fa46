"""What a finished run is asked about: new images, or new rows of a CSV file, batch by batch."""

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from lspread.errors import ConfigError, DataError
from lspread.typing import ItemKind

if TYPE_CHECKING:
    from torch import Tensor

    from lspread.lit.saved_model import SavedClassifier

__all__ = ["NewItems", "check_takes_images", "open_new_items"]

_TABLES = (".csv", ".tsv")
_SHOWN = 40
"""Letters of a cell that a warning shows."""


@dataclass(frozen=True)
class NewItems:
    """New items, and how to get them.

    Attributes:
        names: A name for each.
        kind: "image", "text" or "table".
        fetch: Rows to what the network takes, `(m, ch, h, w)`, the rows that could be read, and the paths that could
            not, each with the reason.
        has_labels: Whether some rows of a CSV file have a label.
        rows: `Columns.fingerprint` of a CSV file; None for images.
    """

    names: list[str]
    kind: ItemKind
    fetch: "Callable[[Tensor], tuple[Tensor, Tensor, list[tuple[Path, str]]]]"
    has_labels: bool = False
    rows: str | None = None

    @property
    def noun(self) -> str:
        """What to call one: "image", "text" or "row"."""
        return "row" if self.kind == "table" else self.kind


def check_takes_images(run: Path, model: "SavedClassifier") -> None:
    """Raise `DataError` where a run was trained on the rows of a CSV file, `ConfigError` where on other vectors."""
    from lspread.data.row_encoder import ENCODER_FILE

    if (run / ENCODER_FILE).is_file():
        raise DataError(f"{run} was trained on the rows of a CSV file, and not on images. Name a CSV file.")
    channels, height, width = model.image_shape
    if channels not in (1, 3) or height == width == 1:
        raise ConfigError(
            f"{run} was trained on vectors of {channels} numbers, not on images, and keeps nothing that makes such "
            f"vectors (features.json). `lspread fit {run}` adds it to an older run on the rows of a CSV file. Vectors "
            "made elsewhere are labeled from Python: lspread.lit.load_classifier(RUN)(vectors[:, :, None, None])."
        )


def open_new_items(source: Path, run: Path, model: "SavedClassifier", id_column: str | None = None) -> NewItems:
    """Find new items of the kind that a run was trained on.

    Args:
        source: For images a folder or one file; for texts and tables a CSV file.
        run: Folder of the run.
        model: Its classifier.
        id_column: Column that names the rows; None takes that of the run where there is one, else `item` or `id`.

    Raises:
        DataError: There is nothing there, it is of another kind, or a column that the run reads is missing.
        ConfigError: An option for another kind of run.
    """
    from lspread.data.row_encoder import ENCODER_FILE

    if (run / ENCODER_FILE).is_file():
        return _open_rows(source, run, model, id_column)
    check_takes_images(run, model)
    _, height, width = model.image_shape
    if id_column is not None:
        raise ConfigError(f"--id names a column of a CSV file, but {run} was trained on images.")
    if height != width:
        raise ConfigError(
            f"files are decoded to squares, but {run} was trained on images of {height} x {width} pixels. "
            "Decode them yourself and call lspread.lit.load_classifier(RUN)(images)."
        )
    return _open_images(source, model)


def _open_images(source: Path, model: "SavedClassifier") -> NewItems:
    from lspread.data import FolderImages
    from lspread.data.image_folder import IMAGE_SUFFIXES, find_images

    ends = f"Files that end in {', '.join(IMAGE_SUFFIXES)} are read."
    if source.is_file():
        if source.suffix.lower() in _TABLES:
            raise DataError(f"the run was trained on images, and {source} is a table. {ends}")
        root, names = source.parent, [source.name]
    elif source.is_dir():
        root, names = source, find_images(source)
    else:
        raise DataError(f"There is no folder and no image {source}.")
    if not names:
        raise DataError(f"There are no images under {source}. {ends}")
    channels, size, _ = model.image_shape
    images = FolderImages([root / name for name in names], size, channels, window=model.window)
    return NewItems(names, "image", images.fetch_readable)


def _open_rows(source: Path, run: Path, model: "SavedClassifier", id_column: str | None) -> NewItems:
    from lspread.data.columns import read_columns, shorten
    from lspread.data.row_encoder import load_row_encoder
    from lspread.data.vector_data import FeatureRows

    if source.is_dir():
        raise DataError(f"{run} was trained on the rows of a CSV file, and {source} is a folder. Name a CSV file.")
    encoder, columns = load_row_encoder(run), read_columns(source)
    columns.require(*encoder.columns)
    names, _ = columns.name_rows(id_column or (encoder.id_column if encoder.id_column in columns.cells else None))
    feature = encoder.encode(columns.cells)
    for column, unknown in encoder.unknown(columns.cells, feature).items():
        cell = shorten(columns.cells[column][unknown[0]], _SHOWN)
        number = f" (cells of this column like that: {len(unknown):,})" if len(unknown) > 1 else ""
        warnings.warn(
            f"{source}, line {columns.line[unknown[0]]}: {cell!r} in `{column}` says nothing, as the training rows had "
            f"nothing like it{number}.",
            stacklevel=2,
        )
    rows = FeatureRows(feature)
    if rows.image_shape != tuple(model.image_shape):
        raise DataError(
            f"{run}: features.json makes {rows.image_shape[0]} numbers of a row, but the network takes "
            f"{model.image_shape[0]}. Both must be of one run."
        )
    fingerprint = columns.fingerprint()
    return NewItems(names, encoder.kind, lambda index: (rows.fetch(index), index, []), columns.has_labels, fingerprint)
