"""The last lines of a run: a table of accuracies, and the files that it wrote."""

import textwrap
from pathlib import Path

from lspread.report import Results, read_results, summarize

__all__ = ["format_summary", "print_summary"]

_SETS = {"unlabeled": "unlabeled", "val": "validation", "test": "test"}
_FILES = {
    "report.html": "open it in a browser",
    "predictions.csv": "a label and a confidence for every item",
    "model.safetensors": "the trained weights; model.json says how to load them",
    "graph_head.safetensors": "embeddings that label new images: lspread predict RUN IMAGES --head graph",
    "metrics.csv": "losses and accuracies per epoch",
    "config.yaml": "the settings, ready for another run",
    "checkpoints/last.ckpt": "to resume or predict: lspread predict RUN",
}


def print_summary(run_dir: str | Path) -> None:
    """Print what came out of a finished run."""
    print(format_summary(run_dir))


def format_summary(run_dir: str | Path) -> str:
    """Accuracy of our methods and of the baselines, the report's first sentence, and the files of the run."""
    folder = Path(run_dir)
    results = read_results(folder)
    summary = summarize(results)
    lines = ["", *_table(results)]
    for sentence in (summary.headline, *summary.notes):
        lines += textwrap.wrap(sentence, 100)
    lines += ["", f"Files in {folder}:"]
    files = [(name, text) for name, text in _texts(folder, results).items() if (folder / name).exists()]
    width = max(len(str(folder / name)) for name, _ in files)
    lines += [f"  {folder / name!s:<{width}}  {text}" for name, text in files]
    num_kept = results.graph.get("head_rows", 0)
    num_reached = results.num_labeled + results.num_unlabeled - results.graph.get("num_unreached", 0)
    if 0 < num_kept < num_reached:
        lines += [f"graph_head.safetensors keeps {num_kept:,} of {num_reached:,} training images (--graph_head_rows)."]
    return "\n".join(lines)


def _texts(folder: Path, results: Results) -> dict[str, str]:
    """Return what to say of each file: which new items a run can label depends on what it was trained on."""
    if results.is_image:
        return _FILES
    from lspread.data.row_encoder import ENCODER_FILE

    graph_head = "graph_head.safetensors"
    if (folder / ENCODER_FILE).is_file():
        return _FILES | {
            graph_head: "embeddings that label new rows: lspread predict RUN NEW.csv --head graph",
            ENCODER_FILE: "what makes rows into numbers; labels of new rows: lspread predict RUN NEW.csv",
        }
    return _FILES | {graph_head: "embeddings and their labels: lspread.lit.load_graph_classifier(RUN)"}


def _table(results: Results) -> list[str]:
    rows: list[tuple[str, str, str, str]] = []
    for score in results.scores:
        interval = "" if score.interval is None else f"{100 * score.interval[0]:.1f} - {100 * score.interval[1]:.1f}"
        rows.append(
            (
                score.method,
                f"{_SETS.get(score.on, score.on)} {results.noun} ({score.num_items:,})",
                f"{100 * score.accuracy:.1f} %",
                interval,
            )
        )
    for check in results.given_checks:
        on = f"given labels, hidden in turn ({check.num_items:,})"
        rows.append((check.method, on, f"{100 * check.accuracy:.1f} %", ""))
    if not rows:
        return []
    head = ("method", "right on", "accuracy", "95 % interval")
    widths = [max(len(row[i]) for row in [head, *rows]) for i in range(4)]
    lines = [
        f"{a:<{widths[0]}}  {b:<{widths[1]}}  {c:>{widths[2]}}  {d:>{widths[3]}}".rstrip()
        for a, b, c, d in [head, *rows]
    ]
    return [lines[0], "-" * max(map(len, lines)), *lines[1:], ""]
