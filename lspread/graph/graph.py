"""The graph type, and its doors to PyG and SciPy."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from lspread.errors import GraphError
from lspread.typing import Normalization

if TYPE_CHECKING:
    import scipy.sparse
    from torch_geometric.data import Data

__all__ = ["Graph"]


@dataclass(frozen=True, eq=False)
class Graph:
    """A weighted graph, or a batch of graphs as one block-diagonal graph.

    Attributes:
        edge_index: `(2, e)` int64; row 0 receives from row 1, sorted by row 0. It is the matrix entry (row 0, row 1).
        edge_weight: `(e,)` float32 or float64, >= 0.
        ptr: Boundaries of the b graphs, `(b + 1,)` int64.
        num_nodes: Number of nodes n over all graphs.
        is_symmetric: Set by the function that made it so.
        normalization: "none", "symmetric" (D^-1/2 W D^-1/2) or "random_walk" (D^-1 W).
    """

    edge_index: Tensor
    edge_weight: Tensor
    ptr: Tensor
    num_nodes: int
    is_symmetric: bool = False
    normalization: Normalization = "none"

    @property
    def num_edges(self) -> int:
        """Number of entries e; an undirected edge counts twice."""
        return self.edge_index.shape[1]

    @property
    def num_graphs(self) -> int:
        """Number of graphs b in the batch."""
        return len(self.ptr) - 1

    @property
    def device(self) -> torch.device:
        """Where the graph lies."""
        return self.edge_weight.device

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> Graph:
        """Return the graph on another device, or with weights of another dtype."""
        return replace(
            self,
            edge_index=self.edge_index.to(device),
            edge_weight=self.edge_weight.to(device, dtype),
            ptr=self.ptr.to(device),
        )

    def to_dense(self) -> Tensor:
        """Return the matrix `(n, n)`; O(n^2), for small graphs. Differentiable in `edge_weight`."""
        flat = self.edge_weight.new_zeros(self.num_nodes**2)
        return flat.index_add(0, self.edge_index[0] * self.num_nodes + self.edge_index[1], self.edge_weight).view(
            self.num_nodes, self.num_nodes
        )

    @classmethod
    def from_edges(
        cls,
        edge_index: Tensor,
        edge_weight: Tensor | None = None,
        *,
        num_nodes: int | None = None,
        ptr: Tensor | None = None,
    ) -> Graph:
        """Check, sort and coalesce a list of matrix entries; find out whether they are symmetric.

        Args:
            edge_index: `(2, e)` int64; row 0 receives from row 1.
            edge_weight: `(e,)` floating point >= 0; ones if left out. Weights of repeated entries are added.
            num_nodes: Default: the largest node number plus one.
            ptr: Boundaries of a batch of graphs `(b + 1,)`; default: one graph.

        Returns:
            `Graph`, differentiable in `edge_weight`. Entries that differ from their mirror images by rounding only (up
            to 1e-5 of their size) become the mean of both, and the graph is symmetric. Reads from the device: this is a
            door, not a hot path.

        Raises:
            GraphError: Shapes, dtypes, node numbers, signs or boundaries do not fit.
        """
        if edge_index.ndim != 2 or edge_index.shape[0] != 2 or edge_index.dtype != torch.int64:
            raise GraphError(
                f"edge_index must be int64 of shape (2, e); got {tuple(edge_index.shape)} {edge_index.dtype}."
            )
        if edge_weight is None:
            edge_weight = torch.ones(edge_index.shape[1], device=edge_index.device)
        if edge_weight.shape != edge_index.shape[1:] or edge_weight.dtype not in (torch.float32, torch.float64):
            raise GraphError(
                f"edge_weight must be float32 or float64 of shape ({edge_index.shape[1]},), one weight per edge; "
                f"got {tuple(edge_weight.shape)} {edge_weight.dtype}."
            )
        largest = int(edge_index.max()) if edge_index.numel() else -1
        num_nodes = largest + 1 if num_nodes is None else num_nodes
        if edge_index.numel() and (largest >= num_nodes or int(edge_index.min()) < 0):
            raise GraphError(
                f"edge_index must hold node numbers 0 to {num_nodes - 1}; got {int(edge_index.min())} to {largest}."
            )
        if not bool((edge_weight >= 0).all()) or not bool(torch.isfinite(edge_weight).all()):
            raise GraphError("edge_weight must be finite and not negative; clip or shift the weights first.")
        ptr = torch.tensor([0, num_nodes]) if ptr is None else ptr
        if int(ptr[0]) != 0 or int(ptr[-1]) != num_nodes or bool((ptr.diff() < 0).any()):
            raise GraphError(
                f"ptr must run from 0 to num_nodes={num_nodes} without decreasing; got {ptr.tolist()[:8]}..."
            )
        ptr = ptr.to(edge_index.device)
        graph_of = torch.repeat_interleave(ptr.diff(), output_size=num_nodes)
        if bool((graph_of[edge_index[0]] != graph_of[edge_index[1]]).any()):
            raise GraphError("an edge joins two graphs of the batch; edges must stay inside the boundaries of ptr.")

        key, slot = torch.unique(edge_index[0] * max(num_nodes, 1) + edge_index[1], return_inverse=True)
        weight = edge_weight.new_zeros(len(key)).index_add(0, slot, edge_weight)
        index = torch.stack([key // max(num_nodes, 1), key % max(num_nodes, 1)])
        back = torch.argsort(index[1] * max(num_nodes, 1) + index[0])
        close = torch.isclose(weight, weight[back], rtol=1e-5, atol=0)
        is_symmetric = torch.equal(index, index[:, back].flip(0)) and bool(close.all())
        if is_symmetric and not torch.equal(weight, weight[back]):
            # Exactly, since solvers take a matrix that is said to be symmetric for its own transpose.
            weight = (weight + weight[back]) / 2
        return cls(index, weight, ptr, num_nodes, is_symmetric=is_symmetric)

    @classmethod
    def from_pyg(
        cls,
        data: Data | Tensor,
        edge_weight: Tensor | None = None,
        *,
        batch: Tensor | None = None,
        num_nodes: int | None = None,
    ) -> Graph:
        """Take a PyG `Data` or `Batch`, or its `edge_index` with weights and `batch`.

        PyG's edges run from row 0 to row 1, so row 1 receives: the rows change places. Weights are `edge_weight`, else
        a one-column `edge_attr`, else ones.

        Raises:
            GraphError: See `from_edges`; also when `batch` is not ascending.
        """
        ptr = None
        if isinstance(data, Tensor):
            edge_index = data
        else:
            edge_index = data.edge_index
            batch = data.batch if batch is None else batch
            num_nodes = data.num_nodes if num_nodes is None else num_nodes
            if edge_weight is None:
                edge_weight = data.edge_weight if data.edge_weight is not None else data.edge_attr
                edge_weight = (
                    edge_weight.squeeze(-1) if edge_weight is not None and edge_weight.ndim == 2 else edge_weight
                )
        if batch is not None:
            if batch.numel() and (bool((batch[1:] < batch[:-1]).any()) or int(batch[0]) < 0):
                raise GraphError("batch must be ascending from 0, all nodes of a graph next to each other.")
            # A Batch may end with graphs that have no nodes.
            num_graphs = 0 if isinstance(data, Tensor) else int(getattr(data, "num_graphs", 0))
            count = torch.bincount(batch, minlength=num_graphs)
            ptr = torch.cat([count.new_zeros(1), count.cumsum(0)])
            num_nodes = len(batch) if num_nodes is None else num_nodes
        return cls.from_edges(edge_index.flip(0), edge_weight, num_nodes=num_nodes, ptr=ptr)

    def to_pyg(self) -> Data:
        """Return PyG `Data` with `edge_index` (row 1 receives), `edge_weight`, and `batch` and `ptr` of a batch."""
        from torch_geometric.data import Data

        extra: dict[str, Any] = {}
        if self.num_graphs > 1:
            extra = {"batch": torch.repeat_interleave(self.ptr.diff(), output_size=self.num_nodes), "ptr": self.ptr}
        return Data(edge_index=self.edge_index.flip(0), edge_weight=self.edge_weight, num_nodes=self.num_nodes, **extra)

    @classmethod
    def from_scipy(cls, matrix: scipy.sparse.sparray | scipy.sparse.spmatrix, *, ptr: Tensor | None = None) -> Graph:
        """Take a square SciPy sparse matrix; entry (i, j) lets node i receive from node j.

        Raises:
            GraphError: The matrix is not square, or see `from_edges`.
        """
        coo = matrix.tocoo()
        if coo.shape[0] != coo.shape[1]:
            raise GraphError(f"from_scipy needs a square matrix; got {coo.shape}.")
        edge_index = torch.stack([torch.as_tensor(coo.row).long(), torch.as_tensor(coo.col).long()])
        weight = torch.as_tensor(coo.data)
        weight = weight if weight.dtype in (torch.float32, torch.float64) else weight.double()
        return cls.from_edges(edge_index, weight, num_nodes=coo.shape[0], ptr=ptr)

    def to_scipy(self) -> scipy.sparse.csr_array:
        """Return a SciPy CSR array `(n, n)` on the CPU, without gradient; repeated entries are added.

        Indices are int32 where they fit: much of what takes SciPy's matrices, scikit-learn included, takes no others.
        """
        from scipy.sparse import coo_array

        is_large = max(self.num_nodes, self.num_edges) > torch.iinfo(torch.int32).max
        row, column = self.edge_index.to("cpu", torch.int64 if is_large else torch.int32).numpy()
        weight = self.edge_weight.detach().cpu().numpy()
        return coo_array((weight, (row, column)), shape=(self.num_nodes, self.num_nodes)).tocsr()
