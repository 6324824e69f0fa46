"""What does each piece of the Fashion-MNIST recipe add, and what would further pieces add? Ten labels per class.

Each variant is the recipe of configs/fashion_mnist.yaml without one piece or with one more, trained for as many epochs
from the warm-up that label_efficiency.py shares, on the same label draws. Epochs and not minutes: whatever else the
machine does, the steps are the same. What a piece costs beside them stands under minutes, which the machine decides.
The table shows the difference to the recipe, paired over draws, with its 95 % interval. Finished runs are kept in a
small JSON; what is missing is run. Records of other machines, which had warm-ups of their own, stand beside it as
ablation_*.json: the table takes them together, and pairs each run with the recipe of its own record. Runs of one draw
in several records count as one: their differences are averaged before the interval over draws is taken.

    python experiments/ablation.py --threads 1
    python experiments/ablation.py --variants gradient agreement --seeds 0 1 2
    python experiments/ablation.py --show
"""

import argparse
import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
from label_efficiency import DATA, RESULTS, describe, hash_settings, open_record, parse, read, run, warm_up, write

HEAD = ["", "draws / runs", "test, %", "recipe there, %", "to the recipe", "unlabeled, by the graph", "minutes"]
CALLBACKS = parse(DATA)["trainer"]["callbacks"]


def callbacks(**changed: Any) -> list[str]:
    """Return the setting of all callbacks, with other options of `RefreshPseudoLabels`."""
    refresh, *others = CALLBACKS
    changed_refresh = {**refresh, "init_args": {**refresh["init_args"], **changed}}
    return [f"trainer.callbacks={json.dumps([changed_refresh, *others])}"]


LEARNED = ["model.spread_weight=0.3", "model.learn_spread=true"]
VARIANTS: dict[str, tuple[str, list[str]]] = {
    "recipe": ("the recipe", []),
    "no_mixup": ("without mixing images", ["model.mixup=0"]),
    "cutmix": ("with boxes cut from other images beside mixing", ["model.cutmix=1"]),
    "sharpen": ("with pseudo-labels sharpened at temperature 0.5", callbacks(temperature=0.5)),
    "no_prior": ("without expecting equal classes", callbacks(prior="none")),
    "no_reinforce": ("without sure answers becoming labels", callbacks(reinforce=0)),
    "no_whitening": ("without whitening", callbacks(whiten=False)),
    "128_axes": ("with 128 axes of the embeddings", callbacks(num_components=128)),
    "no_refresh": ("with pseudo-labels from the warm-up only", callbacks(every_n_epochs=1000)),
    "every_epoch": ("with fresh pseudo-labels every epoch", callbacks(every_n_epochs=1)),
    "no_average": ("without weight averaging", [f"trainer.callbacks={json.dumps(CALLBACKS[:1])}"]),
    "no_pseudo": ("without pseudo-labels", ["model.pseudo_weight=0", "model.supervised_weight=1"]),
    "gradient": ("with gradient through the batch's graph", LEARNED),
    "gradient_bank": ("the same, 512 other images beside the batch", [*LEARNED, "model.bank_size=512"]),
    "agreement": ("with agreement of two views through the graph", ["model.agreement_weight=0.3"]),
    "graph_contrast": ("with graph contrast", ["model.graph_contrastive_weight=0.3"]),
    "contrast": ("with the warm-up's contrast going on", ["model.contrastive_weight=0.3"]),
    "confident": ("with FixMatch's loss", ["model.confident_weight=0.5", "model.align=true"]),
    "entropy": ("with mean entropy", ["model.entropy_weight=0.5"]),
}


def current_runs(content: dict[str, Any]) -> dict[str, Any]:
    """Return the runs of a record whose recipe and variant are what they were."""
    hashes = {name: hash_settings("lspread", settings) for name, (_, settings) in VARIANTS.items()}
    runs: dict[str, Any] = content.get("runs", {})
    return {key: row for key, row in runs.items() if row["settings"] == hashes.get(key.split("/")[0])}


