"""The figures of a report, each drawn small enough to be read on a phone and grown by the page on a desk."""

import numpy as np
from markupsafe import Markup
from matplotlib import patheffects
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullFormatter

from .metrics import Curve, Metrics
from .results import Confusion, EmbeddingMap, Reliability, Score
from .summary import format_percent
from .svg import ACCENT, CARD, INK, LINE, MUTED, WARN, class_color, figure_style, short, to_svg

__all__ = [
    "draw_bars",
    "draw_map",
    "figure_bars",
    "figure_confusion",
    "figure_curves",
    "figure_map",
    "figure_reliability",
]

_WIDTH = 4.1
_CURVES = ("#4e79a7", "#f28e2b", "#59a14f", "#e15759", "#b07aa1", "#76b7b2", "#9c755f", "#d37295")


def figure_bars(scores: list[Score], name: str) -> Markup:
    """Draw accuracies on one set of items as bars from 0 to 100 % with their 95 % intervals."""
    with figure_style():
        figure = Figure((_WIDTH, 0.45 + 0.44 * len(scores)))
        axes = figure.add_axes((0.01, 0.3 / figure.get_figheight(), 0.79, 1 - 0.33 / figure.get_figheight()))
        draw_bars(axes, scores)
        return to_svg(figure, name)


def draw_bars(axes: Axes, scores: list[Score], *, ours: str = ACCENT, other: str = MUTED, size: float = 9) -> None:
    """Draw bars into axes: one's own methods in one color, baselines in another; names above, values at the right."""
    for row, score in enumerate(scores):
        color = ours if score.is_ours else other
        axes.barh(row, score.accuracy, height=0.34, color=color, alpha=1.0 if score.is_ours else 0.55, linewidth=0)
        if score.interval is not None:
            low, high = score.interval
            axes.plot((low, high), (row, row), color=INK, linewidth=1.3, solid_capstyle="butt")
            axes.plot(
                (low, low, np.nan, high, high),
                (row - 0.1, row + 0.1, np.nan, row - 0.1, row + 0.1),
                color=INK,
                linewidth=1.3,
            )
        weight = "bold" if score.is_ours else "normal"
        axes.text(0, row - 0.25, short(score.method, 52), ha="left", va="bottom", color=INK, size=size)
        axes.text(
            1.03, row, format_percent(score.accuracy), ha="left", va="center", color=INK, size=size + 1, weight=weight
        )
    axes.set_ylim(len(scores) - 0.65, -0.8)
    axes.set_xlim(0, 1)
    axes.set_yticks([])
    axes.set_xticks([0, 0.25, 0.5, 0.75, 1], labels=["0", "25", "50", "75", "100 %"])
    axes.tick_params(colors=MUTED, length=0, labelsize=size - 1)
    axes.xaxis.grid(True, color=LINE, linewidth=0.8)
    axes.set_axisbelow(True)
    for spine in axes.spines.values():
        spine.set_visible(False)


def figure_map(points: EmbeddingMap, class_names: list[str], name: str) -> Markup:
    """Draw the embeddings, colored by class: the paler, the less certain; given labels as stars."""
    with figure_style():
        figure = Figure((_WIDTH, 3.5))
        axes = figure.add_axes((0.01, 0.01, 0.98, 0.98))
        draw_map(axes, points, class_names)
        return to_svg(figure, name)


def draw_map(
    axes: Axes, points: EmbeddingMap, class_names: list[str], *, ink: str = INK, card: str = CARD, size: float = 7
) -> None:
    """Draw an embedding map into axes, with class names at the middle of their points where they are few."""
    num_classes = len(class_names)
    palette = np.asarray([to_rgb(class_color(c, num_classes)) for c in range(-1, num_classes)])
    rgba = np.column_stack([palette[points.label + 1], 0.35 + 0.6 * points.confidence])
    free = ~points.given
    axes.scatter(points.x[free], points.y[free], s=size * 1.1, c=rgba[free], linewidths=0)
    rgba[:, 3] = 1.0
    given = points.given
    axes.scatter(
        points.x[given],
        points.y[given],
        c=rgba[given],
        edgecolors=ink,
        marker="*",
        s=size * 14,
        linewidths=0.9,
        zorder=4,
    )
    if num_classes <= 30:
        for c, x, y in _place_names(points, class_names):
            text = axes.text(x, y, short(class_names[c]), size=size, weight="bold", color=ink, ha="center", va="center")
            if ink == INK:
                text.set_gid(f"halo{c}")  # the page draws the halo: path effects would turn text into outlines
            else:
                text.set_path_effects([patheffects.withStroke(linewidth=2.5, foreground=card)])
    axes.set_aspect("equal", adjustable="datalim")
    axes.margins(0.04)
    axes.set_axis_off()


def _place_names(points: EmbeddingMap, class_names: list[str]) -> list[tuple[int, float, float]]:
    """Put each class name at the middle of its points, moved up or down to where no star and no other name is."""
    span = max(float(np.ptp(points.x)), float(np.ptp(points.y)), 1e-12)
    height, star = 0.045 * span, 0.01 * span
    taken = [(x, y, star) for x, y in zip(points.x[points.given], points.y[points.given], strict=True)]
    placed = []
    for c, class_name in enumerate(class_names):
        members = points.label == c
        if not members.any():
            continue
        x, y = float(np.median(points.x[members])), float(np.median(points.y[members]))
        half = 0.017 * span * (len(short(class_name)) + 1)
        for step in (0, 1, -1, 2, -2, 3, -3, 4, -4, 5, -5, 6, -6):
            tried = y + step * 0.6 * height
            if all(abs(x - u) > half + width or abs(tried - v) > height for u, v, width in taken):
                y = tried
                break
        taken.append((x, y, half))
        placed.append((c, x, y))
    return placed


