"""Which method makes the most of few labels in the same time? Fashion-MNIST, lspread beside others.

The others are those of configs/methods/. The contrastive warm-up needs no label: it is trained once, and every method,
draw and number of labels starts from it. Then each trains for the same minutes with the same network, optimizer and
weight averaging, and the last averaged weights are tested. Supervised training alone starts from the warm-up as well,
so that only what a method makes of the unlabeled images is compared; "linear_probe" holds the network of the warm-up.
"lspread_chosen" is lspread with as many labels that it asked for by itself: items that cover the graph of the warm-up's
embeddings, chosen without a single label. It is a column of its own, since classes are no longer drawn alike.
The warm-up is kept under a name made of its settings and used again. Scores of finished runs are kept in a small JSON
and not run again; an unfinished one goes on where it was. With `--threads 1` the minutes are those that the processor
worked for a run. Several commands with different methods, labels or draws may then run side by side and share one
record, once there is a warm-up. Other work still slows a run by the caches that it takes: the record has the steps of
every run. A run counts as finished while its settings are those of the files; where they have changed, it is run again.

    python experiments/label_efficiency.py --show                             # table and figures of what is there
    python experiments/label_efficiency.py --record mine.json                 # all of it; says how long it will take
    python experiments/label_efficiency.py --record mine.json --methods lspread fixmatch --labels 10 --seeds 0
    python experiments/label_efficiency.py --record short.json --out runs/short --warm-up model.warmup_epochs=20
    python experiments/label_efficiency.py --record long.json --out runs/long --minutes 56
"""

import argparse
import csv
import hashlib
import itertools
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from scipy import stats

ROOT = Path(__file__).resolve().parent.parent
RESULTS = Path(__file__).resolve().parent / "results"
DATA = ROOT / "configs" / "fashion_mnist.yaml"
METHODS = ["lspread", "lspread_chosen", *sorted(path.stem for path in (ROOT / "configs" / "methods").glob("*.yaml"))]
COLUMNS = {"test classifier": "test", "unlabeled graph": "transductive, graph", "unlabeled classifier": "transductive"}


BY_PROCESSOR_TIME = "import time; time.monotonic = time.process_time; from lspread.cli.main import main; exit(main())"
"""Lightning's timer, which ends a run, asks `time.monotonic`."""


def fit(folder: Path, configs: list[Path], settings: list[str], threads: int | None = None) -> dict[str, Any]:
    """Train, go on with what an interruption left, or take what is there; return results.json.

    What was asked for is kept in the folder, and a folder with another run is refused.
    """
    results, asked_file = folder / "results.json", folder / "asked.json"
    asked = {"files": [parse(path) for path in configs], "settings": settings, "threads": threads}
    is_begun = (folder / "checkpoints" / "last.ckpt").exists()
    if folder.exists() and not is_begun and not results.exists():
        shutil.rmtree(folder)  # ended before its first checkpoint: there is nothing to go on with
    if folder.exists() and read(asked_file) != asked:
        raise SystemExit(f"{folder} holds a run with other settings; name another --out (and --record), or remove it.")
    if not results.exists():
        folder.mkdir(parents=True, exist_ok=True)
        write(asked_file, asked)
        what = [str(folder)] if is_begun else [part for path in configs for part in ("--config", str(path))]
        start = ["-c", BY_PROCESSOR_TIME] if threads == 1 else ["-m", "lspread"]
        command = [sys.executable, *start, "fit", *what, f"--run_dir={folder}", *settings]
        limits = {} if threads is None else {f"{name}_NUM_THREADS": str(threads) for name in ("OMP", "MKL", "NUMBA")}
        subprocess.run(command, check=True, env=os.environ | limits)
    return read(results)


def parse(path: Path) -> dict[str, Any]:
    """Return the content of a settings file."""
    content: dict[str, Any] = yaml.safe_load(path.read_text())
    return content


def hash_settings(method: str, settings: list[str]) -> str:
    """Return what tells the settings of a method from those that it had at another time, 8 hexadecimal digits."""
    content = [settings, *map(parse, settings_files(method))]
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:8]


