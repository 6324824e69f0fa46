"""How many digits are right when one of each class is labelled?

scikit-learn's 1,797 digits, one label per class, 20 random draws; accuracy on the 1,787 unlabelled ones. All methods
get the same draws and the same pixels. scikit-learn's label spreading and propagation are given the best of a grid of
settings, chosen with the true labels; ours is compared at the library's default k and shown for every k.

    python experiments/digits_one_label.py            # graphs on pixels, about a minute
    python experiments/digits_one_label.py --train    # also `lspread demo` (trained backbone), once per draw
"""

import argparse
import json
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier
from sklearn.semi_supervised import LabelPropagation as SklearnPropagation
from sklearn.semi_supervised import LabelSpreading as SklearnSpreading
from torch import Tensor

from lspread import build_graph, find_neighbors, label_matrix, normalize_graph, pseudo_labels, spread_labels
from lspread.data import Digits
from lspread.labels import ClassPrior

NUM_DRAWS = 20
K = 15  # the default of LabelSpreading
GRID = [(k, alpha) for k in (5, 7, 10, 15, 20) for alpha in (0.2, 0.5, 0.8, 0.9, 0.99)]


def accuracies(predict: Callable[[Tensor], Tensor], draws: list[Digits]) -> list[float]:
    """Return the accuracy of each draw; `predict` takes given labels (n,) and returns classes (n,)."""
    found = []
    for data in draws:
        accuracy = data.evaluator.accuracy(predict(data.given_label), data.split.unlabeled)
        assert accuracy is not None
        found.append(accuracy)
    return found


def supervised(model: KNeighborsClassifier | LogisticRegression, x: np.ndarray) -> Callable[[Tensor], Tensor]:
    def predict(label: Tensor) -> Tensor:
        rows = (label >= 0).numpy()
        return torch.from_numpy(model.fit(x[rows], label[rows].numpy()).predict(x))

    return predict


def semi_supervised(model: SklearnSpreading | SklearnPropagation, x: np.ndarray) -> Callable[[Tensor], Tensor]:
    return lambda label: torch.from_numpy(model.fit(x, label.numpy()).transduction_).long()


def train(seed: int) -> dict[str, float]:
    """Run `lspread demo` on one draw and return what its results.json says."""
    from lspread.cli.main import main

    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / "run"
        if main(["demo", "--seed", str(seed), "--run_dir", str(run)]) != 0:
            raise RuntimeError(f"lspread demo failed for seed {seed}")
        scores = json.loads((run / "results.json").read_text())["scores"]
    return {row["key"]: row["accuracy"] for row in scores if row["on"] == "unlabeled"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--train", action="store_true", help="also train a backbone on each draw")
    options = parser.parse_args()
    warnings.simplefilter("ignore", ConvergenceWarning)

    draws = [Digits(num_labels_per_class=1, seed=seed) for seed in range(NUM_DRAWS)]
    for data in draws:
        data.setup()
    pixels = draws[0].images.fetch(torch.arange(len(draws[0].items))).flatten(1).float() / 255
    x = pixels.numpy()

    def spread(k: int, prior: ClassPrior = "none") -> Callable[[Tensor], Tensor]:
        graph = normalize_graph(build_graph(pixels, find_neighbors(pixels, k)))

        return lambda label: (
            pseudo_labels(spread_labels(graph, label_matrix(label, 10)).value, label, prior=prior).label
        )

    table = {
        "logistic regression": accuracies(supervised(LogisticRegression(max_iter=1000), x), draws),
        "nearest labelled neighbor": accuracies(supervised(KNeighborsClassifier(1), x), draws),
    }
    for name, make in (
        (
            "scikit-learn LabelSpreading(knn)",
            lambda k, a: SklearnSpreading("knn", n_neighbors=k, alpha=a, max_iter=200),
        ),
        ("scikit-learn LabelPropagation(knn)", lambda k, a: SklearnPropagation("knn", n_neighbors=k, max_iter=1000)),
    ):
        grid = GRID if "Spreading" in name else sorted({(k, 0.0) for k, _ in GRID})
        tried = {(k, a): accuracies(semi_supervised(make(k, a), x), draws) for k, a in grid}
        (k, a), best = max(tried.items(), key=lambda entry: np.mean(entry[1]))
        table[f"{name}, best of {len(grid)}: k={k}" + (f", alpha={a}" if a else "")] = best
        if "Spreading" in name:
            peer = best
    ours = accuracies(spread(K), draws)
    table[f"lspread on pixels, defaults: k={K}, alpha=0.99"] = ours
    table["  with a uniform class prior"] = accuracies(spread(K, "uniform"), draws)
    table |= {f"  with k={k}": accuracies(spread(k), draws) for k in (5, 7, 10, 20)}
    if options.train:
        runs = [train(seed) for seed in range(NUM_DRAWS)]
        table["lspread demo: spreading on the trained embeddings"] = [run["graph"] for run in runs]
        table["lspread demo: the trained classifier"] = [run["classifier"] for run in runs]

    width = max(map(len, table))
    print(f"\naccuracy on the unlabelled digits, %, {NUM_DRAWS} draws of one label per class")
    print(f"{'':{width}}   mean   std    min")
    for name, values in table.items():
        percent = 100 * np.array(values)
        print(f"{name:{width}}  {percent.mean():5.1f}  {percent.std(ddof=1):4.1f}  {percent.min():5.1f}")
    print(f"\nlspread on pixels is ahead of scikit-learn's best by {100 * (np.mean(ours) - np.mean(peer)):.1f} points.")


if __name__ == "__main__":
    main()
