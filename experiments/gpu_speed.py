"""How fast is the core on a GPU, beside plain PyTorch on the same GPU and beside this package on the machine's CPU?

Neighbors, graph, solve and one training step of the layer, in float32. The contestants take turns, and each is timed
until the GPU has done its work; the table shows medians, on the CPU a single turn. What is compared is checked first:
distances and scores agree.

    python experiments/gpu_speed.py
    python experiments/gpu_speed.py --record mine.json --rounds 9
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from lspread.graph import Graph, Neighbors, build_graph, find_neighbors, normalize_graph
from lspread.labels import label_matrix, spread_labels
from lspread.nn import LabelSpreading
from lspread.solve import ConjugateGradient
from lspread.typing import UNLABELED

RESULTS = Path(__file__).resolve().parent / "results"
K, ALPHA, NUM_CLASSES, TOL = 15, 0.99, 10, 2e-6
OURS_GPU, OURS_CPU = "lspread, GPU", "lspread, CPU"


def make_points(num_items: int, num_features: int) -> tuple[Tensor, Tensor]:
    """Return clouds around ten centers (n, d), and ten labels of each class (n,)."""
    generator = torch.Generator().manual_seed(0)
    label = torch.arange(num_items) % NUM_CLASSES
    centers = 2 * torch.randn(NUM_CLASSES, num_features, generator=generator) / num_features**0.25
    z = centers[label] + torch.randn(num_items, num_features, generator=generator)
    return z, torch.where(torch.arange(num_items) < 10 * NUM_CLASSES, label, UNLABELED)


def cdist_neighbors(z: Tensor) -> Tensor:
    """Return distances (n, k) the plain way: all distances in blocks that fit memory, then the smallest."""
    found = []
    for start in range(0, len(z), 4096):
        block = torch.cdist(z[start : start + 4096], z)
        block[torch.arange(len(block)), torch.arange(start, start + len(block))] = torch.inf
        found.append(block.topk(K, largest=False).values)
    return torch.cat(found)


def to_csr(graph: Graph) -> Tensor:
    """Return the normalized weights as torch's sparse matrix."""
    size = (graph.num_nodes, graph.num_nodes)
    return torch.sparse_coo_tensor(graph.edge_index, graph.edge_weight, size).coalesce().to_sparse_csr()


def iterate(matrix: Tensor, targets: Tensor) -> Tensor:
    """Return the scores by iterating F <- alpha S F + (1 - alpha) Y until the same residual, read every 50 steps."""
    f = targets
    while True:
        for _ in range(50):
            f = ALPHA * (matrix @ f) + (1 - ALPHA) * targets
        residual = (1 - ALPHA) * targets - f + ALPHA * (matrix @ f)
        if bool((residual.norm(dim=0) <= TOL * (1 - ALPHA) * targets.norm(dim=0)).all()):
            return f


def dense_step(z: Tensor, neighbors: Neighbors, targets: Tensor) -> Tensor:
    """Return the gradient of a loss of scores by 50 unrolled steps on a dense matrix, as code of the field has it."""
    z = z.detach().requires_grad_()
    distance = (z[:, None] - z[neighbors.index]).norm(dim=2)
    width = distance[:, -1]
    weight = torch.exp(-distance.square() / (width[:, None] * width[neighbors.index]))
    w = torch.zeros(len(z), len(z), device=z.device).scatter(1, neighbors.index, weight)
    w = (w + w.T) / 2
    scale = w.sum(1).rsqrt()
    s = scale[:, None] * w * scale
    f = targets
    for _ in range(50):
        f = ALPHA * (s @ f) + (1 - ALPHA) * targets
    f.square().sum().backward()
    assert z.grad is not None
    return z.grad


def layer_step(layer: LabelSpreading, z: Tensor, label: Tensor) -> Tensor:
    """Return the gradient of a loss of the layer's answer."""
    z = z.detach().requires_grad_()
    layer(z, label).square().sum().backward()
    assert z.grad is not None
    return z.grad


def seconds_of(contestant: Callable[[], object], is_on_gpu: bool) -> float:
    """Return how long a contestant takes until all its work is done."""
    torch.cuda.synchronize()
    start = time.perf_counter()
    contestant()
    if is_on_gpu:
        torch.cuda.synchronize()
    return time.perf_counter() - start


