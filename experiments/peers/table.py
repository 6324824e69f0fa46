"""From rows to what people read: tables on the screen and in Markdown, bars, the growth plot."""

import math
import operator
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from rich.console import Console
from rich.table import Table

from .contest import Row

COLUMNS = ("contestant", "median", "least", "turns", "x ours", "of limit", "peak MiB", "quality")
FIT_FROM = 10_000
"""Growth exponents count from here on: below, start-up costs of every call hide the growth."""


class Board:
    """All rows of a run, found by task and name."""

    def __init__(self, rows: list[Row], machine: dict[str, Any]) -> None:
        self.rows, self.machine = rows, machine

    def ours(self, task: str) -> Row | None:
        """The row that ratios of a task are taken to."""
        return next((row for row in self.rows if row.task == task and row.is_ours and row.seconds), None)

    def row(self, task: str, name: str) -> Row | None:
        """The row of a contestant, where it ran."""
        return next((row for row in self.rows if row.task == task and row.name == name and row.seconds), None)

    def ratio(self, row: Row) -> float | None:
        """Median time over ours."""
        ours = self.ours(row.task)
        return row.median / ours.median if ours and ours.median and row.median else None

    def share_of_limit(self, row: Row) -> str:
        """Least work over what the machine could have done in that time."""
        rates = {"GFLOP": ("float32 GEMM, GFLOP/s", "GEMM"), "GB": ("triad, GB/s", "triad")}
        found = []
        for kind, work in row.limit.items():
            key, name = rates[kind]
            if row.median and isinstance(self.machine.get(key), float):
                found.append(f"{work / row.median / self.machine[key]:.0%} {name}")
        return ", ".join(found)

    def growth(self) -> dict[str, list[tuple[int, float]]]:
        """Sizes and medians of every contestant of the growth section; the million counts where names agree."""
        points: dict[str, dict[int, float]] = {}
        for row in self.rows:
            if row.section == "growth" and row.median:
                points.setdefault(row.name, {})[row.size] = row.median
        for row in self.rows:
            if row.section == "million" and row.median and row.name in points:
                points[row.name].setdefault(row.size, row.median)
        return {name: sorted(found.items()) for name, found in points.items()}

    def exponent(self, name: str, start: int = FIT_FROM) -> float | None:
        """Slope of log time over log n by least squares, from `start` on."""
        points = [(size, seconds) for size, seconds in self.growth().get(name, []) if size >= start]
        if len(points) < 2:
            return None
        sizes, seconds = np.log(np.array(points)).T
        return float(np.polyfit(sizes, seconds, 1)[0])


@dataclass(frozen=True)
class Bar:
    """A promise with a number.

    Attributes:
        text: What is promised.
        figure: Takes it from the board, None where it was not measured.
        sense: On which side of `threshold` the figure must lie.
        threshold: The number.
    """

    text: str
    figure: Callable[[Board], float | None]
    sense: Literal[">=", "<="]
    threshold: float

    def judge(self, board: Board) -> dict[str, Any]:
        """Return text, figure, threshold and the verdict."""
        figure = self.figure(board)
        compare = operator.ge if self.sense == ">=" else operator.le
        verdict = "not measured" if figure is None else "pass" if compare(figure, self.threshold) else "FAIL"
        return {
            "bar": self.text,
            "figure": figure,
            "sense": self.sense,
            "threshold": self.threshold,
            "verdict": verdict,
        }


def ratio_to(task: str, peer: str) -> Callable[[Board], float | None]:
    """How many times longer than ours the peer takes."""

    def figure(board: Board) -> float | None:
        row = board.row(task, peer)
        return board.ratio(row) if row else None

    return figure


def ours_over(task: str, peer: str) -> Callable[[Board], float | None]:
    """How many times longer than the peer ours takes."""

    def figure(board: Board) -> float | None:
        found = ratio_to(task, peer)(board)
        return 1 / found if found else None

    return figure


def value_of(task: str, name: str) -> Callable[[Board], float | None]:
    """What the judge said about ours; "seconds" and "peak" (MiB) are known too."""

    def figure(board: Board) -> float | None:
        ours = board.ours(task)
        if ours is None:
            return None
        return {"seconds": ours.median, "peak": ours.peak}.get(name, ours.values.get(name))

    return figure


def points_ahead(task: str, peer: str) -> Callable[[Board], float | None]:
    """Accuracy of ours minus the peer's, in points, over the draws that both had."""

    def figure(board: Board) -> float | None:
        ours, other = board.ours(task), board.row(task, peer)
        if ours is None or other is None:
            return None
        pairs = list(zip(ours.values["accuracy by turn"], other.values["accuracy by turn"], strict=False))
        return 100 * float(np.mean([a - b for a, b in pairs]))

    return figure


def exponent_of(*names: str) -> Callable[[Board], float | None]:
    """Growth exponent of the first of these contestants that was measured at a million or, in a quick run, at all."""

    def figure(board: Board) -> float | None:
        growth = board.growth()
        largest = max((points[-1][0] for points in growth.values()), default=0)
        reached = [name for name in names if name in growth and growth[name][-1][0] == largest]
        return board.exponent(reached[0]) if reached else None

    return figure


def show_seconds(seconds: float | None) -> str:
    if seconds is None:
        return ""
    if seconds < 0.9995:
        return f"{1e3 * seconds:.3g} ms"
    return f"{seconds:.3g} s" if seconds < 100 else f"{seconds:.0f} s"


