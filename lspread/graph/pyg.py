"""A PyG transform; imported only when asked for, since it loads PyG."""

from typing import cast

from torch_geometric.data import Data
from torch_geometric.transforms import BaseTransform

from lspread.errors import GraphError
from lspread.graph.construction import DEFAULT_KERNEL, build_graph
from lspread.graph.kernels import Kernel
from lspread.graph.neighbors import find_neighbors
from lspread.typing import Metric, Symmetrize

__all__ = ["KnnGraph"]


class KnnGraph(BaseTransform):
    """PyG transform that gives `data` the symmetric weighted k-nearest-neighbour graph of its points.

    Needs no compiled extension. Reads `data.pos` (else `data.x`) and, for a `Batch`, `data.batch`; sets `edge_index`
    and `edge_weight`, and drops `edge_attr`.

    Args:
        k: Neighbours per node.
        metric: "euclidean" or "cosine".
        kernel: Edge kernel.
        symmetrize: "mean", "max" or "mutual".
    """

    def __init__(
        self,
        k: int = 15,
        *,
        metric: Metric = "euclidean",
        kernel: Kernel = DEFAULT_KERNEL,
        symmetrize: Symmetrize = "mean",
    ) -> None:
        self.k, self.metric, self.kernel, self.symmetrize = k, metric, kernel, symmetrize

    def forward(self, data: Data) -> Data:
        """Return `data` with its edges replaced. Raises `GraphError` when it has neither `pos` nor `x`."""
        points = data.pos if data.pos is not None else data.x
        if points is None:
            raise GraphError("KnnGraph needs data.pos or data.x; got neither. Set data.x to the embeddings (n, d).")
        neighbors = find_neighbors(points, self.k, metric=self.metric, batch=data.batch)
        graph = build_graph(points, neighbors, kernel=self.kernel, symmetrize=self.symmetrize).to_pyg()
        data.edge_index, data.edge_weight, data.edge_attr = graph.edge_index, graph.edge_weight, None
        return cast(Data, data)

    def __repr__(self) -> str:
        return f"KnnGraph(k={self.k}, metric={self.metric!r}, kernel={self.kernel}, symmetrize={self.symmetrize!r})"
