"""Second opinions: the formulas of the papers on dense float64 matrices; nothing in them comes from the package."""

import torch

from lspread.graph import Graph


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def distances(z, metric="euclidean"):
    """All distances (n, n), infinite to oneself; the cosine of a zero vector is 0."""
    z = z.double()
    if metric == "cosine":
        z = torch.stack([row / row.norm() if row.norm() > 0 else row for row in z])
        distance = 1 - z @ z.T
    else:
        distance = torch.stack([(z - row).square().sum(1).sqrt() for row in z])
    return distance.fill_diagonal_(torch.inf)


def knn(z, k, metric="euclidean"):
    """Sort all distances: index and distance (n, k)."""
    near = distances(z, metric).sort(dim=1, stable=True)
    return near.indices[:, :k], near.values[:, :k]


def scatter(weight, index):
    """Put weights (n, k) of neighbors into a dense matrix; slots with index -1 hold nothing."""
    dense = torch.zeros(len(index), len(index), dtype=weight.dtype)
    for i, neighbors in enumerate(index.tolist()):
        for slot, j in enumerate(neighbors):
            if j >= 0:
                dense[i, j] = weight[i, slot]
    return dense


def self_tuning(distance, index, scale=1.0):
    width = distance.amax(1)
    return torch.exp(-scale * distance**2 / (width[:, None] * width[index]))


def gaussian(distance, bandwidth):
    return torch.exp(-(distance**2) / (2 * bandwidth**2))


def symmetrize(directed, how):
    """Directed dense weights; an absent edge weighs zero."""
    back = directed.T
    if how == "mean":
        return (directed + back) / 2
    return torch.maximum(directed, back) if how == "max" else torch.minimum(directed, back)


def normalize(w):
    """D^-1/2 W D^-1/2, zero rows for isolated nodes."""
    degree = w.sum(1)
    scale = torch.where(degree > 0, degree.clamp(min=1e-300).rsqrt(), 0)
    return scale[:, None] * w * scale


def random_walk(w):
    degree = w.sum(1, keepdim=True)
    return torch.where(degree > 0, w / degree.clamp(min=1e-300), 0)


def spread(s, targets, alpha):
    """Zhou et al. 2003, equation 4, with the factor 1 - alpha."""
    return (1 - alpha) * torch.linalg.solve(torch.eye(len(s), dtype=s.dtype) - alpha * s, targets)


def propagate(w, targets, is_given, ridge=0.0):
    """Zhu et al. 2003, equation 5: F_u = (D_uu - W_uu)^-1 W_ul Y_l."""
    free = ~is_given
    laplacian = torch.diag(w.sum(1) + ridge) - w
    out = torch.where(is_given[:, None], targets, 0.0)
    solved = torch.linalg.solve(laplacian[free][:, free], w[free][:, is_given] @ targets[is_given])
    return out.index_put((free.nonzero().flatten(),), solved)


def spread_per_node(s, targets, alpha):
    """Zhou et al. 2003, equation 5 with mu_i per node: (I - S + M) F = M Y; alpha_i = 1 / (1 + mu_i)."""
    mu = torch.diag(1 / alpha - 1)
    return torch.linalg.solve(torch.eye(len(s), dtype=s.dtype) - s + mu, mu @ targets)


def poisson(w, targets):
    """Calder et al. 2020 on a connected graph: L u = sum_j (y_j - mean y) delta_j with sum_i d_i u_i = 0."""
    is_given, degree = targets.any(1), w.sum(1)
    source = torch.where(is_given[:, None], targets - targets[is_given].mean(0), 0.0)
    u = torch.linalg.pinv(torch.diag(degree) - w, hermitian=True) @ source
    return u - degree @ u / degree.sum()


def class_mass_normalize(probability, prior):
    """Zhu et al. 2003, equation 9."""
    scaled = probability * prior / probability.sum(0)
    return scaled / scaled.sum(1, keepdim=True)


def sinkhorn(p, prior, weight=None, num_steps=1500):
    """Cuturi 2013, algorithm 1, to the end: columns, rows, columns, rows."""
    weight = torch.ones(len(p), dtype=p.dtype) if weight is None else weight
    weight = weight / weight.sum()
    z = weight[:, None] * p
    for _ in range(num_steps):
        z = z * (prior / z.sum(0))
        z = z * (weight / z.sum(1))[:, None]
    return z / weight[:, None]


def random_weights(n, density=0.3, seed=0):
    """Return a symmetric dense matrix without loops, weights in (0.1, 1.1), connected by a ring."""
    generator = seeded(seed)
    w = (torch.rand(n, n, generator=generator, dtype=torch.float64) + 0.1) * (
        torch.rand(n, n, generator=generator) < density
    )
    node = torch.arange(n)
    w[node, (node + 1) % n] = 0.5
    w = torch.triu(w + w.T, 1)
    return w + w.T


def one_hot(label, num_classes):
    out = torch.zeros(len(label), num_classes, dtype=torch.float64)
    for i, c in enumerate(label.tolist()):
        if c >= 0:
            out[i, c] = 1
    return out


def from_dense(w, ptr=None):
    """Hand a dense matrix to the package."""
    index = w.nonzero().T.contiguous()
    return Graph.from_edges(index, w[index[0], index[1]], num_nodes=len(w), ptr=ptr)