def show_values(values: dict[str, Any]) -> str:
    parts = []
    for name, value in values.items():
        if name.endswith("by turn"):
            continue
        if name in ("recall", "accuracy"):
            parts.append(f"{name} {value:.5f}" if name == "recall" else f"{name} {100 * value:.2f} %")
        elif name == "status":
            parts.extend([] if value == "converged" else [str(value)])
        else:
            parts.append(f"{name} {value:.2g}" if isinstance(value, float) else f"{name} {value}")
    return ", ".join(parts)


def cells(row: Row, board: Board) -> tuple[str, ...]:
    """Return what the columns show for a row."""
    if not row.seconds:
        return (row.name, row.note or "did not run", *[""] * 6)
    ratio = board.ratio(row)
    return (
        row.name,
        show_seconds(row.median),
        show_seconds(min(row.seconds)),
        str(len(row.seconds)),
        "1" if row.is_ours else "" if ratio is None else f"{ratio:.2f}",
        board.share_of_limit(row),
        "" if row.peak is None else f"{row.peak:,.0f}",
        show_values(row.values) + (f" ({row.note})" if row.note else ""),
    )


def print_task(console: Console, rows: list[Row], board: Board) -> None:
    table = Table(title=rows[0].title, title_justify="left", title_style="bold")
    for number, column in enumerate(COLUMNS):
        table.add_column(column, justify="right" if 0 < number < 7 else "left")
    for row in rows:
        table.add_row(*cells(row, board), style="green" if row.is_ours else "" if row.seconds else "yellow")
    console.print(table)


def print_bars(console: Console, verdicts: list[dict[str, Any]]) -> None:
    table = Table(title="Bars", title_justify="left", title_style="bold")
    for column in ("bar", "figure", "needed", "verdict"):
        table.add_column(column, justify="left" if column == "bar" else "right")
    styles = {"pass": "green", "FAIL": "bold red"}
    for found in verdicts:
        table.add_row(*bar_cells(found), style=styles.get(found["verdict"], "yellow"))
    console.print(table)


def bar_cells(found: dict[str, Any]) -> tuple[str, str, str, str]:
    figure = found["figure"]
    shown = "" if figure is None else f"{figure:.5f}" if 0.9 < figure < 1 else f"{figure:.3g}"
    return found["bar"], shown, f"{found['sense']} {found['threshold']:g}", found["verdict"]


def markdown_table(header: tuple[str, ...], lines: list[tuple[str, ...]], *, numeric: range) -> str:
    rule = ["--:" if number in numeric else "---" for number in range(len(header))]
    escaped = [[cell.replace("|", "\\|") for cell in line] for line in lines]
    return "\n".join("| " + " | ".join(line) + " |" for line in [list(header), rule, *escaped])


def rate_lines(machine: dict[str, Any]) -> list[str]:
    """Return the machine's rates; their names end in their unit."""
    return [
        f"{name.removesuffix(f', {unit}')} {value:,.0f} {unit}" if isinstance(value, float) else f"{name}: {value}"
        for name, value in machine.items()
        for unit in ("GFLOP/s", "GOP/s", "GB/s")
        if name.endswith(f", {unit}")
    ]


def exponent_lines(board: Board) -> list[tuple[str, str, str, str]]:
    """Return name, range, exponent from `FIT_FROM` on and over the whole range."""
    lines = []
    for name, points in board.growth().items():
        late, whole = board.exponent(name), board.exponent(name, 0)
        lines.append(
            (
                name,
                f"{points[0][0]:,} to {points[-1][0]:,}",
                "" if late is None else f"{late:.2f}",
                "" if whole is None else f"{whole:.2f}",
            )
        )
    return lines


def to_markdown(
    board: Board, verdicts: list[dict[str, Any]], notes: list[str], skipped: dict[str, str], *, plot: str | None
) -> str:
    """Return the whole page."""
    parts = ["# The core against its peers", *notes]
    parts.append("Limits measured in the same run: " + "; ".join(rate_lines(board.machine)) + ".")
    header = ("bar", "figure", "needed", "verdict")
    parts += ["## Bars", markdown_table(header, [bar_cells(found) for found in verdicts], numeric=range(1, 3))]
    for section in dict.fromkeys([*(row.section for row in board.rows), *skipped]):
        parts.append(f"## {section.capitalize()}")
        if section in skipped:
            parts.append(f"Skipped: {skipped[section]}")
        tasks = dict.fromkeys(row.task for row in board.rows if row.section == section)
        for task in tasks:
            rows = [row for row in board.rows if row.task == task]
            parts.append(f"**{rows[0].title}**")
            parts.append(markdown_table(COLUMNS, [cells(row, board) for row in rows], numeric=range(1, 7)))
        if section == "growth" and tasks:
            header = ("contestant", "n", f"exponent, n >= {FIT_FROM:,}", "exponent, all n")
            parts.append("Time grows as n to the power of:")
            parts.append(markdown_table(header, exponent_lines(board), numeric=range(2, 4)))
            if plot:
                parts.append(f"![time over n]({plot})")
    return "\n\n".join(parts) + "\n"


def plot_growth(board: Board, path: Path) -> None:
    """Draw seconds over n for every contestant, both axes logarithmic."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(6.4, 4.2), layout="constrained")
    for name, points in board.growth().items():
        exponent = board.exponent(name)
        label = name if exponent is None or not math.isfinite(exponent) else f"{name} (n^{exponent:.2f})"
        axes.loglog(
            *zip(*points, strict=True), marker="o", markersize=3.5, linewidth=1 + ("lspread" in name), label=label
        )
    axes.set(xlabel="items n", ylabel="seconds, features to labels")
    axes.grid(alpha=0.3, which="both")
    axes.legend(fontsize=7.5)
    figure.savefig(path, dpi=100)
    plt.close(figure)
