"""Does the graph help, at the same budget? Fashion-MNIST with ten labels per class, against supervised alone.

Runs `lspread fit` with configs/fashion_mnist.yaml and configs/supervised.yaml: same backbone, augmentation, number of
steps and number of images through the network, the same label draws. Prints the accuracy of the last (averaged) weights
on the 10,000 test images and the time of each run. A finished run is not run again, so the script can be stopped
and taken up; an unfinished one goes on from its last checkpoint.

    python experiments/fashion_mnist.py --seeds 0 1 2 --out runs/fashion_mnist_vs_supervised
    python experiments/fashion_mnist.py --seeds 100 --set model.lr=0.001      # try a setting on another draw
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
CONFIGS = {"lspread": "fashion_mnist", "supervised": "supervised"}
RECORD = Path(__file__).resolve().parent / "results" / "fashion_mnist.json"


def run(method: str, seed: int, folder: Path, settings: list[str]) -> dict[str, float]:
    """Train once, or take what an earlier call has written, and return its scores."""
    results = folder / "results.json"
    if not results.exists():
        is_begun = (folder / "checkpoints" / "last.ckpt").exists()
        config = [str(folder)] if is_begun else ["--config", str(ROOT / "configs" / f"{CONFIGS[method]}.yaml")]
        options = [f"--data.seed={seed}", f"--seed_everything={seed}", f"--run_dir={folder}"]
        options += [f"--{setting}" for setting in settings]
        print(f"\n=== {method}, seed {seed} ===", flush=True)
        subprocess.run([sys.executable, "-m", "lspread", "fit", *config, *options], check=True)
    found = json.loads(results.read_text())
    scores = {f"{row['on']} {row['key']}": row["accuracy"] for row in found["scores"]}
    return scores | {"minutes": found["seconds"]["fit"] / 60}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="label draws")
    parser.add_argument("--out", type=Path, default=Path("runs/fashion_mnist_vs_supervised"), help="folder of the runs")
    parser.add_argument("--methods", nargs="+", choices=list(CONFIGS), default=list(CONFIGS))
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE", help="settings for all runs")
    parser.add_argument("--record", action="store_true", help=f"write {RECORD.relative_to(ROOT)}")
    options = parser.parse_args()
    table = {
        method: [run(method, seed, options.out / f"{method}-{seed}", options.set) for seed in options.seeds]
        for method in options.methods
    }
    columns = ("test classifier", "unlabeled classifier", "unlabeled graph", "test knn", "test logistic_regression")
    print(f"\naccuracy, %, mean over label draws {options.seeds} (standard deviation)")
    print(f"{'':12}" + "".join(f"{column:>26}" for column in (*columns, "minutes")))
    for method, rows in table.items():
        cells = []
        for column in (*columns, "minutes"):
            values = np.array([row[column] for row in rows if column in row]) * (1 if column == "minutes" else 100)
            spread = f" ({values.std(ddof=1):.1f})" if len(values) > 1 else ""
            cells.append(f"{values.mean():.1f}{spread}" if len(values) else "")
        print(f"{method:12}" + "".join(f"{cell:>26}" for cell in cells))
    if len(table) == len(CONFIGS):
        gain = [
            100 * (ours["test classifier"] - other["test classifier"])
            for ours, other in zip(table["lspread"], table["supervised"], strict=True)
        ]
        print(f"\ntest accuracy ahead of supervised by {np.mean(gain):.1f} points; draw by draw: {np.round(gain, 1)}")
    if options.record:
        RECORD.parent.mkdir(exist_ok=True)
        RECORD.write_text(json.dumps({"seeds": options.seeds, "runs": table}, indent=1) + "\n")


if __name__ == "__main__":
    main()
