"""Exact neighbour search: candidates by one matrix product a tile, measured again by differences, and a proof.

Products round. A row is proved when no row that was left out can be nearer than its k-th neighbour, even if rounding
was as bad as it can be; the others are searched again in float64. Where rows that lie far from all others take the
digits even of that, the others are searched without them.
"""

import math

import torch
from torch import Tensor
from torch.nn.functional import pad

from lspread.autograd import needs_derivative
from lspread.graph.quantized import is_quantized_faster, search_quantized
from lspread.typing import Metric

__all__ = ["scale_to_unit", "search_exact"]

TILE_ELEMENTS = 1 << 27
"""Scores held at once on a GPU: 512 MiB in float32. Of an eighth, an H100 does too little between two launches."""
CPU_TILE_ELEMENTS = 1 << 21
"""The same on a CPU, whose caches are small; but a product is fast from about a thousand rows on, if memory allows."""
MANY_ROWS, LEAST_ROWS = 1024, 256
MOST_TILE_ELEMENTS = 1 << 25
"""What a CPU may hold for that many rows."""
CACHED_ELEMENTS = 1 << 19
"""Differences measured at once on a CPU: what stays in a core's cache."""
GROUP, LARGE_GROUP, MANY_COLUMNS = 8, 16, 2048
"""Columns whose minimum is looked at first, larger groups from so many columns on: a full top-k costs more than the
product."""
USUAL, FAR = 0.99, 1e4
"""Rows lie far off that are so many times as far from the middle as this share of all rows."""
SPARE = 8
"""Candidates kept beyond k and measured again."""
MAX_UNCHECKED = 8192
"""Nodes of a graph up to which a GPU does not look for rows without proof: it would have to wait for the host."""


def search_exact(z: Tensor, k: int, *, metric: Metric, sizes: list[int]) -> tuple[Tensor, Tensor]:
    """Return neighbour numbers and distances `(n, k)` for graphs of the given sizes.

    Args:
        z: `(n, d)` or `(b, n, d)` float32 or float64, no gradient.
        k: Neighbours per node.
        metric: "euclidean" or "cosine".
        sizes: Nodes of each graph, in order; they add up to the rows of z.

    Returns:
        Index int64 with -1 and distance with infinity where a graph has no more nodes.
    """
    is_zero = None
    if metric == "cosine":
        z, is_zero = scale_to_unit(z)
    flat = z.reshape(-1, z.shape[-1])
    largest = max(sizes)
    if min(sizes) == largest:
        stacked = None if is_zero is None else is_zero.view(len(sizes), largest)
        index, squared = _search_graphs(flat.view(len(sizes), largest, -1), k, stacked)
        offset = (torch.arange(len(sizes), device=z.device) * largest).view(-1, 1, 1)
        index = (index + offset).flatten(0, 1)
        squared = squared.flatten(0, 1)
    else:
        index, squared = _search_ragged(flat, k, sizes, is_zero)
    # On the unit sphere the squared chord is 2 (1 - cos).
    return index, squared / 2 if metric == "cosine" else squared.sqrt()


def scale_to_unit(z: Tensor) -> tuple[Tensor, Tensor]:
    """Return the rows of z scaled to length one, and which rows `(..., n)` have length zero and stay as they are."""
    length = torch.linalg.vector_norm(z, dim=-1, keepdim=True)
    is_zero = length == 0
    if needs_derivative(z):
        # At zero, a norm has no second derivative.
        length = torch.linalg.vector_norm(torch.where(is_zero, 1, z), dim=-1, keepdim=True)
    return z / torch.where(is_zero, torch.ones_like(length), length), is_zero.squeeze(-1)


def _search_ragged(flat: Tensor, k: int, sizes: list[int], is_zero: Tensor | None) -> tuple[Tensor, Tensor]:
    """Search graph by graph, padding the answers of graphs with fewer than k + 1 nodes."""
    index = flat.new_full((len(flat), k), -1, dtype=torch.int64)
    squared = flat.new_full((len(flat), k), torch.inf)
    start = 0
    for size in sizes:
        found = min(k, size - 1)
        if found > 0:
            rows = slice(start, start + size)
            local, near = _search_graphs(flat[None, rows], found, None if is_zero is None else is_zero[None, rows])
            index[rows, :found] = local[0] + start
            squared[rows, :found] = near[0]
        start += size
    return index, squared


