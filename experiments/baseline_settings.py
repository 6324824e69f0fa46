"""Which settings serve each of the other methods best? On a draw of labels that no table shows.

label_efficiency.py compares lspread with the methods of configs/methods/. Here each of them tries some settings for a
few minutes, from the same warm-up and with ten labels per class; what its classifier says of the unlabeled training
images decides, and no test label is read. The best ones stand in configs/methods/. Finished runs are kept in a small
JSON; what is missing is run, and an unfinished run goes on where it was.

    python experiments/baseline_settings.py --minutes 3 --threads 1
    python experiments/baseline_settings.py --methods fixmatch
    python experiments/baseline_settings.py --show
"""

import argparse
from pathlib import Path
from typing import Any

from label_efficiency import RESULTS, read, run, warm_up, write

DRAW = 100
CANDIDATES = {
    "supervised": [["model.lr=0.001"], ["model.lr=0.0003"], ["model.lr=0.0001"]],
    "pseudo_label": [
        ["model.lr=0.003", "model.threshold=0.95"],
        ["model.lr=0.001", "model.threshold=0.95"],
        ["model.lr=0.0003", "model.threshold=0.95"],
        ["model.lr=0.001", "model.threshold=0.8"],
        ["model.lr=0.001", "model.threshold=0.6"],
    ],
    "mean_teacher": [
        ["model.lr=0.003", "model.teacher_weight=10"],
        ["model.lr=0.001", "model.teacher_weight=10"],
        ["model.lr=0.003", "model.teacher_weight=3"],
    ],
    "fixmatch": [
        ["model.lr=0.003", "model.threshold=0.95"],
        ["model.lr=0.001", "model.threshold=0.95"],
        ["model.lr=0.001", "model.threshold=0.8"],
    ],
    "lp_deepssl": [["model.lr=0.003"], ["model.lr=0.001"]],
    "gll": [["model.lr=0.003"], ["model.lr=0.001"], ["model.lr=0.0003"], ["model.lr=0.0001"]],
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
    facts = {"minutes": options.minutes, "threads": options.threads}
    content = read(options.record) or {**facts, "runs": {}}
    if not options.show and {name: content[name] for name in facts} != facts:
        raise SystemExit(f"{options.record} was made with other minutes or threads; name another --record.")
    asked = [(method, settings) for method in options.methods for settings in CANDIDATES[method]]
    if not options.show:
        start, _ = warm_up(options.out, [])
        for number, (method, settings) in enumerate(asked):
            key = f"{method}/{' '.join(settings)}"
            if key in read(options.record).get("runs", {}):
                continue
            print(f"\n=== {key}; at most {(len(asked) - number) * options.minutes:.0f} minutes ===", flush=True)
            each = argparse.Namespace(**{**vars(options), "out": options.out / "-".join(settings), "set": settings})
            scores = run(each, start, method, 10, DRAW)
            content["runs"] = read(options.record).get("runs", {}) | {key: scores}
            write(options.record, content)
    show(content)


if __name__ == "__main__":
    main()
