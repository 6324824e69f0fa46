"""A run folder as a finished run leaves it: real digits, real predictions of scikit-learn, real pictures."""

import csv
import json
import math
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import precision_recall_fscore_support, roc_auc_score
from sklearn.neighbors import KNeighborsClassifier

NAMES = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]


def wilson(accuracy: float, n: int) -> list[float]:
    z = 1.959964
    middle = (accuracy + z * z / (2 * n)) / (1 + z * z / n)
    half = z * math.sqrt(accuracy * (1 - accuracy) / n + z * z / (4 * n * n)) / (1 + z * z / n)
    return [middle - half, middle + half]


def spread(z: np.ndarray, label: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Dense label spreading in a few lines, for numbers like those of a real run."""
    square = np.maximum((z**2).sum(1)[:, None] + (z**2).sum(1) - 2 * z @ z.T, 0)
    np.fill_diagonal(square, np.inf)
    near = np.argpartition(square, 15, axis=1)[:, :15]
    scale = np.sqrt(np.take_along_axis(square, near, 1).max(1))
    w = np.zeros_like(square)
    np.put_along_axis(w, near, np.exp(-np.take_along_axis(square, near, 1) / (scale[:, None] * scale[near])), 1)
    w = (w + w.T) / 2
    root = np.sqrt(w.sum(1))
    scores = np.eye(10)[label] * (label >= 0)[:, None]
    first = scores.copy()
    for _ in range(150):
        scores = 0.97 * (w @ (scores / root[:, None])) / root[:, None] + 0.03 * first
    probability = scores / scores.sum(1, keepdims=True)
    certainty = 1 + (probability * np.log(np.maximum(probability, 1e-12))).sum(1) / np.log(10)
    return np.clip(certainty, 0, 1), probability.argmax(1)


def per_class(truth: np.ndarray, predicted: np.ndarray, confidence: np.ndarray) -> dict:
    """The measures of every class by scikit-learn; what an item was taken for gets its confidence, others the rest."""
    precision, recall, f1, count = precision_recall_fscore_support(truth, predicted, labels=range(10))
    specificity = [float((predicted != c)[truth != c].mean()) for c in range(10)]
    rest = (1 - confidence) / 9
    auroc = [roc_auc_score(truth == c, np.where(predicted == c, confidence, rest)) for c in range(10)]
    measures = {"precision": precision, "recall": recall, "specificity": specificity, "f1": f1, "auroc": auroc}
    return {
        "on": "unlabeled",
        "count": count.tolist(),
        **{name: [float(v) for v in values] for name, values in measures.items()},
    }


def reliability(confidence: np.ndarray, right: np.ndarray) -> dict:
    part = np.minimum((confidence * 10).astype(int), 9)
    kept = [b for b in range(10) if (part == b).any()]
    sure = [float(confidence[part == b].mean()) for b in kept]
    share = [float(right[part == b].mean()) for b in kept]
    count = [int((part == b).sum()) for b in kept]
    error = sum(n * abs(s - r) for n, s, r in zip(count, sure, share, strict=True)) / len(confidence)
    return {"on": "unlabeled", "count": count, "confidence": sure, "accuracy": share, "error": error}


def build_run(folder: Path) -> Path:
    digits = load_digits()
    z, truth = digits.data / 16.0, digits.target
    n = len(truth)
    rng = np.random.default_rng(5)
    given = np.array([rng.choice(np.flatnonzero(truth == c)) for c in range(10)])
    label = np.full(n, -1)
    label[given] = truth[given]
    free = label < 0
    confidence, graph_predicted = spread(z, label)
    predicted = np.where(rng.random(n) < 0.03, truth, graph_predicted)
    knn = KNeighborsClassifier(1).fit(z[given], truth[given]).predict(z)
    linear = LogisticRegression(max_iter=500).fit(z[given], truth[given]).predict(z)
    methods = {
        "classifier": ("ResNet trained on spread labels", predicted),
        "graph": ("label spreading on the graph", graph_predicted),
        "knn": ("k-nearest-neighbor vote", knn),
        "logistic_regression": ("logistic regression on embeddings", linear),
    }
    scores = []
    for key, (method, guess) in methods.items():
        accuracy = float((guess == truth)[free].mean())
        entry = {"key": key, "method": method, "on": "unlabeled", "accuracy": accuracy, "num_items": int(free.sum())}
        scores.append(entry | {"ci95": wilson(accuracy, int(free.sum()))})
    confusion = np.zeros((10, 10), dtype=int)
    np.add.at(confusion, (truth[free], predicted[free]), 1)

    (folder / "thumbnails").mkdir(parents=True)

    def picture(i: int, note: str | None = None) -> dict:
        name = f"thumbnails/{i:05d}.png"
        Image.fromarray((digits.images[i] * 15.9).astype(np.uint8)).save(folder / name)
        return {
            "item": f"digit-{i:05d}.png",
            "index": int(i),
            "label": NAMES[predicted[i]] if free[i] else NAMES[label[i]],
            "confidence": float(confidence[i]),
            "true_label": NAMES[truth[i]],
            "thumbnail": name,
            "note": note,
        }

    order = np.flatnonzero(free)[np.argsort(-confidence[free], kind="stable")]
    centered = z - z.mean(axis=0)
    _, s, vt = np.linalg.svd(centered, full_matrices=False)
    xy = centered @ vt[:2].T
    shown = np.sort(np.concatenate([given, rng.choice(np.flatnonzero(free), 1200, replace=False)]))
    results = {
        "title": "Digits from ten labels",
        "created": "2025-03-01T14:05:22",
        "command": "lspread fit --config configs/digits.yaml",
        "warm_up": "/cache/warm_ups/0123.ckpt",
        "seed": 5,
        "data": {
            "name": "digits",
            "num_items": n,
            "num_classes": 10,
            "class_names": NAMES,
            "num_labeled": 10,
            "num_unlabeled": int(free.sum()),
            "num_val": 0,
            "num_test": 0,
            "image_shape": [1, 8, 8],
        },
        "graph": {
            "k": 15,
            "metric": "euclidean",
            "kernel": "SelfTuning(scale=1.0)",
            "alpha": 0.99,
            "num_edges": 36482,
            "num_unreached": 0,
            "solver": "ConjugateGradient",
            "num_steps": 47,
            "status": "converged",
            "head_rows": 1797,
            "error_bound": 3.1e-5,
        },
        "seconds": {"fit": 74.3, "embed": 0.84, "neighbors": 0.21, "graph": 0.035, "spread": 0.12, "baselines": 1.4},
        "scores": scores,
        "cross_validation": [],
        "class_counts": {
            "given": np.bincount(truth[given], minlength=10).tolist(),
            "predicted": np.bincount(predicted[free], minlength=10).tolist(),
            "true": np.bincount(truth[free], minlength=10).tolist(),
        },
        "confusion": {"on": "unlabeled", "matrix": confusion.tolist()},
        "per_class": per_class(truth[free], predicted[free], confidence[free]),
        "reliability": reliability(confidence[free], (predicted == truth)[free]),
        "most_certain": [picture(i) for i in order[:24]],
        "least_certain": [picture(i) for i in order[-24:]],
        "given": [picture(i) for i in given],
        "novel": [picture(i, "hears 9 times less of labels than is usual") for i in order[-5:]],
        "suspicious": [picture(given[3], "looks like eight, 71 %")],
        "to_label": [picture(i, "speaks for about 40 items that no label speaks for yet") for i in order[-12:-6]],
        "map": {
            "x": xy[shown, 0].tolist(),
            "y": xy[shown, 1].tolist(),
            "label": predicted[shown].tolist(),
            "confidence": confidence[shown].tolist(),
            "given": (~free[shown]).tolist(),
            "explained": float((s[:2] ** 2).sum() / (s**2).sum()),
        },
        "versions": {"lspread": "0.1.0", "torch": "2.14.1", "python": "3.12.3"},
    }
    write_results(folder, results)
    with (folder / "metrics.csv").open("w", newline="") as file:
        names = [
            "epoch",
            "step",
            "train_loss",
            "pseudo_loss",
            "pseudo_accuracy",
            "reached_fraction",
            "lr-AdamW",
            "solver_steps",
        ]
        writer = csv.DictWriter(file, names, restval="")
        writer.writeheader()
        for epoch in range(20):
            step = 28 * (epoch + 1) - 1
            writer.writerow({"step": step, "epoch": epoch, "lr-AdamW": 1e-3 * (1 - epoch / 20)})
            loss = 2.2 * math.exp(-epoch / 5) + 0.1 * rng.random()
            writer.writerow({"step": step, "epoch": epoch, "train_loss": loss, "pseudo_loss": loss / 3})
            fraction = 0.9 - 0.25 * math.exp(-epoch / 4)
            writer.writerow(
                {"step": step, "epoch": epoch, "pseudo_accuracy": fraction, "reached_fraction": 1.0, "solver_steps": 47}
            )
    (folder / "config.yaml").write_text(
        "seed: 5\ndata:\n  class_path: lspread.data.Digits\n  init_args:\n    num_labels_per_class: 1\n"
    )
    return folder


def write_results(folder: Path, results: dict) -> None:
    (folder / "results.json").write_text(json.dumps(results))


@pytest.fixture(scope="session")
def digits_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder as built once; copy it (`run_dir`) to change it."""
    return build_run(tmp_path_factory.mktemp("runs") / "digits")


@pytest.fixture
def run_dir(digits_run: Path, tmp_path: Path) -> Path:
    import shutil

    return Path(shutil.copytree(digits_run, tmp_path / "run"))