def measure(task: str, contestants: dict[str, Callable[[], object]], rounds: int) -> list[dict[str, object]]:
    """Let the contestants take turns; print and return their medians. One on the CPU is measured once."""
    found: dict[str, list[float]] = {name: [] for name in contestants}
    for number in range(rounds + 1):
        for name, contestant in contestants.items():
            is_on_cpu = name == OURS_CPU
            if is_on_cpu and number > 1:
                continue
            seconds = seconds_of(contestant, not is_on_cpu)
            if number:  # the first warms up
                found[name].append(seconds)
    ours = statistics.median(found[OURS_GPU])
    rows: list[dict[str, object]] = []
    print(f"\n{task}")
    for name, values in found.items():
        median = statistics.median(values)
        rows.append({"task": task, "contestant": name, "seconds": median, "times_ours": median / ours})
        print(f"  {name:48} {1000 * median:10.1f} ms   {median / ours:8.1f} x", flush=True)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5, help="measured rounds; one more warms up")
    parser.add_argument("--record", type=Path, default=RESULTS / "gpu_speed.json", help="where the table is kept")
    options = parser.parse_args()
    if not torch.cuda.is_available():
        raise SystemExit("This compares a GPU with its machine's CPU, and torch sees no GPU here.")
    machine = f"{torch.cuda.get_device_name()}, {torch.get_num_threads()} CPU threads, torch {torch.__version__}"
    print(machine)
    rows = []
    for num_items, num_features in ((70_000, 128), (70_000, 784), (200_000, 64)):
        z, _ = make_points(num_items, num_features)
        on_gpu = z.cuda()
        contestants: dict[str, Callable[[], object]] = {
            OURS_GPU: lambda z=on_gpu: find_neighbors(z, K, backend="exact"),
            "torch.cdist and topk in blocks, GPU": lambda z=on_gpu: cdist_neighbors(z),
        }
        if num_features == 128:
            contestants[OURS_CPU] = lambda z=z: find_neighbors(z, K, backend="exact")
        if num_items < 100_000:
            distance = find_neighbors(on_gpu, K, backend="exact").distance
            torch.testing.assert_close(distance, cdist_neighbors(on_gpu), rtol=2e-3, atol=2e-3)
        rows += measure(f"exact {K} nearest neighbors, {num_items:,} x {num_features}", contestants, options.rounds)

    z, label = make_points(70_000, 128)
    graphs = {}
    for device in ("cuda", "cpu"):
        there = z.to(device)
        graphs[device] = normalize_graph(build_graph(there, find_neighbors(there, K)))
    targets = {device: label_matrix(label.to(device), NUM_CLASSES, balance=True) for device in graphs}
    on_gpu = z.cuda()
    neighbors = {"cuda": find_neighbors(on_gpu, K), "cpu": find_neighbors(z, K)}
    rows += measure(
        f"graph of 70,000 items from their {K} neighbors",
        {
            OURS_GPU: lambda z=on_gpu: normalize_graph(build_graph(z, neighbors["cuda"])),
            OURS_CPU: lambda z=z: normalize_graph(build_graph(z, neighbors["cpu"])),
        },
        options.rounds,
    )
    solver = ConjugateGradient(rtol=TOL)
    matrix = to_csr(graphs["cuda"])
    expected = iterate(matrix, targets["cuda"])
    scores = spread_labels(graphs["cuda"], targets["cuda"], alpha=ALPHA, solver=solver).value
    torch.testing.assert_close(scores, expected, rtol=1e-2, atol=1e-3 * float(expected.max()))
    rows += measure(
        f"spreading over 70,000 items, {NUM_CLASSES} classes, relative residual {TOL:g}",
        {
            OURS_GPU: lambda: spread_labels(graphs["cuda"], targets["cuda"], alpha=ALPHA, solver=solver),
            "iteration with torch's sparse CSR, GPU": lambda: iterate(matrix, targets["cuda"]),
            OURS_CPU: lambda: spread_labels(graphs["cpu"], targets["cpu"], alpha=ALPHA, solver=solver),
        },
        options.rounds,
    )
    for num_items in (512, 4096, 16_384):
        z, label = make_points(num_items, 128)
        on_gpu, given = z.cuda(), label.cuda()
        layer = LabelSpreading(NUM_CLASSES, k=K, alpha=ALPHA)
        on_gpu_layer = LabelSpreading(NUM_CLASSES, k=K, alpha=ALPHA).cuda()
        dense_targets = label_matrix(given, NUM_CLASSES, balance=True)
        contestants = {
            OURS_GPU: lambda layer=on_gpu_layer, z=on_gpu, given=given: layer_step(layer, z, given),
            "dense matrix, 50 steps unrolled, GPU": lambda z=on_gpu, targets=dense_targets: dense_step(
                z, find_neighbors(z, K), targets
            ),
            OURS_CPU: lambda layer=layer, z=z, label=label: layer_step(layer, z, label),
        }
        task = f"layer forward and backward to the embeddings, {num_items:,} x 128"
        rows += measure(task, contestants, options.rounds)
    options.record.parent.mkdir(parents=True, exist_ok=True)
    options.record.write_text(json.dumps({"machine": machine, "rows": rows}, indent=1) + "\n")
    print(f"\nwrote {options.record}")


if __name__ == "__main__":
    main()