def _search_graphs(z: Tensor, k: int, is_zero: Tensor | None) -> tuple[Tensor, Tensor]:
    """Search b equal graphs `(b, n, d)`; index is local to its graph, squared distances with it.

    Rows in `is_zero` `(b, n)` are vectors without direction among unit vectors: at right angles to all others.
    """
    num_graphs, size, _ = z.shape
    if num_graphs == 1 and is_quantized_faster(z[0], k):
        found, near, is_found = search_quantized(z[0], k, None if is_zero is None else is_zero[0])
        if is_zero is not None:
            # The vectors left out are at squared distance 2 from all.
            is_found &= near[:, -1] < 2
        index, squared = found.unsqueeze(0), near.unsqueeze(0)
        _search_again(z, index, squared, ~is_found.unsqueeze(0), is_zero, z.dtype)
        return index, squared
    index, squared, is_proved = _search(z, k, is_zero)
    is_checked = z.device.type == "cpu" or size > MAX_UNCHECKED
    if is_checked and not torch.compiler.is_compiling():
        if z.dtype != torch.float64:
            _search_again(z, index, squared, ~is_proved, is_zero, torch.float64)
        elif is_zero is None:
            for graph in (~is_proved).any(1).nonzero().flatten().tolist():  # sync: which rows are left
                _search_apart(z[graph], index[graph], squared[graph], (~is_proved[graph]).nonzero().flatten())
    return index, squared


def _search_again(
    z: Tensor, index: Tensor, squared: Tensor, is_left: Tensor, is_zero: Tensor | None, dtype: torch.dtype
) -> None:
    """Replace the answers of the rows in `is_left` `(b, n)`, searched in `dtype`; and in float64 what is not proved."""
    for graph in is_left.any(1).nonzero().flatten().tolist():  # sync: which rows are left
        one = slice(graph, graph + 1)
        rows = is_left[graph].nonzero().flatten()
        zeros = None if is_zero is None else is_zero[one]
        found, near, is_proved = _search(z[one].to(dtype), index.shape[-1], zeros, rows)
        index[graph, rows] = found[0]
        squared[graph, rows] = near[0].to(squared.dtype)
        if dtype != torch.float64:
            still = torch.zeros_like(is_left[one])
            still[0, rows] = ~is_proved[0]
            _search_again(z[one], index[one], squared[one], still, zeros, torch.float64)
        elif zeros is None:
            _search_apart(z[graph].double(), index[graph], squared[graph], rows[~is_proved[0]])


