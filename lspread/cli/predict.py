"""`lspread predict`: labels for new images or rows by a finished run; without new ones, for the run's own data."""

import argparse
import csv
import json
import sys
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from lspread.cli.items import check_folder
from lspread.errors import ConfigError, DataError

if TYPE_CHECKING:
    from torch import Tensor

    from lspread.cli.new_items import NewItems
    from lspread.lit import GraphHead
    from lspread.lit.saved_model import SavedClassifier

__all__ = ["run"]

NUM_SHOWN = 10
"""Classes that the summary counts by name, the commonest."""
SOURCE_FILE = "source.txt"
"""Beside predictions.csv: the path of the images or rows that it is about."""
_OWN_OPTIONS = ("-o", "--output", "--head", "--id", "--batch-size", "--device", "--json")


def run(command: str, argv: list[str]) -> int:
    """Label new items, or hand over to the training loop where only a run or settings are named."""
    if not _names_new_items(argv):
        from lspread.cli import loop

        return loop.run(command, argv)
    parser = _parser(command)
    names = [argument.partition("=")[0] for argument in argv]
    if "--data.test_csv" in names:
        wrong = ", ".join(dict.fromkeys(name for name in names if name in _OWN_OPTIONS))
        if wrong:
            parser.error(
                f"{wrong} cannot stand beside --data.test_csv, which adds rows to the run's own data: leave out "
                f"{wrong}, or label the new rows alone with `lspread predict RUN NEW.csv`."
            )
    options = parser.parse_args(argv)
    if options.batch_size < 1:
        raise ConfigError(f"--batch-size must be at least 1; got {options.batch_size}.")
    return _predict(options)


def _names_new_items(argv: list[str]) -> bool:
    """Whether these arguments are for new items (or ask for help), and not for Lightning's `predict`."""
    if any(argument in ("-h", "--help") or argument.partition("=")[0] in _OWN_OPTIONS for argument in argv):
        return True
    return len(argv) > 1 and not argv[0].startswith("-") and not argv[1].startswith("-")


def _parser(command: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=f"lspread {command}",
        description="Label new images, or new rows of a CSV file, by a finished run. They are made into what its\n"
        "network takes as the run's own were; nothing but the run's folder is needed.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
        epilog="""heads:
  classifier  the trained network (default: its answers are those of the run's own predictions.csv)
  graph       a vote of the nearest training items, with the labels that the graph spread to them; its confidence is
              the share of the votes, which is lower than the classifier's for equally right answers

predictions.csv has the columns file (item for rows), label, confidence, head and far. far is "yes" for an item that is
further away from its nearest training items than 99 % of these are from theirs: nothing in training looked like it. It
stays empty where the run keeps no training embeddings (graph_head.safetensors).

without NEW:
  lspread predict RUN               every item of the run's own data, to RUN/predict.csv; takes the settings of
                                    `lspread fit` (--data.root ..., --help-all)

examples:
  lspread predict runs/20260101-120000-photos new/
  lspread predict runs/20260101-120000-photos new/ --head graph -o answers/
  lspread predict runs/20260101-120000-photos one.jpg --json
  lspread predict runs/20260101-120000-mails new.csv             (rows with the columns that the run was trained on)""",
    )
    parser.add_argument("run", type=Path, metavar="RUN", help="a folder of a finished run")
    parser.add_argument(
        "source",
        type=Path,
        metavar="NEW",
        help="a folder of images, searched with its subfolders, or one image; a CSV file for a run on texts or a table",
    )
    parser.add_argument(
        "-o",
        "--output",
        type=Path,
        help="folder to write; default: RUN/predictions-<name of NEW>, and -graph behind it with --head graph",
    )
    parser.add_argument("--head", choices=("classifier", "graph"), default="classifier", help="who answers (see below)")
    parser.add_argument("--id", metavar="COLUMN", help="column that names rows; default: the run's")
    parser.add_argument("--batch-size", type=int, default=256)
    parser.add_argument("--device", default="auto", help="cpu, cuda, mps or auto (default)")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of sentences")
    return parser


@dataclass
class _Answers:
    """What the run says about the items that could be read, in order, and the others."""

    name: list[str] = field(default_factory=list)
    label: list[str] = field(default_factory=list)
    confidence: list[float] = field(default_factory=list)
    far: list[bool] = field(default_factory=list)  # empty without a graph head
    unreadable: list[tuple[Path, str]] = field(default_factory=list)


