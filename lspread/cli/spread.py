"""`lspread spread`: from embeddings and a few labels to a label for every item, without training."""

import argparse
import contextlib
import json
import time
from collections.abc import Mapping
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lspread.cli.items import LABELS_HELP, check_folder
from lspread.errors import ConfigError, DataError

if TYPE_CHECKING:
    from torch import Tensor

    from lspread.data import EmbeddedItems
    from lspread.estimators import LabelSpreadingClassifier
    from lspread.graph import Graph

__all__ = ["run"]

NUM_SHOWN = 12
LEAST_SURE = 20
"""Hidden labels above a threshold from which their precision says something."""


def run(command: str, argv: list[str]) -> int:
    """Spread labels and write predictions, a report and what other methods make of the same labels."""
    parser = argparse.ArgumentParser(
        prog=f"lspread {command}",
        allow_abbrev=False,
        description="Spread a few labels over the graph of all items, without training; write a report.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="""examples:
  lspread spread photos.safetensors --labels labels.csv -o out/
  lspread spread photos.safetensors --labels labels.csv -o out/ --target-precision 0.98
  lspread spread mails.safetensors --labels labels.csv -o out/ --robust --prior labeled --json""",
    )
    parser.add_argument("embeddings", type=Path, help="a file of `lspread embed`")
    parser.add_argument("--labels", type=Path, required=True, help=LABELS_HELP)
    parser.add_argument("-o", "--output", type=Path, required=True, help="folder to write")
    parser.add_argument(
        "--alpha", type=float, help="how much an item listens to its neighbors; default: 0.99, less below 1,800 items"
    )
    parser.add_argument("--prior", choices=("none", "uniform", "labeled"), default="none", help="class frequencies")
    parser.add_argument("--robust", action="store_true", help="trust each label as far as the others confirm it")
    parser.add_argument(
        "--target-precision",
        type=float,
        metavar="P",
        help="write only labels that are as sure as labels of which a share P was right when hidden",
    )
    parser.add_argument("--seed", type=int, default=0)
    from lspread.cli.items import add_graph_options, graph_of

    add_graph_options(parser)
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of sentences")
    options = parser.parse_args(argv)
    target = options.target_precision
    if target is not None and not 0 < target <= 1:
        raise ConfigError(f"--target-precision must be above 0 and at most 1; got {target}.")
    trained = next((name for name in ("config.yaml", "model.json") if (options.output / name).exists()), None)
    if trained is not None:
        raise ConfigError(
            f"-o {options.output} holds {trained}, as a trained run does, whose predictions.csv and results.json would "
            "be replaced; choose another folder."
        )

    check_folder(options.output)

    import torch

    from lspread.cli.summary import print_summary
    from lspread.data import EmbeddedItems
    from lspread.lit.run_folder import write_json
    from lspread.lit.scores import reliability_table
    from lspread.report import write_report
    from lspread.typing import UNLABELED

    start = time.perf_counter()
    items = EmbeddedItems.load(options.embeddings)
    label, names = items.read_labels(options.labels)
    if int((label == UNLABELED).sum()) == 0:
        raise DataError(f"every item of {options.embeddings} has a label in {options.labels}; nothing is left to do.")
    if options.alpha is None:
        # Labels that walk on and on among few items tell no more where they came from.
        options.alpha = 1 - min(0.1, max(0.01, 18 / len(label)))
    graph = graph_of(items, options)
    model = _fit(graph, label, len(names), options, calibrate=True)
    probability = torch.from_numpy(model.label_distributions_)
    confidence, predicted = probability.max(1)
    is_given = label != UNLABELED
    predicted = torch.where(is_given, label, predicted)
    confidence = torch.where(is_given, 1.0, confidence)
    seconds = {"spread": time.perf_counter() - start}
    start = time.perf_counter()
    checks, hidden = _cross_validate(items, label, len(names), model, options)
    reliability = None if len(hidden[0]) < LEAST_SURE else reliability_table("given", *hidden)
    seconds["baselines"] = time.perf_counter() - start
    threshold = None if target is None else _threshold(*hidden, target)
    options.output.mkdir(parents=True, exist_ok=True)
    written = _write_predictions(items, names, predicted, confidence, is_given, model, threshold, options.output)
    noun = "rows" if items.kind == "table" else f"{items.kind}s"
    title = f"{Path(items.root).name}: {len(label):,} {noun} from {int(is_given.sum()):,} labels"
    content = {
        "title": title,
        "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "command": " ".join(["lspread", command, *argv]),
        "seed": options.seed,
        **_describe(items, names, label, predicted, confidence.float(), model, options),
        "cross_validation": checks,
        "reliability": reliability,
        "num_sure": None if threshold is None else written - int(is_given.sum()),
        "seconds": {name: round(value, 3) for name, value in seconds.items()},
    }
    write_json(options.output / "results.json", content)
    write_report(options.output)
    facts = {"num_items": len(label), "num_labels": int(is_given.sum()), "num_written": written, "checks": checks}
    if threshold is not None:
        facts |= {"target_precision": target, **threshold}
    if options.json:
        print(json.dumps({**facts, "output": str(options.output)}))
        return 0
    print_summary(options.output)
    if threshold is not None:
        _tell_threshold(threshold, target, written, len(label))
    return 0


def _fit(
    graph: "Graph", label: "Tensor", num_classes: int, options: argparse.Namespace, *, calibrate: bool = False
) -> "LabelSpreadingClassifier":
    """Spread labels over the graph; probabilities are calibrated where every class has labels to hide."""
    import warnings

    import torch

    from lspread.estimators import LabelSpreadingClassifier
    from lspread.typing import UNLABELED

    few = int(torch.bincount(label[label != UNLABELED], minlength=num_classes).min()) < 2
    model = LabelSpreadingClassifier(
        "precomputed",
        alpha=options.alpha,
        prior=options.prior,
        robust=options.robust,
        calibrate=calibrate and not few,
    )
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="no label reaches")  # counted in the report
        return model.fit(graph, label.numpy())


def _cross_validate(
    items: "EmbeddedItems", label: "Tensor", num_classes: int, model: "LabelSpreadingClassifier", options: Any
) -> "tuple[list[dict[str, Any]], tuple[Tensor, Tensor]]":
    """Return what each method makes of hidden labels, and how sure and how right the graph was of each."""
    import torch
    from torch.nn.functional import normalize

    from lspread.labels import sharpen
    from lspread.lit.baselines import knn_vote, logistic_regression
    from lspread.lit.scores import Method, cross_validate
    from lspread.typing import UNLABELED

    z = items.embedding
    near = normalize(z, dim=1) if (options.metric or items.metric) == "cosine" else z
    sure: list[Tensor] = []
    right: list[Tensor] = []

    def spread(given: "Tensor", index: "Tensor") -> "Tensor":
        found = _fit(model.graph_, given, num_classes, options)
        classes = torch.from_numpy(found.classes_)
        probability = torch.from_numpy(found.label_distributions_)[index]
        if model.temperature_ != 1:  # as the model does: what is not sharpened stays the same to the last bit
            probability = sharpen(probability, model.temperature_)
        confidence, place = probability.max(1)
        is_reached = torch.from_numpy(found.is_reached_)[index]
        sure.append(confidence)
        right.append(is_reached & (classes[place] == label[index]))
        return torch.where(is_reached, classes[place], UNLABELED)

    def vote(given: "Tensor", index: "Tensor") -> "Tensor":
        rows = (given >= 0).nonzero().flatten()
        return knn_vote(near[rows], given[rows], near[index], num_classes=num_classes).label

    def probe(given: "Tensor", index: "Tensor") -> "Tensor":
        rows = (given >= 0).nonzero().flatten()
        return logistic_regression(z[rows], given[rows], z[index], num_classes=num_classes, reference=z).label

    methods: Mapping[str, Method] = {"graph": spread, "knn": vote, "logistic_regression": probe}
    checks = cross_validate(methods, label, seed=options.seed)
    if not sure:
        return checks, (torch.zeros(0), torch.zeros(0, dtype=torch.bool))
    return checks, (torch.cat(sure), torch.cat(right))


def _threshold(sure: "Tensor", right: "Tensor", target: float) -> dict[str, Any]:
    """Return the lowest confidence from which on a share `target` of the hidden labels was right.

    Raises:
        DataError: A class has one label only, so that none could be hidden.
    """
    import torch

    from lspread.lit.scores import wilson_interval

    if not len(sure):
        raise DataError(
            "--target-precision hides labels to find out how sure is sure enough, and needs two labels of every class."
        )
    order = sure.argsort(descending=True)
    precision = right[order].double().cumsum(0) / torch.arange(1, len(order) + 1)
    # Equally sure labels lie on one side of a threshold, so only the last of them can be the cut.
    is_last = torch.ones_like(right)
    is_last[:-1] = sure[order[1:]] < sure[order[:-1]]
    enough = ((precision >= target) & is_last).nonzero().flatten()
    if not len(enough):
        return {"threshold": None, "precision": None, "num_hidden": len(sure), "num_above": 0, "interval": None}
    last = int(enough[-1])
    num_above = last + 1
    num_right = int(right[order[:num_above]].sum())
    return {
        "threshold": float(sure[order[last]]),
        "precision": num_right / num_above,
        "num_hidden": len(sure),
        "num_above": num_above,
        "interval": list(wilson_interval(num_right, num_above)),
    }


def _tell_threshold(found: Mapping[str, Any], target: float, written: int, total: int) -> None:
    if found["threshold"] is None:
        print(
            f"\nNo confidence reached {100 * target:.1f} % precision on the {found['num_hidden']} given labels, hidden "
            "in turn: only given labels were written. Label more, or aim lower."
        )
        return
    low, high = found["interval"]
    print(
        f"\nAt a confidence of {found['threshold']:.3f} and more, {100 * found['precision']:.1f} % of "
        f"{found['num_above']} hidden labels were right (95 % interval {100 * low:.1f} - {100 * high:.1f}):\n"
        f"{written:,} of {total:,} items ({100 * written / total:.1f} %) got a label."
    )
    if found["num_above"] < LEAST_SURE:
        print(f"That is little to go by: {found['num_above']} labels. Label more before you rely on it.")


def _write_predictions(
    items: "EmbeddedItems",
    names: list[str],
    predicted: "Tensor",
    confidence: "Tensor",
    is_given: "Tensor",
    model: "LabelSpreadingClassifier",
    threshold: Mapping[str, Any] | None,
    folder: Path,
) -> int:
    """Write predictions.csv; below the threshold the label stays empty. Return how many have one."""
    least = 0.0
    if threshold is not None:
        least = 2.0 if threshold["threshold"] is None else threshold["threshold"]
    is_lost = ~model.is_reached_
    rows, written = [], 0
    for row, item in enumerate(items.items):
        is_sure = bool(is_given[row]) or float(confidence[row]) >= least
        status = "given" if is_given[row] else "unreached" if is_lost[row] else "pseudo"
        written += is_sure
        rows.append([item, names[int(predicted[row])] if is_sure else "", f"{float(confidence[row]):.4f}", status])
    items.write_table(folder / "predictions.csv", ["item", "label", "confidence", "status"], rows)
    return written


def _describe(
    items: "EmbeddedItems",
    names: list[str],
    label: "Tensor",
    predicted: "Tensor",
    confidence: "Tensor",
    model: "LabelSpreadingClassifier",
    options: argparse.Namespace,
) -> dict[str, Any]:
    """Return what the report shows: data, graph, class counts, pictures and the map."""
    import torch
    from torch.nn.functional import normalize

    from lspread.cli.items import texts_of
    from lspread.graph import normalize_graph
    from lspread.lit.advice import advise, choose_shown, missing_advice
    from lspread.lit.outcome import draw_map
    from lspread.lit.run_folder import package_versions
    from lspread.typing import UNLABELED

    is_given = label != UNLABELED
    labeled, unlabeled = is_given.nonzero().flatten(), (~is_given).nonzero().flatten()
    is_cosine = (options.metric or items.metric) == "cosine"
    z = normalize(items.embedding, dim=1) if is_cosine else items.embedding
    advice = advise(z, normalize_graph(model.graph_), label, names, num_shown=NUM_SHOWN, seed=options.seed)
    chosen = {**choose_shown(confidence, predicted, label, unlabeled, NUM_SHOWN), **advice}
    texts = texts_of(items)

    def show(row: int, note: str | None) -> dict[str, Any]:
        shown = _picture(items, row, names[int(predicted[row])], float(confidence[row]), options.output)
        return {**shown, "note": note, "text": None if texts is None else texts[row]}

    def count(rows: "Tensor") -> list[int]:
        return torch.bincount(predicted[rows], minlength=len(names)).tolist()

    return {
        "data": {
            "name": Path(items.root).name,
            "kind": items.kind,
            "num_items": len(label),
            "num_classes": len(names),
            "class_names": names,
            "num_labeled": len(labeled),
            "num_unlabeled": len(unlabeled),
            "image_shape": _picture_shape(items),
        },
        "graph": {
            "k": options.k,
            "metric": options.metric or items.metric,
            "alpha": str(options.alpha),
            "num_edges": model.graph_.num_edges,
            "num_unreached": model.n_unreached_,
            "num_steps": model.n_iter_,
            "status": "converged" if model.converged_ else "max_steps",
            "embeddings": items.made_by.get("features", ""),
        },
        "class_counts": {"given": count(labeled), "predicted": count(unlabeled), "true": None},
        **{kind: [show(row, note) for row, note in rows] for kind, rows in chosen.items()},
        "not_sought": missing_advice(advice),
        "map": draw_map(items.embedding, predicted, confidence, is_given, torch.arange(len(label)), seed=options.seed),
        "versions": package_versions(),
    }


def _picture_shape(items: "EmbeddedItems") -> list[int] | None:
    if items.kind != "image":
        return None
    from PIL import Image

    try:
        with Image.open(Path(items.root) / items.items[0]) as image:
            return [len(image.getbands()), image.height, image.width]
    except OSError:  # moved, or embedded on another machine
        return None


def _picture(items: "EmbeddedItems", row: int, label: str, confidence: float, folder: Path) -> dict[str, Any]:
    """Return one item to show, and write its thumbnail where it is an image that can be read here."""
    thumbnail = None
    if items.kind == "image":
        import numpy as np
        import torch

        from lspread.data import decode_image
        from lspread.lit.run_folder import save_thumbnail

        with contextlib.suppress(OSError, DataError):
            image = decode_image(Path(items.root) / items.items[row], 160, 3, window="image")
            (folder / "thumbnails").mkdir(exist_ok=True)
            save_thumbnail(folder / f"thumbnails/{row:06d}.png", torch.as_tensor(np.asarray(image)))
            thumbnail = f"thumbnails/{row:06d}.png"
    return {
        "item": items.items[row],
        "index": row,
        "label": label,
        "confidence": round(confidence, 4),
        "true_label": None,
        "thumbnail": thumbnail,
    }