def read_all(record: Path) -> list[dict[str, Any]]:
    """Return the runs of a record and of those of other machines beside it, record by record."""
    others = sorted(record.parent.glob(f"{record.stem}_*.json"))
    return [current_runs(read(path)) for path in (record, *others)]


def by_draw(values: list[tuple[str, float]]) -> np.ndarray:
    """Return one value for each draw, the mean of those that several records have of it."""
    draws = sorted({seed for seed, _ in values})
    return np.array([np.mean([value for seed, value in values if seed == draw]) for draw in draws])


def rows(records: list[dict[str, Any]]) -> list[list[str]]:
    """Return title, draws and runs, test accuracy, that of the recipe beside them, differences to it, and minutes."""
    table = []
    for name, (title, _) in VARIANTS.items():
        found, pairs = [], []
        for runs in records:
            for key, row in runs.items():
                variant, seed = key.split("/")
                if variant == name and f"recipe/{seed}" in runs:
                    found.append((seed, row))
                    pairs.append((seed, row, runs[f"recipe/{seed}"]))
        if not found:
            continue
        test = [(seed, 100 * row["test classifier"]) for seed, row in found]
        cells = [f"{len({seed for seed, _ in found})} / {len(found)}", f"{by_draw(test).mean():.1f}"]
        if name == "recipe":
            cells += ["", "", ""]
        else:
            recipe = [(seed, 100 * other["test classifier"]) for seed, _, other in pairs]
            cells.append(f"{by_draw(recipe).mean():.1f}")
            for column in ("test classifier", "unlabeled graph"):
                ahead = [(seed, 100 * (row[column] - other[column])) for seed, row, other in pairs if column in row]
                cells.append(describe(by_draw(ahead), "+.1f"))
        minutes = np.array([row["minutes"] for _, row in found if "minutes" in row])
        table.append([title, *cells, f"{minutes.mean():.1f}" if len(minutes) else ""])
    return table


def show(records: list[dict[str, Any]], epochs: int) -> None:
    """Print the table of what is there."""
    print(f"\n10 labels per class, {epochs} epochs after the shared warm-up; paired differences in points")
    for title, *cells in [HEAD, *rows(records)]:
        print(
            f"{title:48}"
            + "".join(f"{cell:>{width}}" for cell, width in zip(cells, (13, 9, 17, 18, 25, 8), strict=True))
        )


def markdown(records: list[dict[str, Any]]) -> str:
    """Return the table of experiments/README.md."""
    lines = ["| " + " | ".join(cells) + " |" for cells in [HEAD, *rows(records)]]
    return "\n".join([lines[0], "|---" * len(HEAD) + "|", *lines[1:]]).replace("+-", "±")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--variants", nargs="+", choices=list(VARIANTS), default=list(VARIANTS))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="label draws")
    parser.add_argument("--epochs", type=int, default=6, help="training of each run after the warm-up")
    parser.add_argument("--threads", type=int, help="threads of each run; 1: minutes of processor time")
    parser.add_argument("--out", type=Path, default=Path("runs/label_efficiency"), help="folder with the warm-up")
    parser.add_argument("--record", type=Path, default=RESULTS / "ablation.json", help="where scores are kept")
    parser.add_argument("--show", action="store_true", help="run nothing")
    parser.add_argument(
        "--markdown", action="store_true", help="print the table of this folder's README.md and nothing else"
    )
    options = parser.parse_args()
    if options.markdown:
        return print(markdown(read_all(options.record)))
    content = open_record(options)
    if not options.show:
        start, _ = warm_up(options.out, [])
        for seed, name in itertools.product(options.seeds, options.variants):
            key = f"{name}/{seed}"
            if key in current_runs(read(options.record)):
                continue
            print(f"\n=== {VARIANTS[name][0]}, draw {seed} ===", flush=True)
            each = argparse.Namespace(**{**vars(options), "out": options.out / name, "set": VARIANTS[name][1]})
            scores = run(each, start, "lspread", 10, seed)
            content["runs"] = read(options.record).get("runs", {}) | {key: scores}
            write(options.record, content)
    show(read_all(options.record), content["epochs"])


if __name__ == "__main__":
    main()