def settings_files(method: str) -> list[Path]:
    """Return the files of the data and, where it is not lspread, the method."""
    return [DATA, *([] if method.startswith("lspread") else [ROOT / "configs" / "methods" / f"{method}.yaml"])]


def warm_up(out: Path, settings: list[str]) -> tuple[Path, float]:
    """Train the shared warm-up once; return the file of settings that starts from it, and its minutes."""
    config = parse(DATA)
    for setting in settings:
        *place, last = setting.split("=", 1)[0].split(".")
        part = config
        for key in place:
            part = part[key]
        part[last] = yaml.safe_load(setting.split("=", 1)[1])
    model = config["model"]
    # What the warm-up depends on; labels come later.
    keys = ("backbone", "view", "temperature", "warmup_epochs", "warmup_lr", "weight_decay")
    told = [config["data"], [model[key] for key in keys]]
    name = hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()[:8]
    folder = out / f"warm_up-{name}"
    # Only what follows the warm-up asks for pseudo-labels, and nothing does.
    options = [
        f"--trainer.max_epochs={model['warmup_epochs']}",
        "--warmup_cache=null",
        *(f"--{one}" for one in settings),
    ]
    found = fit(folder, [DATA], options)
    network = parse(folder / "config.yaml")["model"]["backbone"]["init_args"]
    checkpoint = str((folder / "model.safetensors").resolve())
    init_args = {"name": "small_resnet", "checkpoint": checkpoint, **network}
    init_args.pop("in_channels", None)
    backbone = {"class_path": "lspread.nn.NamedBackbone", "init_args": init_args}
    start = folder / "start.yaml"
    start.write_text(yaml.safe_dump({"model": {"backbone": backbone, "warmup_epochs": 0}}))
    return start, found["seconds"]["fit"] / 60


def choose(folder: Path, num_labels: int, seed: int) -> list[int]:
    """Return the training images that cover the graph of the warm-up's embeddings, none of whose labels is known."""
    import torch

    from lspread.active import Coverage, make_pool
    from lspread.data import FashionMNIST
    from lspread.lit import RefreshPseudoLabels
    from lspread.lit.saved_model import load_classifier
    from lspread.nn import embed
    from lspread.typing import UNLABELED

    data = FashionMNIST()
    data.setup()
    saved = load_classifier(folder)
    refresh = next(
        one["init_args"]
        for one in parse(DATA)["trainer"]["callbacks"]
        if one["class_path"] == "lspread.lit.RefreshPseudoLabels"
    )
    z = embed(saved.backbone, data.pool_dataloader(), preprocess=lambda image: (image - saved.mean) / saved.std)
    graph = RefreshPseudoLabels(**refresh).build_graph(z)
    pool = make_pool(z, graph, torch.full((len(z),), UNLABELED), data.num_classes)
    rows = Coverage(seed=seed)(pool, num_labels * data.num_classes).index
    return data.split.pool[rows].tolist()


def length(options: argparse.Namespace) -> list[str]:
    """Return the settings of how long a run trains: so many epochs, or so many minutes."""
    if "epochs" in options:
        return [f"--trainer.max_epochs={options.epochs}"]
    seconds = round(60 * options.minutes)
    clock = f"00:{seconds // 3600:02d}:{seconds // 60 % 60:02d}:{seconds % 60:02d}"
    return ["--trainer.max_epochs=-1", f"--trainer.max_time={clock}"]


def run(options: argparse.Namespace, start: Path, method: str, num_labels: int, seed: int) -> dict[str, Any]:
    """Train one method on one draw of labels and return its scores, minutes and steps, and the hash of its settings."""
    configs = [*settings_files(method), start]
    freeze = ["--model.backbone.init_args.freeze=true"] if method == "linear_probe" else []
    labels = [f"--data.num_labels_per_class={num_labels}"]
    if method == "lspread_chosen":
        chosen = choose(start.parent, num_labels, seed)
        labels = ["--data.num_labels_per_class=null", f"--data.labeled_indices={chosen}"]
    settings = [
        *labels,
        f"--data.seed={seed}",
        f"--seed_everything={seed}",
        *length(options),
        *freeze,
        *(f"--{setting}" for setting in options.set),
    ]
    folder = options.out / f"{method}-{num_labels}-{seed}"
    found = fit(folder, configs, settings, options.threads)
    scores = {f"{row['on']} {row['key']}": row["accuracy"] for row in found["scores"]}
    with (folder / "metrics.csv").open(newline="") as file:
        steps = 1 + max(int(row["step"]) for row in csv.DictReader(file))
    facts = {"minutes": found["seconds"]["fit"] / 60, "steps": steps, "settings": hash_settings(method, options.set)}
    return {name: value for name, value in scores.items() if value is not None} | facts


