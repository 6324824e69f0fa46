"""What do the settings files for Fashion-MNIST give as they stand, from raw pixels to the report? Ten labels per class.

Each is run by `lspread fit` for some draws of labels, on all cores. The draws of one file share its warm-up, which is
kept in a folder of this script and trained by the first; its minutes count in all of them. Scores of finished runs are
kept in a small JSON and not run again; an unfinished one goes on where it was. With `--shared FOLDER` the long file
starts from the warm-up that label_efficiency.py keeps in its folder: the same settings, trained maybe elsewhere.

    python experiments/settings_files.py                                     # some hours on two cores
    python experiments/settings_files.py --configs fashion_mnist_10min       # 25 minutes with bfloat16 tiles
    python experiments/settings_files.py --show
"""

import argparse
import itertools
from pathlib import Path
from typing import Any

import numpy as np
from label_efficiency import DATA, RESULTS, ROOT, describe, fit, parse, read, warm_up, write

from lspread.lit.precision import choose_precision

CONFIGS = ["fashion_mnist", "fashion_mnist_10min"]


def show(runs: dict[str, Any]) -> None:
    """Print the table of what is there."""
    print(f"\n{'':22}{'draws':>6}{'minutes':>10}{'test, %':>16}{'transductive, graph, %':>26}")
    for name in CONFIGS:
        found = [row for key, row in runs.items() if key.split("/")[0] == name]
        if found:
            minutes = np.mean([row["minutes"] for row in found])
            cells = [describe(100 * np.array([row[on] for row in found])) for on in ("test", "transductive")]
            print(f"{name:22}{len(found):>6}{minutes:>10.1f}{cells[0]:>16}{cells[1]:>26}")
    shared = [key.split("/")[1] for key in runs if all(f"{name}/{key.split('/')[1]}" in runs for name in CONFIGS)]
    if shared:
        pairs = [[100 * runs[f"{name}/{seed}"]["test"] for name in CONFIGS] for seed in sorted(set(shared))]
        print(f"{CONFIGS[1]} loses, test: {describe(-np.diff(np.array(pairs), axis=1)[:, 0])} points")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--configs", nargs="+", choices=CONFIGS, default=CONFIGS)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="label draws")
    parser.add_argument("--shared", type=Path, help="--out of label_efficiency.py, with the warm-up of fashion_mnist")
    parser.add_argument("--out", type=Path, default=Path("runs/settings_files"), help="folder of the runs")
    parser.add_argument("--record", type=Path, default=RESULTS / "settings_files.json", help="where scores are kept")
    parser.add_argument("--show", action="store_true", help="run nothing")
    options = parser.parse_args()
    runs = read(options.record)
    for name, seed in [] if options.show else itertools.product(options.configs, options.seeds):
        if f"{name}/{seed}" in runs:
            continue
        print(f"\n=== {name}, draw {seed} ===", flush=True)
        files, settings, elsewhere = [ROOT / "configs" / f"{name}.yaml"], [f"--data.seed={seed}"], 0.0
        if options.shared is not None and files == [DATA]:
            start, elsewhere = warm_up(options.shared, [])
            config = parse(DATA)
            epochs = config["trainer"]["max_epochs"] - config["model"]["warmup_epochs"]
            files, settings = [DATA, start], [*settings, f"--trainer.max_epochs={epochs}"]
        else:
            settings.append(f"--warmup_cache={options.out / 'warm_ups'}")
        found = fit(options.out / f"{name}-{seed}", files, settings)
        scores = {(row["on"], row["key"]): row["accuracy"] for row in found["scores"]}
        runs[f"{name}/{seed}"] = {
            "test": scores["test", "classifier"],
            "transductive": scores["unlabeled", "graph"],
            "minutes": sum(found["seconds"].values()) / 60,
            "minutes of a shared warm-up": elsewhere,
            "precision": choose_precision().value,
        }
        write(options.record, runs)
    show(runs)


if __name__ == "__main__":
    main()