def _predict(options: argparse.Namespace) -> int:
    from lspread.cli.new_items import open_new_items
    from lspread.lit.graph_head import GRAPH_HEAD_FILE, load_graph_head
    from lspread.lit.saved_model import load_classifier

    source = options.source.resolve()
    folder = _choose_folder(options, source)
    model = load_classifier(options.run)
    has_graph = options.head == "graph" or (options.run / GRAPH_HEAD_FILE).is_file()
    graph = load_graph_head(options.run) if has_graph else None
    new = open_new_items(options.source, options.run, model, options.id)
    answers = _ask(new, model, graph, options)
    for path, reason in answers.unreadable:
        print(f"left out, unreadable: {path}: {reason}", file=sys.stderr)
    if not answers.name:
        raise DataError(f"None of the {len(answers.unreadable)} image files of {options.source} can be read.")
    table = _write_table(folder, new, answers, options.head)
    (folder / SOURCE_FILE).write_text(f"{source}\n", encoding="utf-8", errors="surrogateescape")
    counts = Counter(answers.label)
    if options.json:
        facts = {
            "output": str(table),
            "head": options.head,
            "num_images" if new.kind == "image" else "num_rows": len(answers.name),
            "labels": {name: counts[name] for name in model.class_names},
            "mean_confidence": round(sum(answers.confidence) / len(answers.name), 4),
            "num_far": sum(answers.far) if graph is not None else None,
            "unreadable": [str(path) for path, _ in answers.unreadable],
        }
        print(json.dumps(facts))
        return 0
    _tell(new, answers, counts, options, has_graph=graph is not None)
    print(f"wrote {table}")
    return 0


def _choose_folder(options: argparse.Namespace, source: Path) -> Path:
    """Return the folder to write.

    Raises:
        ConfigError: It is a file or the run itself, or holds a predictions.csv that was not made from `source`.
    """
    name = source.stem if source.is_file() else source.name
    default = f"predictions-{name}{'-graph' if options.head == 'graph' else ''}"
    folder: Path = options.output or options.run / default
    check_folder(folder)
    if folder.resolve() == options.run.resolve():
        raise ConfigError(f"-o {folder} is the run itself; choose another folder.")
    note = folder / SOURCE_FILE
    earlier = note.read_text(encoding="utf-8", errors="surrogateescape").strip() if note.is_file() else None
    if (folder / "predictions.csv").exists() and earlier != str(source):
        made = "not of this command" if earlier is None else f"of {earlier}"
        raise ConfigError(
            f"{folder / 'predictions.csv'} is {made}, and would be replaced by the labels of {source}. "
            "Name another folder with -o, or remove it."
        )
    return folder


def _ask(new: "NewItems", model: "SavedClassifier", graph: "GraphHead | None", options: argparse.Namespace) -> _Answers:
    import torch
    from rich.console import Console
    from rich.progress import track

    from lspread.cli.embed import pick_device

    device = pick_device(options.device)
    model.to(device)
    if graph is not None:
        graph.to(device)
    answers = _Answers()
    batches = torch.arange(len(new.names)).split(options.batch_size)
    is_watched = sys.stderr.isatty() and not options.json
    for rows in track(batches, description="predict", console=Console(stderr=True)) if is_watched else batches:
        image, read, failures = new.fetch(rows)
        answers.unreadable += failures
        if not len(read):
            continue
        probability, is_far = _answer(model, graph, image.to(device), options.head)
        confidence, label = probability.cpu().max(1)
        answers.name += [new.names[row] for row in read.tolist()]
        answers.label += [model.class_names[c] for c in label.tolist()]
        answers.confidence += confidence.tolist()
        answers.far += [] if is_far is None else is_far.tolist()
    return answers


def _answer(
    model: "SavedClassifier", graph: "GraphHead | None", image: "Tensor", head: str
) -> "tuple[Tensor, Tensor | None]":
    """Return class probabilities `(m, c)`, and which images are far from all training images where that is known."""
    import torch

    with torch.inference_mode():
        z = model.embed(image)
        if graph is None:
            return model.head(z).softmax(1), None
        voted, is_far = graph.vote(z)
        return (voted if head == "graph" else model.head(z).softmax(1)), is_far


def _write_table(folder: Path, new: "NewItems", answers: _Answers, head: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "predictions.csv"
    far = ["yes" if is_far else "no" for is_far in answers.far] or [""] * len(answers.name)
    # A file name may carry bytes that are no UTF-8; the escape keeps them readable back.
    with path.open("w", newline="", encoding="utf-8", errors="surrogateescape") as file:
        writer = csv.writer(file)
        writer.writerow(["file" if new.kind == "image" else "item", "label", "confidence", "head", "far"])
        for name, label, confidence, is_far in zip(answers.name, answers.label, answers.confidence, far, strict=True):
            writer.writerow([name, label, f"{confidence:.4f}", head, is_far])
    return path


def _tell(
    new: "NewItems", answers: _Answers, counts: "Counter[str]", options: argparse.Namespace, *, has_graph: bool
) -> None:
    num_items = len(answers.name)
    top = counts.most_common(NUM_SHOWN)
    shown = [f"{name}: {count:,}" for name, count in top]
    if len(counts) > NUM_SHOWN:
        shown.append(f"others: {num_items - sum(count for _, count in top):,}")
    mean = sum(answers.confidence) / num_items
    noun = new.noun if num_items == 1 else f"{new.noun}s"
    print(f"{num_items:,} {noun} of {options.source}, labeled by the {options.head} (mean confidence {mean:.2f})")
    print(f"  {', '.join(shown)}")
    if not has_graph:
        print("far is not known: the run keeps no training embeddings (`lspread fit RUN` adds them to an older run)")
    elif any(answers.far):
        print(f"{sum(answers.far):,} of them look like nothing in training (far = yes): check these labels")
