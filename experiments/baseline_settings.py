"""Which settings serve each of the other methods best? On a draw of labels that no table shows.

label_efficiency.py compares lspread with the methods of configs/methods/. Here each of them tries some settings for a
few minutes, from the same warm-up and with ten labels per class. What its classifier says of the unlabeled training
images decides: their true labels are read for it, which nobody who has ten labels could do; test labels decide nothing.
The best ones stand in configs/methods/ and serve one label per class as well. Finished runs are kept in a small JSON;
what is missing is run, and an unfinished run goes on where it was.

    python experiments/baseline_settings.py --minutes 3 --threads 1
    python experiments/baseline_settings.py --methods fixmatch
    python experiments/baseline_settings.py --show
"""

import argparse
import json
from pathlib import Path
from typing import Any

from label_efficiency import RESULTS, ROOT, open_record, parse, read, run, warm_up, write

DRAW = 100
CALLBACKS = parse(ROOT / "configs" / "methods" / "lp_deepssl.yaml")["trainer"]["callbacks"]
RARELY = json.dumps([{**CALLBACKS[0], "init_args": {**CALLBACKS[0]["init_args"], "every_n_epochs": 3}}, CALLBACKS[1]])
CANDIDATES = {
    "linear_probe": {f"lr={lr}": [f"model.lr={lr}"] for lr in (0.01, 0.003, 0.001, 0.0003, 0.0001, 0.00003, 0.00001)},
    "supervised": {f"lr={lr}": [f"model.lr={lr}"] for lr in (0.001, 0.0003, 0.0001)},
    "pseudo_label": {
        f"lr={lr} threshold={threshold}": [f"model.lr={lr}", f"model.threshold={threshold}"]
        for lr, threshold in ((0.003, 0.95), (0.001, 0.95), (0.0003, 0.95), (0.001, 0.8), (0.001, 0.6))
    },
    "mean_teacher": {
        f"lr={lr} teacher_weight={weight}": [f"model.lr={lr}", f"model.teacher_weight={weight}"]
        for lr, weight in ((0.003, 10), (0.001, 10), (0.003, 3), (0.003, 1), (0.001, 3), (0.0003, 3), (0.0003, 1))
    },
    "fixmatch": {
        f"lr={lr} threshold={threshold}": [f"model.lr={lr}", f"model.threshold={threshold}"]
        for lr, threshold in ((0.003, 0.95), (0.001, 0.95), (0.001, 0.8))
    },
    "lp_deepssl": {
        **{f"lr={lr}": [f"model.lr={lr}"] for lr in (0.006, 0.003, 0.001)},
        "lr=0.003 every_n_epochs=3": ["model.lr=0.003", f"trainer.callbacks={RARELY}"],
    },
    "gll": {f"lr={lr}": [f"model.lr={lr}"] for lr in (0.003, 0.001, 0.0003, 0.0001)},
}


def show(content: dict[str, Any]) -> None:
    """Print the tables of what is there, the best first."""
    print(f"\nTen labels per class, draw {DRAW}, {content['minutes']:g} minutes each after the shared warm-up")
    for method in CANDIDATES:
        rows = {key: row for key, row in content["runs"].items() if key.split("/")[0] == method}
        for key in sorted(rows, key=lambda one: -rows[one]["unlabeled classifier"]):
            accuracy = 100 * rows[key]["unlabeled classifier"]
            print(f"{method:14}{key.split('/')[1]:44}{accuracy:5.1f} % of the unlabeled images")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--methods", nargs="+", choices=list(CANDIDATES), default=list(CANDIDATES))
    parser.add_argument("--minutes", type=float, default=3.0, help="training of each run after the warm-up")
    parser.add_argument("--threads", type=int, help="threads of each run; 1: minutes of processor time")
    parser.add_argument("--out", type=Path, default=Path("runs/label_efficiency"), help="folder with the warm-up")
    parser.add_argument("--record", type=Path, default=RESULTS / "baseline_settings.json", help="where scores are kept")
    parser.add_argument("--show", action="store_true", help="run nothing")
    options = parser.parse_args()
    content = open_record(options)
    asked = [(method, name) for method in options.methods for name in CANDIDATES[method]]
    if not options.show:
        start, _ = warm_up(options.out, [])
        for number, (method, name) in enumerate(asked):
            key = f"{method}/{name}"
            if key in read(options.record).get("runs", {}):
                continue
            print(f"\n=== {key}; at most {(len(asked) - number) * options.minutes:.0f} minutes ===", flush=True)
            changed = {"out": options.out / name.replace(" ", "-"), "set": CANDIDATES[method][name]}
            scores = run(argparse.Namespace(**{**vars(options), **changed}), start, method, 10, DRAW)
            content["runs"] = read(options.record).get("runs", {}) | {key: scores}
            write(options.record, content)
    show(content)


if __name__ == "__main__":
    main()
