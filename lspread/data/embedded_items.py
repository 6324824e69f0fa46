"""Items with their embeddings in one file: what `lspread embed` writes and every later command reads."""

import csv
import json
from dataclasses import asdict, dataclass, field
from pathlib import Path

import safetensors
import torch
from safetensors.torch import save
from torch import Tensor

from lspread.data.columns import read_columns
from lspread.data.embeddings import check_embeddings
from lspread.data.labels_csv import LabelTable, class_names_of, label_table_of, read_labels_csv
from lspread.errors import DataError
from lspread.typing import UNLABELED, ItemKind, Metric

__all__ = ["EmbeddedItems"]

_KEY, _FACTS = "embedding", "lspread"


@dataclass(frozen=True, eq=False)
class EmbeddedItems:
    """n items and their embeddings.

    Attributes:
        embedding: `(n, d)` float32, finite.
        items: A name for each: the path of an image relative to `root`, or what tells a row of a table.
        kind: "image", "text" or "table".
        root: Folder of the images, or the file of the rows.
        metric: By which distance the embeddings were made to be compared.
        made_by: What made them, for people and reports.
        rows: `Columns.fingerprint` of the file of the rows, as it was; None for images, or where it is not known.
    """

    embedding: Tensor
    items: list[str]
    kind: ItemKind
    root: str
    metric: Metric = "cosine"
    made_by: dict[str, str] = field(default_factory=dict)
    rows: str | None = None

    def __post_init__(self) -> None:
        check_embeddings(self.embedding)
        if len(self.items) != len(self.embedding) or len(set(self.items)) != len(self.items):
            raise DataError(
                f"every embedding needs a name of its own; got {len(self.embedding)} embeddings and "
                f"{len(set(self.items))} distinct names."
            )

    def save(self, path: str | Path) -> Path:
        """Write a .safetensors file: the tensor "embedding", and all else as JSON in its metadata."""
        path = Path(path)
        facts = {name: value for name, value in asdict(self).items() if name != "embedding"}
        path.parent.mkdir(parents=True, exist_ok=True)
        tensor = self.embedding.detach().to("cpu", torch.float32).contiguous()
        part = path.with_name(path.name + ".part")
        part.write_bytes(save({_KEY: tensor}, metadata={_FACTS: json.dumps(facts)}))
        part.replace(path)  # never half a file under the name
        return path

    @classmethod
    def load(cls, path: str | Path) -> "EmbeddedItems":
        """Read what `save` wrote; nothing is unpickled.

        Raises:
            DataError: There is no such file, it is damaged, or it has embeddings without the names of their items.
        """
        path = Path(path)
        if not path.is_file():
            raise DataError(f"There is no embedding file {path}. Write one: lspread embed FOLDER -o {path}")
        try:
            with safetensors.safe_open(path, framework="pt") as file:
                facts = json.loads((file.metadata() or {})[_FACTS])
                return cls(embedding=file.get_tensor(_KEY), **facts)
        except (safetensors.SafetensorError, OSError, ValueError, KeyError, TypeError) as error:
            if isinstance(error, DataError):
                raise
            raise DataError(
                f"{path} is not a file of `lspread embed` ({type(error).__name__}: {error}). Write it anew."
            ) from error

    def read_labels(self, path: str | Path) -> tuple[Tensor, list[str]]:
        """Read a table of labels and find its items.

        Args:
            path: CSV file with the columns `file` (or `item`) and `label`; an empty label says nothing. Of texts and
                tables also the file of the rows itself, `root`, which has a column `label`.

        Returns:
            Labels `(n,)` int64, `UNLABELED` elsewhere, and the names of the classes, sorted.

        Raises:
            DataError: The file cannot be read, names items that are not here, or labels of fewer than two classes; or
                it is `root` and has no column `label`, or other rows than were embedded.
        """
        table = self._label_table(Path(path))
        names = class_names_of(table)
        rows, given = table.match(self.items, Path(self.root), names)
        label = torch.full((len(self.items),), UNLABELED)
        label[rows] = given
        return label, names

    def _label_table(self, path: Path) -> LabelTable:
        if self.kind == "image":
            return read_labels_csv(path, self.root)
        if not path.is_file() or path.resolve() != Path(self.root).resolve():
            return read_labels_csv(path, None)
        columns = read_columns(path)
        columns.require("label")
        if not columns.are_named(self.items, self.rows):
            raise DataError(
                f"{path} no longer holds the {len(self.items)} rows that were embedded, in their order. Embed it "
                "again, or name their labels in a file of its own, with the columns `item` and `label`."
            )
        return label_table_of(columns, self.items, "label")

    def write_table(self, path: Path, header: list[str], rows: list[list[str]]) -> None:
        """Write a CSV file, UTF-8; file names that are no UTF-8 stay readable back."""
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("w", newline="", encoding="utf-8", errors="surrogateescape") as file:
            writer = csv.writer(file)
            writer.writerow(header)
            writer.writerows(rows)
