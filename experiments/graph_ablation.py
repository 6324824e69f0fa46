"""What does each choice about the graph give before any training after the warm-up? One, five and ten labels per class.

Embeddings of Fashion-MNIST's 60,000 training images by the warm-up of label_efficiency.py; their graph and what is
spread over it as in configs/fashion_mnist.yaml, but for one option in each row. Since nothing is trained, many draws of
labels can be taken: accuracy on all unlabeled images, and the difference to the first row, paired over draws, with its
95 % interval. Beside them a vote of the nearest neighbors among the labels, and logistic regression.

    python experiments/graph_ablation.py                            # with a warm-up at hand: an hour of one core
    python experiments/graph_ablation.py --out runs/label_efficiency --variants recipe no_reinforce --draws 10
    python experiments/graph_ablation.py --show
"""

import argparse
import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from label_efficiency import DATA, RESULTS, describe, parse, read, warm_up, write
from torch import Tensor

from lspread.data import FashionMNIST
from lspread.graph import Graph
from lspread.lit import RefreshPseudoLabels, load_classifier
from lspread.lit.baselines import knn_vote, logistic_regression
from lspread.nn import embed
from lspread.typing import UNLABELED

COUNTS = (1, 5, 10)
REFRESH = parse(DATA)["trainer"]["callbacks"][0]["init_args"]
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "recipe": ("the recipe", {}),
    "no_reinforce": ("without sure answers becoming labels", {"reinforce": 0}),
    "no_prior": ("without expecting equal classes", {"prior": "none"}),
    "plain": ("without both: label spreading", {"reinforce": 0, "prior": "none"}),
    "no_whitening": ("without whitening", {"whiten": False}),
    "128_axes": ("with 128 axes of the embeddings", {"num_components": 128}),
    "k15": ("with 15 neighbors", {"k": 15}),
    "k30": ("with 30 neighbors", {"k": 30}),
    "uniform": ("with edges of one weight", {"kernel": "uniform"}),
    "alpha_90": ("with alpha 0.9", {"alpha": 0.9}),
}
OTHERS = {
    "knn": "vote of the nearest labels",
    "logistic_regression": "logistic regression",
}
ON_GRAPH = ("k", "whiten", "num_components", "ridge", "kernel", "metric", "symmetrize")


def make(changed: dict[str, Any]) -> RefreshPseudoLabels:
    """Return the recipe's epoch path with some options changed."""
    return RefreshPseudoLabels(**{**REFRESH, **changed})


def draw_labels(num_labels: int, seed: int) -> tuple[Tensor, Callable[[Tensor], float]]:
    """Return the given labels of one draw `(n,)`, and what says how many unlabeled images an answer has right."""
    data = FashionMNIST(num_labels_per_class=num_labels, seed=seed)
    data.setup()
    pool = data.split.pool

    def accuracy(answer: Tensor) -> float:
        placed = torch.full((len(data.items),), UNLABELED)
        placed[pool] = answer
        found = data.evaluator.accuracy(placed, data.split.unlabeled)
        assert found is not None
        return 100 * found

    return data.given_label[pool], accuracy


def answer(name: str, z: Tensor, graph: Graph, label: Tensor) -> Tensor:
    """Return the class `(n,)` that a row of the table gives each image."""
    if name in OTHERS:
        given = label != UNLABELED
        baseline = knn_vote if name == "knn" else logistic_regression
        return baseline(z[given], label[given], z, num_classes=10).label
    _, found = make(VARIANTS[name][1]).solve(graph, label, 10)
    return torch.where(found.is_reached, found.label, UNLABELED)


def show(runs: dict[str, float]) -> None:
    """Print the table of what is there."""
    for line in markdown(runs).replace("±", "+-").splitlines():
        print(line)


def markdown(runs: dict[str, float]) -> str:
    """Return the table of experiments/README.md."""
    titles = {name: title for name, (title, _) in VARIANTS.items()} | OTHERS
    head = ["", *(f"{count} per class{more}" for count in COUNTS for more in ("", ": to the recipe"))]
    lines = ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    for name, title in titles.items():
        cells = []
        for count in COUNTS:
            keys = [key.split("/")[2] for key in runs if key.startswith(f"{name}/{count}/")]
            values = np.array([runs[f"{name}/{count}/{seed}"] for seed in keys])
            base = [runs[f"recipe/{count}/{seed}"] for seed in keys if f"recipe/{count}/{seed}" in runs]
            cells.append(f"{values.mean():.1f}" if len(values) else "")
            is_paired = name != "recipe" and len(values) and len(base) == len(values)
            cells.append(describe(values - np.array(base), "+.1f") if is_paired else "")
        if any(cells):
            lines.append(f"| {title} | " + " | ".join(cells) + " |")
    return "\n".join(lines).replace("+-", "±")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = [*VARIANTS, *OTHERS]
    parser.add_argument("--variants", nargs="+", choices=names, default=names)
    parser.add_argument("--draws", type=int, default=10)
    parser.add_argument("--out", type=Path, default=Path("runs/label_efficiency"), help="folder with the warm-up")
    parser.add_argument("--record", type=Path, default=RESULTS / "graph_ablation.json", help="where scores are kept")
    parser.add_argument("--show", action="store_true", help="run nothing")
    parser.add_argument(
        "--markdown", action="store_true", help="print the table of this folder's README.md and nothing else"
    )
    options = parser.parse_args()
    content = read(options.record) or {"refresh": REFRESH, "runs": {}}
    if content["refresh"] != REFRESH:
        raise SystemExit(f"{options.record} was made with other settings of the recipe; name another --record.")
    if options.markdown:
        return print(markdown(content["runs"]))
    if not options.show:
        start, _ = warm_up(options.out, [])
        weights = hashlib.blake2b((start.parent / "model.safetensors").read_bytes(), digest_size=8).hexdigest()
        if content.setdefault("warm-up", weights) != weights:
            raise SystemExit(f"{options.record} is about another warm-up than {start.parent}; name another --record.")
        saved, data = load_classifier(start.parent), FashionMNIST()
        data.setup()
        z = embed(saved.backbone, data.pool_dataloader(), preprocess=lambda image: (image - saved.mean) / saved.std)
        graphs: dict[str, Graph] = {}
        for name in options.variants:
            keys = [(count, seed) for count in COUNTS for seed in range(options.draws)]
            keys = [key for key in keys if f"{name}/{key[0]}/{key[1]}" not in content["runs"]]
            changed = VARIANTS[name][1] if name in VARIANTS else {}
            kind = str({option: changed[option] for option in ON_GRAPH if option in changed})
            if keys and kind not in graphs:
                graphs[kind] = make(changed).build_graph(z)
            for count, seed in keys:
                label, accuracy = draw_labels(count, seed)
                key = f"{name}/{count}/{seed}"
                content["runs"][key] = round(accuracy(answer(name, z, graphs[kind], label)), 3)
                write(options.record, content)
                print(f"{name}, {count} per class, draw {seed}: {content['runs'][key]:.1f}", flush=True)
    show(content["runs"])


if __name__ == "__main__":
    main()