def read(path: Path) -> dict[str, Any]:
    """Return the record, empty before the first run."""
    content: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    return content


def open_record(options: argparse.Namespace, **facts: Any) -> dict[str, Any]:
    """Return the record that new runs belong into; one that was made otherwise is refused."""
    from lspread.lit.precision import choose_precision

    asked = {name: value for name, value in vars(options).items() if name in ("epochs", "minutes", "threads")}
    facts |= {**asked, "precision": choose_precision().value}
    content = read(options.record) or {**facts, "runs": {}}
    made = {name: content.get(name) for name in facts}
    if not options.show and made != facts:
        raise SystemExit(f"{options.record} was made with {made}, asked is {facts}; name another --record and --out.")
    return content


def current_runs(content: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Return the runs of a record whose method still has the settings that it had."""
    if not content:
        return {}
    hashes = {method: hash_settings(method, content["settings"]) for method in METHODS}
    return {key: row for key, row in content["runs"].items() if row["settings"] == hashes[key.split("/")[0]]}


def write(path: Path, content: dict[str, Any]) -> None:
    """Replace the record in one step, so that a command beside this one never reads half of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(f".{os.getpid()}.part")
    part.write_text(json.dumps(content, indent=1) + "\n")
    part.replace(path)


def interval(values: np.ndarray) -> float:
    """Return half the width of the 95 % interval of the mean of two or more values, by Student's t."""
    return float(stats.t.ppf(0.975, len(values) - 1) * values.std(ddof=1) / np.sqrt(len(values)))


def describe(values: np.ndarray, form: str = ".1f") -> str:
    """Return a mean with its interval; a single value alone."""
    if not len(values):
        return ""
    return f"{values.mean():{form}}" + (f" +- {interval(values):{form.lstrip('+')}}" if len(values) > 1 else "")


def show(runs: dict[str, dict[str, float]], minutes: float) -> None:
    """Print means with intervals, and paired differences to lspread over the draws that both have."""
    keys = [key.split("/") for key in runs]
    for num_labels in sorted({int(labels) for _, labels, _ in keys}):
        print(f"\n{num_labels} labels per class, {minutes:g} minutes each after the shared warm-up; accuracy in %")
        print(f"{'':16}{'draws':>6}" + "".join(f"{title:>24}" for title in COLUMNS.values()) + f"{'lspread ahead':>24}")
        for method in METHODS:
            found = {seed: runs[f"{m}/{n}/{seed}"] for m, n, seed in keys if (m, int(n)) == (method, num_labels)}
            if not found:
                continue
            cells = []
            for column in COLUMNS:
                values = 100 * np.array([row[column] for row in found.values() if column in row])
                cells.append(describe(values))
            pairs = [
                100 * (runs[f"lspread/{num_labels}/{seed}"]["test classifier"] - row["test classifier"])
                for seed, row in found.items()
                if not method.startswith("lspread") and f"lspread/{num_labels}/{seed}" in runs
            ]
            ahead = describe(np.array(pairs), "+.1f")
            print(f"{method:16}{len(found):>6}" + "".join(f"{cell:>24}" for cell in [*cells, ahead]))


def markdown(runs: dict[str, dict[str, Any]]) -> str:
    """Return README's table: ten labels per class beside one, the best on top, chosen labels apart at the bottom.

    Rows of "on the warm-up" are of plain classifiers on the network that "linear_probe" holds.
    """
    titles = {method: (method, "classifier") for method in {key.split("/")[0] for key in runs}}
    titles |= {
        name: ("linear_probe", key)
        for name, key in (("logistic regression on the warm-up", "logistic_regression"), ("kNN on the warm-up", "knn"))
        if any(f"test {key}" in row for one, row in runs.items() if one.startswith("linear_probe/"))
    }
    rows = {}
    for title, (method, key) in titles.items():
        test = {n: scores(runs, method, n, f"test {key}") for n in (10, 1)}
        cells = []
        for num_labels, values in test.items():
            ours = scores(runs, "lspread", num_labels, "test classifier")
            ahead = [ours[seed] - value for seed, value in values.items() if seed in ours]
            cells.append(describe(np.array(list(values.values()))))
            cells.append("" if method.startswith("lspread") else describe(np.array(ahead)))
        for num_labels in test:
            heads = ["classifier", "graph"] if key == "classifier" else [key]
            columns = (scores(runs, method, num_labels, f"unlabeled {head}") for head in heads)
            cells.append(" / ".join(describe(np.array(list(values.values()))) for values in columns if values))
        draws = " / ".join(str(len(values)) for values in test.values())
        order = np.mean(list(test[10].values())) if test[10] else 0.0
        rows[method != "lspread_chosen", order, title] = f"| {title} ({draws}) | " + " | ".join(cells) + " |"
    head = ["", "test, 10 per class", "lspread ahead", "test, 1 per class", "lspread ahead"]
    head += ["unlabeled, 10: classifier / graph", "unlabeled, 1"]
    lines = [
        "| " + " | ".join(head) + " |",
        "|---" * len(head) + "|",
        *(rows[key] for key in sorted(rows, reverse=True)),
    ]
    return "\n".join(lines).replace("+-", "±")


def scores(runs: dict[str, dict[str, Any]], method: str, num_labels: int, column: str) -> dict[str, float]:
    """Return the accuracies in % of the draws of a method that have a column."""
    found = {key.split("/")[2]: row for key, row in runs.items() if key.startswith(f"{method}/{num_labels}/")}
    return {seed: 100 * row[column] for seed, row in found.items() if column in row}


def draw(runs: dict[str, dict[str, float]], path: Path) -> None:
    """Draw the test accuracy of every run, the best method on top, a panel for each number of labels.

    Numbers of labels with one method only are left out where others have more.
    """
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    panels: dict[int, dict[str, list[float]]] = {}
    for key, row in runs.items():
        method, count, _ = key.split("/")
        panels.setdefault(int(count), {}).setdefault(method, []).append(100 * row["test classifier"])
    most = max(map(len, panels.values()))
    panels = {count: found for count, found in sorted(panels.items()) if len(found) > 1 or most == 1}
    figure, places = plt.subplots(1, len(panels), figsize=(5.4 * len(panels), 3.4), squeeze=False, layout="constrained")
    for axes, (count, found) in zip(places[0], panels.items(), strict=True):
        order = sorted(found, key=lambda method: np.mean(found[method]))
        for place, method in enumerate(order):
            color = "tab:green" if method.startswith("lspread") else "tab:gray"
            axes.plot(found[method], [place] * len(found[method]), "o", color=color, alpha=0.6)
            axes.plot(np.mean(found[method]), place, "|", color=color, markersize=18, markeredgewidth=2)
        axes.set_yticks(range(len(order)), order)
        axes.set(title=f"labels per class: {count}", xlabel="test accuracy, % (a draw each; bar: mean)")
        axes.grid(axis="x", alpha=0.3)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def draw_over_minutes(folder: Path, path: Path) -> bool:
    """Draw test accuracy against minutes from all records of a folder; say whether it has several budgets.

    A line joins the means over the draws that all records with this method have, so that a point differs from the next
    by its minutes alone; faint dots are single draws.
    """
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    contents = [read(one) for one in folder.glob("label_efficiency*.json")]
    contents = sorted(({**one, "runs": current_runs(one)} for one in contents), key=lambda one: one["minutes"])
    budgets = sorted({one["minutes"] for one in contents})
    if len(budgets) < 2:
        return False
    counts = sorted({key.split("/")[1] for one in contents for key in one["runs"]}, key=int)
    figure, panels = plt.subplots(1, len(counts), figsize=(4.4 * len(counts), 4), squeeze=False, layout="constrained")
    for axes, count in zip(panels[0], counts, strict=True):
        for number, method in enumerate(METHODS):
            found = [
                {key: row for key, row in one["runs"].items() if key.startswith(f"{method}/{count}/")}
                for one in contents
            ]
            records = [(one["minutes"], runs) for one, runs in zip(contents, found, strict=True) if runs]
            shared = sorted(set.intersection(*(set(runs) for _, runs in records))) if records else []
            if not shared:
                continue
            minutes = [place for place, _ in records]
            scores = 100 * np.array([[runs[key]["test classifier"] for key in shared] for _, runs in records])
            style = {"color": f"C{number}", "linewidth": 2.5 if method == "lspread" else 1.5}
            axes.plot(minutes, scores.mean(1), "o-", label=method, zorder=3, **style)
            axes.plot(minutes, scores, ".", color=style["color"], alpha=0.4)
        axes.set(title=f"labels per class: {count}", xlabel="minutes after the warm-up", ylabel="test accuracy, %")
        axes.set(xscale="log", xlim=(budgets[0] * 0.7, budgets[-1] * 1.4))
        axes.set_xticks(budgets, [f"{place:g}" for place in budgets])
        axes.set_xticks([], minor=True)
        axes.grid(alpha=0.3)
        axes.legend(fontsize=7)
    figure.savefig(path, dpi=110)
    plt.close(figure)
    return True


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=METHODS)
    parser.add_argument("--labels", type=int, nargs="+", default=[1, 10], help="labels per class")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="label draws")
    parser.add_argument("--minutes", type=float, default=5.0, help="training of each run after the warm-up")
    parser.add_argument("--threads", type=int, help="threads of each run; 1: minutes of processor time")
    parser.add_argument("--out", type=Path, default=Path("runs/label_efficiency"), help="folder of the runs")
    parser.add_argument("--record", type=Path, default=RESULTS / "label_efficiency.json", help="where scores are kept")
    parser.add_argument("--warm-up", nargs="*", default=[], metavar="KEY=VALUE", help="settings of the warm-up")
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE", help="settings of all other runs")
    parser.add_argument("--show", action="store_true", help="run nothing")
    parser.add_argument("--markdown", action="store_true", help="print README's table and nothing else")
    options = parser.parse_args()
    if options.markdown:
        return print(markdown(current_runs(read(options.record))))
    content = open_record(options, **{"settings": options.set, "warm-up settings": options.warm_up})
    asked = list(itertools.product(options.seeds, options.labels, options.methods))
    keys = [f"{method}/{num_labels}/{seed}" for seed, num_labels, method in asked]
    if not options.show and not set(keys) <= set(current_runs(content)):
        start, content["warm-up minutes"] = warm_up(options.out, options.warm_up)
        for number, (key, (seed, num_labels, method)) in enumerate(zip(keys, asked, strict=True)):
            done = current_runs(read(options.record))
            if key in done:
                continue
            ahead = len(set(keys[number:]) - set(done)) * options.minutes
            print(f"\n=== {method}, {num_labels} per class, draw {seed}; at most {ahead:.0f} minutes ===", flush=True)
            scores = run(options, start, method, num_labels, seed)
            content["runs"] = read(options.record).get("runs", {}) | {key: scores}
            write(options.record, content)
    runs = current_runs(content)
    if len(runs) < len(content["runs"]):
        print(f"{len(content['runs']) - len(runs)} runs of settings that have changed since are left out.")
    if runs:
        show(runs, content["minutes"])
        draw(runs, options.record.with_suffix(".png"))
        written = [options.record, options.record.with_suffix(".png")]
        over_minutes = options.record.parent / "accuracy_over_minutes.png"
        if draw_over_minutes(options.record.parent, over_minutes):
            written.append(over_minutes)
        print("\nwrote " + ", ".join(map(str, written)))


if __name__ == "__main__":
    main()