def figure_confusion(confusion: Confusion, class_names: list[str], name: str) -> Markup:
    """Draw a confusion matrix: rows true, columns predicted, shade the share of the true class."""
    matrix = confusion.matrix
    c = len(class_names)
    share = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
    with figure_style():
        figure = Figure((_WIDTH, _WIDTH), layout="constrained")
        axes = figure.add_subplot()
        if c <= 30:
            font = min(8.0, 66 / c)
            for i, j in zip(*np.nonzero(matrix), strict=True):
                color = ACCENT if i == j else WARN
                axes.add_patch(
                    Rectangle(
                        (j - 0.48, i - 0.48), 0.96, 0.96, color=color, alpha=0.12 + 0.73 * share[i, j], linewidth=0
                    )
                )
                axes.text(j, i, f"{matrix[i, j]}", ha="center", va="center", size=font * _fit(matrix[i, j]), color=INK)
        else:  # too many cells to read: one small picture instead of thousands of shapes
            rgba = np.zeros((c, c, 4))
            rgba[..., :3] = to_rgb("#e8590c")
            rgba[np.arange(c), np.arange(c), :3] = to_rgb("#0c8599")
            rgba[..., 3] = np.where(matrix > 0, 0.12 + 0.88 * share, 0)
            axes.imshow(rgba, interpolation="nearest", aspect="auto")
        stride = -(-c // 30)
        ticks = list(range(0, c, stride))
        labels = [short(class_names[t], 12) for t in ticks]
        size = 7.5 if c <= 12 else 5.5
        axes.set_yticks(ticks, labels=labels, color=INK, size=size)
        turned = 0 if max(map(len, labels)) <= 2 else 45
        axes.set_xticks(ticks, labels=labels, color=INK, size=size, rotation=turned, ha="right" if turned else "center")
        if turned:
            for label in axes.get_xticklabels():
                label.set_rotation_mode("anchor")
        axes.set_xlim(-0.5, c - 0.5)
        axes.set_ylim(c - 0.5, -0.5)
        axes.set_xlabel("predicted", color=MUTED)
        axes.set_ylabel("true", color=MUTED)
        axes.tick_params(length=0)
        for spine in axes.spines.values():
            spine.set_color(LINE)
            spine.set_visible(True)
        return to_svg(figure, name)


def figure_reliability(found: Reliability, name: str) -> Markup:
    """Draw accuracy over confidence, a point for each bin as large as its share; on the diagonal both are the same."""
    with figure_style():
        figure = Figure((_WIDTH, 3.4), layout="constrained")
        axes = figure.add_subplot()
        axes.plot((0, 1), (0, 1), color=MUTED, linewidth=1, linestyle="--")
        share = np.asarray(found.count) / max(1, sum(found.count))
        axes.plot(found.confidence, found.accuracy, color=ACCENT, linewidth=1.6)
        axes.scatter(found.confidence, found.accuracy, s=14 + 320 * share, color=ACCENT, alpha=0.75, linewidths=0)
        axes.set(xlim=(-0.02, 1.04), ylim=(-0.02, 1.06))
        ticks, labels = [0, 0.25, 0.5, 0.75, 1], ["0", "25", "50", "75", "100 %"]
        axes.set_xticks(ticks, labels=labels)
        axes.set_yticks(ticks, labels=labels)
        axes.set_xlabel("how sure", color=MUTED)
        axes.set_ylabel("how often right", color=MUTED)
        axes.tick_params(colors=MUTED, length=0)
        axes.grid(True, color=LINE, linewidth=0.8)
        axes.set_axisbelow(True)
        for side in ("left", "bottom"):
            axes.spines[side].set_color(LINE)
        return to_svg(figure, name)


def _fit(count: int) -> float:
    return min(1.0, 3.8 / len(str(count)))


def figure_curves(curves: list[Curve], metrics: Metrics, name: str) -> tuple[Markup, list[tuple[str, str]]]:
    """Draw curves over training in one panel; returns it and (color, curve name) for the legend."""
    with figure_style():
        figure = Figure((_WIDTH, 2.3), layout="constrained")
        axes = figure.add_subplot()
        legend = []
        for i, curve in enumerate(curves):
            color = _CURVES[i % len(_CURVES)]
            line = ("-", "--", ":")[i // len(_CURVES) % 3]
            marker = "o" if len(curve.x) <= 12 else None
            axes.plot(curve.x, curve.y, color=color, linestyle=line, linewidth=1.6, marker=marker, markersize=3)
            legend.append((color, curve.name))
        values = np.concatenate([curve.y for curve in curves])
        if curves[0] in metrics.fractions:
            axes.set_ylim(min(0.0, float(values.min())), 1.02)
        elif values.min() > 0 and values.max() > 100 * values.min():
            axes.set_yscale("log")
            # Its own formatter writes formulas, and the page shows text as it is.
            axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
            axes.yaxis.set_minor_formatter(NullFormatter())
        elif values.min() >= 0:
            axes.set_ylim(0, float(values.max()) * 1.06 or 1.0)
        axes.set_xlabel(metrics.axis, color=MUTED)
        axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
        axes.tick_params(colors=MUTED, which="both", length=0)
        axes.grid(True, color=LINE, linewidth=0.8)
        axes.set_axisbelow(True)
        for side in ("left", "bottom"):
            axes.spines[side].set_color(LINE)
        return to_svg(figure, name), legend
