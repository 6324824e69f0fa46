"""Accuracies of several runs in one figure."""

from collections.abc import Mapping, Sequence
from pathlib import Path

__all__ = ["draw_comparison"]


def draw_comparison(
    names: Sequence[str],
    table: Sequence[Mapping[str, tuple[float, tuple[float, float] | None]]],
    columns: Sequence[str],
    path: Path,
) -> Path:
    """Draw a panel for each column and a dot with its interval for each run, and write a file.

    Args:
        names: Of the runs, from top to bottom.
        table: For each run, accuracy in [0, 1] and its interval by column; a missing column stays empty.
        columns: Panels, from left to right.
        path: The file; its name ends in .png, .pdf or .svg.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(2.2 + 2.4 * len(columns), 1.2 + 0.35 * len(names)), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(1, len(columns), sharey=True, squeeze=False)[0]
    for axes, column in zip(panels, columns, strict=True):
        for place, row in enumerate(table):
            if column not in row:
                continue
            accuracy, interval = row[column]
            if interval is not None:
                axes.plot([100 * interval[0], 100 * interval[1]], [place, place], color="tab:gray", linewidth=1.5)
            axes.plot(100 * accuracy, place, "o", color="tab:green")
        axes.set(title=column, xlabel="accuracy, %")
        axes.grid(axis="x", alpha=0.3)
    panels[0].set_yticks(range(len(names)), names)
    panels[0].set_ylim(len(names) - 0.5, -0.5)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    return path