def _search_apart(z: Tensor, index: Tensor, squared: Tensor, rows: Tensor) -> None:
    """Replace the answers of some `rows` of one graph z `(n, d)` where other rows lie far off; else leave them.

    Products with these have no digits left for the others. What is farther from the middle than a row and its k-th
    neighbour together is no neighbour of it, so most rows are searched without; those far off by differences.
    """
    middle = z.median(0).values
    length = torch.linalg.vector_norm(z - middle, dim=1)
    limit = FAR * length.kthvalue(math.ceil(USUAL * len(z))).values
    near = (length <= limit).nonzero().flatten()
    k = index.shape[-1]
    if not len(rows) or len(near) == len(z):
        return
    reach = length[rows] + 1.01 * squared[rows, -1].sqrt()
    is_inside = (reach <= limit) & (len(near) > k)
    inside, others = rows[is_inside], rows[~is_inside]
    if len(inside):
        found, distance, _ = _search(z[near][None], k, None, torch.searchsorted(near, inside))
        index[inside], squared[inside] = near[found[0]], distance[0].to(squared.dtype)
    for part in others.split(max(1, CPU_TILE_ELEMENTS // len(z))):
        distance = torch.cdist(z[part], z, compute_mode="donot_use_mm_for_euclid_dist")
        distance[torch.arange(len(part), device=z.device), part] = torch.inf
        best, found = distance.topk(k, largest=False)
        index[part], squared[part] = found, best.square().to(squared.dtype)


def _search(z: Tensor, k: int, is_zero: Tensor | None, rows: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
    """Return index, squared distance and proof of the rows of b equal graphs, all of them or (of one graph) some."""
    num_graphs, size, width = z.shape
    # Distances do not change when everything moves; near the origin the product loses the fewest digits.
    centered = z - z.mean(1, keepdim=True)
    num_candidates = min(k + SPARE, size - 1)
    group = GROUP if size < MANY_COLUMNS else LARGE_GROUP
    is_grouped = size >= 4 * group * num_candidates
    num_columns = -(-size // group) * group if is_grouped else size
    columns = pad(centered, (0, 0, 0, num_columns - size)) if num_columns > size else centered
    square = columns.square().sum(-1)
    # What a score may be off by, per unit of |x| |y|max + |y|max^2.
    rounding = (width + 8) * _product_eps(z)
    largest = square.amax(1).sqrt().view(-1, 1)
    if is_zero is not None:
        # The origin is at squared distance 1 from the sphere, vectors at right angles at 2.
        square[:, :size] += is_zero
    if num_columns > size:
        square[:, size:] = torch.inf
    half_square = (square / 2).unsqueeze(1)
    transposed = columns.transpose(1, 2)
    is_cpu = z.device.type == "cpu"
    num_across = num_columns * num_graphs
    num_rows = max(1, TILE_ELEMENTS // num_across)
    if is_cpu:
        num_rows = max(CPU_TILE_ELEMENTS // num_across, min(MANY_ROWS, MOST_TILE_ELEMENTS // num_across), LEAST_ROWS)
    num_all = size if rows is None else len(rows)
    # Fresh memory would cost more than the arithmetic on it.
    scores = z.new_empty(num_graphs, min(num_rows, num_all), num_columns)
    index, squared, proof = [], [], []
    for start in range(0, num_all, num_rows):
        part = slice(start, min(start + num_rows, num_all))
        row = part if rows is None else rows[part]
        x = centered[:, row]
        # |x - y|^2 / 2 up to |x|^2 / 2, which is the same for the whole row.
        score = torch.baddbmm(half_square, x, transposed, alpha=-1, out=scores[:, : x.shape[1]])
        if rows is None:
            score[:, :, part].diagonal(dim1=1, dim2=2).fill_(torch.inf)
        else:
            score[:, torch.arange(x.shape[1], device=z.device), row] = torch.inf
        best, candidate = _smallest(score, num_candidates, group if is_grouped else 1)
        measured = _measure(z, z[:, row], candidate)
        if is_zero is not None:
            is_candidate_zero = is_zero.gather(1, candidate.flatten(1)).view_as(candidate)
            measured = torch.where(is_candidate_zero | is_zero[:, row, None], 2, measured)
        near, order = measured.topk(k, largest=False)
        index.append(candidate.gather(-1, order))
        squared.append(near)
        length = torch.linalg.vector_norm(x, dim=-1)
        limit = near[..., -1] * (1 + rounding) / 2 - length.square() / 2 + rounding * largest * (length + largest)
        # Nothing is nearer than equal points, and nothing is nearer than all.
        proof.append((limit < best.amax(-1)) | (near[..., -1] == 0) | (num_candidates == size - 1))
    return torch.cat(index, 1), torch.cat(squared, 1), torch.cat(proof, 1)


def _product_eps(z: Tensor) -> float:
    """Return the relative rounding of a factor in matrix products: users may allow bfloat16 or TF32 for float32."""
    eps = torch.finfo(z.dtype).eps
    if z.dtype != torch.float32:
        return eps
    if torch.compiler.is_compiling():  # it cannot read the switches
        return 2.0**-7
    backend = torch.backends.cuda if z.device.type == "cuda" else torch.backends.mkldnn
    # From torch 2.9 on; the older getter, all that there was before, is an error once one of these has been set.
    precision = getattr(getattr(backend, "matmul", None), "fp32_precision", None)
    if precision is None:
        precision = torch.get_float32_matmul_precision()
    return eps if precision in ("none", "ieee", "highest") else 2.0**-7


def _measure(z: Tensor, rows: Tensor, candidate: Tensor) -> Tensor:
    """Return squared distances of rows `(b, t, d)` to their candidates `(b, t, m)` by differences."""
    num_graphs, _, num_candidates = candidate.shape
    flat, width = z.flatten(0, 1), z.shape[-1]
    start = (torch.arange(num_graphs, device=z.device) * z.shape[1]).view(-1, 1, 1)
    number = (candidate + start).flatten(0, 1)
    squared = torch.empty(number.shape, dtype=z.dtype, device=z.device)
    step = max(1, (CACHED_ELEMENTS if z.device.type == "cpu" else TILE_ELEMENTS) // (num_candidates * width))
    held = z.new_empty(min(step, len(number)) * num_candidates, width)
    for part, row, out in zip(number.split(step), rows.flatten(0, 1).split(step), squared.split(step), strict=True):
        near = torch.index_select(flat, 0, part.flatten(), out=held[: part.numel()]).view(*part.shape, width)
        torch.linalg.vector_norm(near.sub_(row.unsqueeze(1)), dim=-1, out=out)
    return squared.square_().view(candidate.shape)


def _smallest(score: Tensor, count: int, group: int) -> tuple[Tensor, Tensor]:
    """Return the `count` smallest scores and their columns by looking into the `count` groups of smallest minimum.

    Were one of them in another group, `count` groups would have a minimum at most as large: then those minima are as
    good an answer.
    """
    if group == 1:
        values, indices = score.topk(count, largest=False, sorted=False)
        return values, indices
    num_groups = score.shape[-1] // group
    strided = score.view(*score.shape[:-1], group, num_groups)
    first = strided.amin(-2).topk(count, largest=False, sorted=False).indices
    member = torch.arange(group, device=score.device) * num_groups
    column = (first.unsqueeze(-1) + member).flatten(-2)
    best, place = score.gather(-1, column).topk(count, largest=False, sorted=False)
    return best, column.gather(-1, place)
