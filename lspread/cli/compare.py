"""`lspread compare`: several runs in one table and one figure."""

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING

from lspread.errors import DataError

if TYPE_CHECKING:
    from lspread.report import Results

__all__ = ["run"]

COLUMNS = (
    ("classifier", "test", "test"),
    ("classifier", "val", "validation"),
    ("classifier", "unlabeled", "unlabeled"),
    ("graph", "unlabeled", "unlabeled, graph"),
    ("knn", "unlabeled", "unlabeled, kNN"),
    ("logistic_regression", "unlabeled", "unlabeled, logistic"),
    ("graph", "given", "given, graph"),
    ("knn", "given", "given, kNN"),
    ("logistic_regression", "given", "given, logistic"),
)


def run(command: str, argv: list[str]) -> int:
    """Print the table and draw the figure."""
    parser = argparse.ArgumentParser(
        prog=f"lspread {command}",
        allow_abbrev=False,
        description="Accuracies of finished runs side by side, with intervals.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="examples:\n  lspread compare runs/a runs/b\n  lspread compare runs/* -o compare.png --json",
    )
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="folders of finished runs")
    parser.add_argument("-o", "--output", type=Path, default=Path("compare.png"), help="figure (default: compare.png)")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of a table")
    options = parser.parse_args(argv)
    if options.output.suffix.lower() not in (".png", ".pdf", ".svg"):
        parser.error(f"-o needs a name that ends in .png, .pdf or .svg; got {options.output}.")
    from lspread.report import draw_comparison, read_results

    results = [read_results(folder) for folder in options.runs]
    table = [_accuracies(one) for one in results]
    # Given labels are few, and a trained network knows them: they decide only where a run knows no other truth.
    needs_given = not all(one.scores for one in results)
    used = [title for _, on, title in COLUMNS if (on != "given" or needs_given) and any(title in row for row in table)]
    if not used:
        raise DataError(
            "none of these runs knows the truth of any item, nor has two given labels of every class to hide in turn, "
            "so that there is nothing to compare. Label more items, or set some aside for validation or test."
        )
    names = _short_names(options.runs)
    draw_comparison(names, table, used, options.output)
    if options.json:
        rows = [
            {"run": str(folder), "seed": one.seed, "num_labels": one.num_labeled, **{t: row[t][0] for t in row}}
            for folder, one, row in zip(options.runs, results, table, strict=True)
        ]
        print(json.dumps({"runs": rows, "figure": str(options.output)}))
        return 0
    width = max(len("run"), *map(len, names))
    print(f"{'run':<{width}}  {'labels':>6}" + "".join(f"  {title:>20}" for title in used) + f"  {'minutes':>7}")
    for name, one, row in zip(names, results, table, strict=True):
        cells = [f"{100 * row[title][0]:.1f}{_half_width(row[title][1])}" if title in row else "" for title in used]
        minutes = one.seconds.get("fit")
        spent = "" if minutes is None else f"{minutes / 60:.1f}"
        print(f"{name:<{width}}  {one.num_labeled:>6,}" + "".join(f"  {cell:>20}" for cell in cells) + f"  {spent:>7}")
    print("accuracy in %, with half the width of its 95 % interval")
    if any(title.startswith("given") for title in used):
        print(
            "given: given labels, each hidden in turn; a hint at best where they are few or a network has learned them"
        )
    print(f"wrote {options.output}")
    return 0


def _accuracies(results: "Results") -> dict[str, tuple[float, tuple[float, float] | None]]:
    found = {(score.key, score.on): (score.accuracy, score.interval) for score in results.scores}
    found |= {(check.key, "given"): (check.accuracy, check.interval) for check in results.given_checks}
    return {title: found[key, on] for key, on, title in COLUMNS if (key, on) in found}


def _half_width(interval: tuple[float, float] | None) -> str:
    return "" if interval is None else f" +- {50 * (interval[1] - interval[0]):.1f}"


def _short_names(folders: list[Path]) -> list[str]:
    """Return the last part of each path, or the whole path where two end alike."""
    last = [folder.resolve().name for folder in folders]
    return [name if last.count(name) == 1 else str(folder) for name, folder in zip(last, folders, strict=True)]
