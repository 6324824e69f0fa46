"""Is the graph core right? The literature's Fashion-MNIST table in its own setting, beside what made it.

All 70,000 images; features of a variational autoencoder (GraphLearning's own `weightmatrix.vae`, trained here without
labels); 10 nearest neighbors, weights exp(-4 d^2 / d_10(i)^2), mean of both directions; balanced random labels,
accuracy on all others. Laplace learning, label spreading and Poisson learning by lspread, by GraphLearning on the very
same graph and draws, and as published (100 draws, on features of another training of the same autoencoder). Lines
agree where they differ by at most two standard errors of the difference. The published line of label spreading is not
what GraphLearning computes today, at this alpha or another: 56.0 and 74.9 % here, by either library.

    pip install "lspread[benchmark]"
    python experiments/literature_table.py        # about 15 minutes on two cores; the features are kept in runs/
"""

import argparse
import contextlib
import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from rich.progress import track
from torch import Tensor

from lspread import build_graph, find_neighbors, label_matrix, normalize_graph, propagate_labels, spread_labels
from lspread.data import FashionMNIST, FewLabelSplit
from lspread.graph import Neighbors
from lspread.labels import poisson_labels
from lspread.typing import UNLABELED

RESULTS = Path(__file__).resolve().parent / "results"
K, ALPHA = 10, 0.95
# GraphLearning's result files: mean accuracy in % at 1 and 10 labels per class, 100 draws.
PUBLISHED = {"Laplace": {1: 18.4, 10: 70.6}, "label spreading": {1: 49.0, 10: 68.2}, "Poisson": {1: 60.8, 10: 75.2}}
NUM_PUBLISHED = 100


@dataclass(frozen=True)
class OwnWidth:
    """exp(-4 d_ij^2 / d_k(i)^2): GraphLearning's "gaussian", whose width is that of one end."""

    def __call__(self, squared_distance: Tensor, neighbors: Neighbors) -> Tensor:
        """Return weights `(n, k)`."""
        return torch.exp(-4 * squared_distance / squared_distance.amax(1, keepdim=True))


def features(pixels: np.ndarray, path: Path, epochs: int) -> np.ndarray:
    """Return `(n, 20)` float32: trained once, then read from the file."""
    if not path.exists():
        from graphlearning.weightmatrix import vae

        print(f"training the autoencoder, {epochs} epochs of {len(pixels):,} images; kept in {path}", flush=True)
        torch.manual_seed(0)
        # It prints a line at every tenth step.
        with Path(os.devnull).open("w") as nowhere, contextlib.redirect_stdout(nowhere):
            found = vae(pixels, no_cuda=True, epochs=epochs)
        path.parent.mkdir(parents=True, exist_ok=True)
        np.save(path, found.astype(np.float32))
    return np.load(path)


def make_methods(z: Tensor) -> dict[str, dict[str, Callable[[Tensor], Tensor]]]:
    """Return for each method who does it: from given labels `(n,)` to classes `(n,)`."""
    import graphlearning as gl

    graph = build_graph(z, find_neighbors(z, K), kernel=OwnWidth())
    walk = normalize_graph(graph)
    w = graph.to_scipy().astype(np.float64)

    def peer(model: object) -> Callable[[Tensor], Tensor]:
        def predict(label: Tensor) -> Tensor:
            rows = (label != UNLABELED).nonzero().flatten()
            return torch.from_numpy(np.asarray(model.fit_predict(rows.numpy(), label[rows].numpy()))).long()

        return predict

    def ours(solve: Callable[[Tensor, Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
        return lambda label: solve(label_matrix(label, 10), label != UNLABELED).argmax(1)

    return {
        "Laplace": {
            "lspread": ours(lambda y, given: propagate_labels(graph, y, given).value),
            "GraphLearning": peer(gl.ssl.laplace(w)),
        },
        "label spreading": {
            "lspread": ours(lambda y, given: spread_labels(walk, y, alpha=ALPHA).value),
            "GraphLearning": peer(gl.ssl.randomwalk(w, alpha=ALPHA)),
        },
        "Poisson": {
            "lspread": ours(lambda y, given: poisson_labels(graph, y).value),
            "GraphLearning": peer(gl.ssl.poisson(w)),
        },
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--draws", type=int, default=20)
    parser.add_argument("--epochs", type=int, default=100, help="of the autoencoder")
    parser.add_argument(
        "--out", type=Path, default=Path("runs/literature_table"), help="folder that keeps the features"
    )
    parser.add_argument("--record", type=Path, default=RESULTS / "literature_table.json")
    options = parser.parse_args()

    data = FashionMNIST(transductive=True, num_labels_per_class=1)
    data.setup()
    everything = torch.arange(len(data.images))
    true = data.evaluator.label(everything)
    pixels = data.images.fetch(everything).flatten(1).double().numpy()
    z = torch.from_numpy(features(pixels, options.out / f"vae-{options.epochs}.npy", options.epochs))
    methods = make_methods(z)

    table: dict[str, dict[str, dict[str, list[float]]]] = {}
    for count, seed in track([(count, seed) for count in (1, 10) for seed in range(options.draws)], "draws"):
        split = FewLabelSplit.per_class(true, count, num_classes=10, seed=seed)
        given = torch.full_like(true, UNLABELED).index_copy_(0, split.labeled, true[split.labeled])
        for method, who in methods.items():
            for name, predict in who.items():
                right = data.evaluator.accuracy(predict(given), split.unlabeled)
                assert right is not None
                table.setdefault(method, {}).setdefault(name, {}).setdefault(str(count), []).append(100 * right)
    record = {"k": K, "alpha": ALPHA, "epochs": options.epochs, "draws": options.draws, "accuracy": table}
    options.record.write_text(json.dumps(record, indent=1) + "\n")

    print(f"\naccuracy on unlabeled images, %, mean of {options.draws} draws +- its standard error")
    print(f"{'':17}{'labels':>7}{'lspread':>16}{'GraphLearning':>16}{'published':>11}{'difference':>22}")
    for method, who in table.items():
        for count in (1, 10):
            mine, theirs = (np.array(who[name][str(count)]) for name in ("lspread", "GraphLearning"))
            spread = mine.std(ddof=1)
            error = spread * np.sqrt(1 / len(mine) + 1 / NUM_PUBLISHED)
            off = mine.mean() - PUBLISHED[method][count]
            cells = (f"{x.mean():.1f} +- {x.std(ddof=1) / np.sqrt(len(x)):.1f}" for x in (mine, theirs))
            verdict = "agrees" if abs(off) <= 2 * error else "differs"
            print(
                f"{method:17}{count:>7}"
                + "".join(f"{cell:>16}" for cell in cells)
                + f"{PUBLISHED[method][count]:>11.1f}{f'{off:+.1f} = {off / error:+.1f} SE':>15} {verdict}"
            )
    apart = max(
        abs(mine - theirs)
        for who in table.values()
        for count in who["lspread"]
        for mine, theirs in zip(who["lspread"][count], who["GraphLearning"][count], strict=True)
    )
    print(f"\nlspread and GraphLearning differ by at most {apart:.2f} points in a single draw\nwrote {options.record}")


if __name__ == "__main__":
    main()
