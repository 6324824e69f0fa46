"""`lspread suggest`: what to label next."""

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lspread.cli.items import LABELS_HELP, check_folder
from lspread.errors import ConfigError, DataError

if TYPE_CHECKING:
    from torch import Tensor

    from lspread.active import Acquisition

__all__ = ["run"]

STRATEGIES = ("auto", "coverage", "probcover", "typiclust", "vopt", "margin", "entropy", "random")
_WITHOUT_ALPHA = ("probcover", "typiclust", "random")
SHEET_COLUMNS = 8


def run(command: str, argv: list[str]) -> int:
    """Write which items to label next, with reasons, and a sheet of their pictures."""
    parser = argparse.ArgumentParser(
        prog=f"lspread {command}",
        allow_abbrev=False,
        description="Choose the items whose labels would help most; works without a single label.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="""strategies:
  coverage   items that speak for as many others as possible (over the graph); the default while labels are few
  margin     items between two classes; the default from five labels per class on
  auto       one of the two, by the number of labels
  probcover  items with the most others within a radius; typiclust: the most typical item of each cluster
  vopt       items whose answers leave the least variance; entropy: items whose class is least clear; random

examples:
  lspread suggest photos.safetensors -n 20
  lspread suggest photos.safetensors --labels labels.csv -n 20 -o next/
  The chosen items stand in suggestions.csv with an empty column `label`: fill it, and it is a labels file.""",
    )
    parser.add_argument("embeddings", type=Path, help="a file of `lspread embed`")
    parser.add_argument("--labels", type=Path, help=LABELS_HELP)
    parser.add_argument("-n", "--num", type=int, default=10, help="how many items (default: 10)")
    parser.add_argument("-o", "--output", type=Path, default=Path("suggestions"), help="folder (default: suggestions/)")
    parser.add_argument("--strategy", choices=STRATEGIES, default="auto")
    parser.add_argument(
        "--num-classes",
        type=int,
        help="classes, also those without a label yet (default: those of the labels, else 10)",
    )
    parser.add_argument(
        "--alpha",
        type=float,
        help="how far labels spread; default: 0.98 for coverage, 0.99 for margin, entropy and vopt",
    )
    parser.add_argument("--seed", type=int, default=0)
    from lspread.cli.items import add_graph_options, graph_of, read_labels, sheet_picture

    add_graph_options(parser)
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of sentences")
    options = parser.parse_args(argv)
    check_folder(options.output)

    if options.alpha is not None and options.strategy in _WITHOUT_ALPHA:
        parser.error(f"--alpha is for strategies that spread labels; {options.strategy} does not.")
    table = options.output / "suggestions.csv"
    _check_unfilled(table)

    from lspread.active import make_pool
    from lspread.data import EmbeddedItems
    from lspread.graph import normalize_graph
    from lspread.report import draw_contact_sheet
    from lspread.typing import UNLABELED

    items = EmbeddedItems.load(options.embeddings)
    label, names = read_labels(items, options.labels)
    num_classes = max(len(names), options.num_classes or (0 if names else 10))
    names = names + [f"class {c}" for c in range(len(names), num_classes)]
    z = items.embedding if (options.metric or items.metric) == "euclidean" else _unit(items.embedding)
    alpha = {} if options.alpha is None else {"alpha": options.alpha}  # each strategy has a default of its own
    pool = make_pool(z, normalize_graph(graph_of(items, options)), label, len(names), **alpha)
    found = _strategy(options.strategy, options.seed, alpha)(pool, options.num)
    rows = found.index.tolist()
    reasons = found.name_classes(names)
    column = "file" if items.kind == "image" else "item"
    lines = [
        [items.items[row], reason, f"{score:.6g}"]
        for row, reason, score in zip(rows, reasons, found.score.tolist(), strict=True)
    ]
    items.write_table(options.output / "reasons.csv", [column, "reason", "score"], lines)
    items.write_table(table, [column, "label"], [[items.items[row], ""] for row in rows])
    files = [str(table), str(options.output / "reasons.csv")]
    if items.kind == "image":
        pictures = [sheet_picture(items, row, f"{place + 1}.") for place, row in enumerate(rows)]
        sheet = [pictures[at : at + SHEET_COLUMNS] for at in range(0, len(pictures), SHEET_COLUMNS)]
        files.append(str(draw_contact_sheet(sheet, options.output / "suggestions.png")))
    if options.json:
        asked = [{"item": line[0], "reason": line[1], "score": float(line[2])} for line in lines]
        print(json.dumps({"suggestions": asked, "files": files}))
        return 0
    print(f"{len(rows)} of {int((label == UNLABELED).sum()):,} items without label, by strategy '{options.strategy}':")
    for line in lines[:20]:
        print(f"  {line[0]}    {line[1]}")
    if len(lines) > 20:
        print(f"  ... and {len(lines) - 20} more")
    print("wrote " + ", ".join(files))
    print(f"next: fill the column `label` of {table} and add its rows to your labels file")
    return 0


def _check_unfilled(table: Path) -> None:
    """Refuse to write over labels that somebody filled in."""
    if not table.exists() or not table.stat().st_size:
        return
    from lspread.data.columns import read_columns

    try:
        cells = read_columns(table, errors="surrogateescape").cells
        is_filled = "label" not in cells or any(cell.strip() for cell in cells["label"])
    except DataError:
        is_filled = True
    if is_filled:
        raise ConfigError(
            f"{table} holds labels that were filled in, or something else than suggestions, and would be replaced. "
            "Choose another folder with -o, or move the file."
        )


def _unit(z: "Tensor") -> "Tensor":
    from torch.nn.functional import normalize

    return normalize(z, dim=1)


def _strategy(name: str, seed: int, alpha: dict[str, Any]) -> "Acquisition":
    from lspread.active import Auto, Coverage, Entropy, Margin, ProbCover, Random, TypiClust, VOptimality

    make: dict[str, Callable[[], Acquisition]] = {
        "auto": lambda: Auto(seed=seed, **alpha),
        "coverage": lambda: Coverage(seed=seed, **alpha),
        "probcover": lambda: ProbCover(seed=seed),
        "typiclust": lambda: TypiClust(seed=seed),
        "vopt": lambda: VOptimality(seed=seed, **alpha),
        "margin": Margin,
        "entropy": Entropy,
        "random": lambda: Random(seed),
    }
    return make[name]()
