"""lspread: good classifiers from very few labels, by differentiable label spreading on neighbour graphs."""

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_HOME = {
    "UNLABELED": "lspread.typing",
    "LspreadError": "lspread.errors",
    "Graph": "lspread.graph",
    "Neighbors": "lspread.graph",
    "build_graph": "lspread.graph",
    "find_neighbors": "lspread.graph",
    "normalize_graph": "lspread.graph",
    "label_matrix": "lspread.labels",
    "pseudo_labels": "lspread.labels",
    "propagate_labels": "lspread.labels",
    "spread_labels": "lspread.labels",
    "LabelPropagation": "lspread.nn",
    "LabelSpreading": "lspread.nn",
    "embed": "lspread.nn",
}

__all__ = [
    "UNLABELED",
    "Graph",
    "LabelPropagation",
    "LabelSpreading",
    "LspreadError",
    "Neighbors",
    "__version__",
    "build_graph",
    "embed",
    "find_neighbors",
    "label_matrix",
    "normalize_graph",
    "propagate_labels",
    "pseudo_labels",
    "spread_labels",
]

if TYPE_CHECKING:
    from lspread.errors import LspreadError
    from lspread.graph import Graph, Neighbors, build_graph, find_neighbors, normalize_graph
    from lspread.labels import label_matrix, propagate_labels, pseudo_labels, spread_labels
    from lspread.nn import LabelPropagation, LabelSpreading, embed
    from lspread.typing import UNLABELED


def __getattr__(name: str) -> Any:
    """Load a name from its room when it is first asked for, so that `import lspread` costs nothing."""
    if name not in _HOME:
        raise AttributeError(f"module 'lspread' has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOME[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
