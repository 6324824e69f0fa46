"""What makes features of the rows of a CSV file; kept with a run, it serves rows that come later."""

import json
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from lspread.data.table_columns import Categories, Numbers, TableColumns
from lspread.data.text_models import embed_with_model
from lspread.data.words import Words
from lspread.errors import DataError
from lspread.typing import ItemKind

__all__ = [
    "ENCODER_FILE",
    "WORDS_FILE",
    "RowEncoder",
    "TableEncoder",
    "TextEncoder",
    "load_row_encoder",
    "save_row_encoder",
]

ENCODER_FILE = "features.json"
WORDS_FILE = "features.safetensors"
"""Beside the former, where features are words: how rare each is, and the directions of the SVD."""
_FORMAT = "lspread-rows-1"


@dataclass(frozen=True, eq=False)
class RowEncoder(ABC):
    """Makes features of rows, by words, scales and categories that were taken from the rows of a training pool.

    Attributes:
        kind: "text" or "table".
        id_column: Column that names the rows; None: they are counted.
    """

    kind: ClassVar[ItemKind]
    id_column: str | None = field(default=None, kw_only=True)

    @property
    @abstractmethod
    def columns(self) -> list[str]:
        """Columns that are read."""

    @abstractmethod
    def encode(self, cells: Mapping[str, Sequence[str]]) -> Tensor:
        """Return features `(n, d)` float32 of n rows; of `cells` only `columns` are read, n cells of each.

        Raises:
            ConfigError: The language model is not there.
        """

    @abstractmethod
    def unknown(self, cells: Mapping[str, Sequence[str]], feature: Tensor) -> dict[str, list[int]]:
        """Return, for each column with any, the rows whose cell tells nothing, as training knew nothing of its kind.

        Args:
            cells: As in `encode`.
            feature: What `encode` made of them.
        """


@dataclass(frozen=True, eq=False)
class TextEncoder(RowEncoder):
    """Texts of one column.

    Attributes:
        column: Its name.
        by: Words, or the language model: "wordllama", or a local folder of sentence-transformers.
    """

    kind = "text"
    column: str
    by: Words | str

    @property
    def columns(self) -> list[str]:
        """The column of texts."""
        return [self.column]

    def encode(self, cells: Mapping[str, Sequence[str]]) -> Tensor:
        """Return embeddings `(n, d)` float32 of the texts, made for the cosine."""
        texts = cells[self.column]
        return self.by.encode(texts) if isinstance(self.by, Words) else embed_with_model(texts, self.by)

    def unknown(self, cells: Mapping[str, Sequence[str]], feature: Tensor) -> dict[str, list[int]]:
        """Return the texts of which no word is known; a language model knows all."""
        if not isinstance(self.by, Words):
            return {}
        rows = (feature == 0).all(1).nonzero()[:, 0].tolist()
        return {self.column: rows} if rows else {}


@dataclass(frozen=True, eq=False)
class TableEncoder(RowEncoder):
    """Numbers and categories.

    Attributes:
        table: What became of the columns.
    """

    kind = "table"
    table: TableColumns

    @property
    def columns(self) -> list[str]:
        """Columns that are features."""
        return list(self.table.used)

    def encode(self, cells: Mapping[str, Sequence[str]]) -> Tensor:
        """Return features `(n, d)` float32."""
        return self.table.encode(cells)

    def unknown(self, cells: Mapping[str, Sequence[str]], feature: Tensor) -> dict[str, list[int]]:
        """Return the cells that are no numbers where these should be, and values that are no category."""
        found = {
            name: [row for row, cell in enumerate(cells[name]) if column.is_unknown(cell)]
            for name, column in self.table.used.items()
        }
        return {name: rows for name, rows in found.items() if rows}


def save_row_encoder(folder: str | Path, encoder: RowEncoder) -> None:
    """Write features.json, and features.safetensors where features are words; neither is a pickle.

    Args:
        folder: Where to write, such as the folder of a run.
        encoder: A `TextEncoder` or `TableEncoder`.
    """
    from safetensors.torch import save

    folder = Path(folder)
    (folder / WORDS_FILE).unlink(missing_ok=True)
    spec: dict[str, Any] = {"format": _FORMAT, "kind": encoder.kind, "id_column": encoder.id_column}
    if isinstance(encoder, TextEncoder):
        spec["column"] = encoder.column
        if isinstance(encoder.by, Words):
            spec["words"] = encoder.by.vocabulary
            tensors = {"idf": encoder.by.idf}
            if encoder.by.components is not None:
                tensors["components"] = encoder.by.components.contiguous()
            (folder / WORDS_FILE).write_bytes(save(tensors))  # save_file would leave it readable for its owner only
        else:
            # A relative path would be another one elsewhere.
            is_folder = encoder.by != "wordllama" and Path(encoder.by).is_dir()
            spec["model"] = str(Path(encoder.by).resolve()) if is_folder else encoder.by
    elif isinstance(encoder, TableEncoder):
        spec["columns"] = {name: asdict(column) for name, column in encoder.table.used.items()}
    (folder / ENCODER_FILE).write_text(json.dumps(spec, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def load_row_encoder(folder: str | Path) -> RowEncoder:
    """Read what `save_row_encoder` wrote.

    Args:
        folder: The folder of a finished run on texts or a table.

    Raises:
        DataError: A file is missing or damaged.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    folder = Path(folder)
    path = folder / ENCODER_FILE
    if not path.is_file():
        raise DataError(
            f"{folder} has no {ENCODER_FILE}, which says how texts and tables become numbers: it is no finished run on "
            "the rows of a CSV file, or one of an earlier version (`lspread fit RUN` adds what is missing)."
        )
    try:
        spec = json.loads(path.read_text(encoding="utf-8"))
        if spec["format"] != _FORMAT:
            raise ValueError(f"format {spec['format']} is not {_FORMAT}")
        if spec["kind"] == "table":
            used = {name: _read_column(column) for name, column in spec["columns"].items()}
            return TableEncoder(TableColumns(used, [], {}), id_column=spec["id_column"])
        if "model" in spec:
            return TextEncoder(spec["column"], str(spec["model"]), id_column=spec["id_column"])
        tensors = load_file(folder / WORDS_FILE)
        words = Words([str(word) for word in spec["words"]], tensors["idf"], tensors.get("components"))
        _check_words(words)
        return TextEncoder(spec["column"], words, id_column=spec["id_column"])
    except (ValueError, KeyError, TypeError, AttributeError, OSError, SafetensorError) as error:
        raise DataError(f"The features in {folder} cannot be read ({type(error).__name__}: {error}).") from error


def _read_column(spec: Mapping[str, Any]) -> Numbers | Categories:
    return Categories([str(value) for value in spec["values"]]) if "values" in spec else Numbers(**spec)


def _check_words(words: Words) -> None:
    num_words, components = len(words.vocabulary), words.components
    if words.idf.shape != (num_words,) or not (components is None or components.shape[1:] == (num_words,)):
        shapes = [tuple(words.idf.shape), None if components is None else tuple(components.shape)]
        raise ValueError(f"{num_words} words, but shapes {shapes} in {WORDS_FILE}")
    if words.idf.dtype != torch.float64:
        raise ValueError(f"idf is {words.idf.dtype}")
