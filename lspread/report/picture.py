"""One picture of a run for a README: the map, the accuracies, and images with the labels they got."""

import io
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image

from ..errors import DataError
from .figures import draw_bars, draw_map
from .results import Picture, Results, Score, read_results
from .summary import format_percent, headline_score, headline_scores, set_name
from .svg import class_color, figure_style, short
from .thumbnails import read_thumbnail

__all__ = ["plot_result"]

_INK, _MUTED, _CARD, _ACCENT, _GOOD, _BAD = ("#1b2230", "#667085", "#ffffff", "#0c8599", "#2b8a3e", "#c92a2a")
_PER_ROW = 12
_MAX_BYTES = 300_000


def plot_result(run_dir: str | Path, path: str | Path) -> Path:
    """Draw a run as one PNG picture of less than 300 kB.

    Args:
        run_dir: The folder of a finished run.
        path: Where the picture goes; folders on the way are made.

    Returns:
        `path`: the embedding map colored by class with given labels as stars, accuracies with 95 % intervals (those
        of cross-validation where no truth is known), and strips of given, most and least certain images. What the
        run did not keep is left out, with a sentence in its place.

    Raises:
        DataError: As `write_report`; or `path` cannot be written.
    """
    folder, path = Path(run_dir), Path(path)
    results = read_results(folder)
    strips = _strips(folder, results)
    with figure_style(11):
        figure = _draw(results, strips)
        for dpi in (150, 110, 80, 50):
            data = _encode(figure, dpi)
            if len(data) < _MAX_BYTES:
                break
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    except OSError as error:
        raise DataError(
            f"plot_result cannot write {path} ({error.strerror}). Name a file in a writable folder."
        ) from error
    return path


def _encode(figure: Figure, dpi: int) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=dpi, facecolor=_CARD, metadata={"Software": None})
    image = Image.open(buffer).convert("RGB").quantize(256, dither=Image.Dither.NONE)
    buffer = io.BytesIO()
    image.save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


def _strips(folder: Path, results: Results) -> list[tuple[str, list[tuple[Picture, Image.Image]]]]:
    """Rows of pictures that exist; a row without any is dropped."""
    parts = {
        "given labels": results.given,
        "most certain": results.most_certain,
        "least certain": results.least_certain,
    }
    strips = []
    for name, pictures in parts.items():
        row = []
        for picture in _spread(pictures):
            image = read_thumbnail(folder, picture.thumbnail)
            if image is not None:
                row.append((picture, image))
        if row:
            strips.append((name, row))
    return strips


def _spread(pictures: list[Picture]) -> list[Picture]:
    """At most one row, with as many different labels in it as there are."""
    rank: dict[str, int] = {}
    order = []
    for i, picture in enumerate(pictures):
        rank[picture.label] = rank.get(picture.label, 0) + 1
        order.append((rank[picture.label], i))
    chosen = sorted(i for _, i in sorted(order)[:_PER_ROW])
    return [pictures[i] for i in chosen]


def _draw(results: Results, strips: list[tuple[str, list[tuple[Picture, Image.Image]]]]) -> Figure:
    row = 1.05
    top, middle = 0.75, 4.1
    height = top + middle + row * len(strips) + 0.15
    figure = Figure((11, height))

    def place(left: float, upper: float, width: float, tall: float) -> Axes:
        return figure.add_axes((left / 11, 1 - (upper + tall) / height, width / 11, tall / height))

    figure.text(0.3 / 11, 1 - 0.42 / height, _title(results), size=17, weight="bold", color=_INK, va="center")
    left = place(0.2, top, 5.9, middle - 0.15)
    if results.map is not None and len(results.map.x):
        draw_map(left, results.map, results.class_names, ink=_INK, card=_CARD, size=10)
    else:
        _say(left, "This run kept no map of its embeddings.")
    scores, caption = _bars(results)
    tall = min(middle - 1.0, 0.72 * len(scores) + 0.1)
    right = place(6.5, top + 0.55, 3.6, tall if scores else middle - 1.0)
    if scores:
        draw_bars(right, scores, ours=_ACCENT, other=_MUTED, size=10.5)
        for line in right.lines:
            line.set_color(_INK)
        for text in right.texts:
            text.set_color(_INK)
        right.xaxis.grid(True, color="#e3e6ea", linewidth=0.8)
        right.tick_params(colors=_MUTED)
        figure.text(6.5 / 11, 1 - (top + 0.2) / height, caption, size=10.5, color=_MUTED, va="center")
    else:
        _say(right, "No true labels are known,\nso no accuracy can be told.")
    for i, (name, pictures) in enumerate(strips):
        upper = top + middle + row * i
        figure.text(
            0.3 / 11, 1 - (upper + 0.38) / height, name.replace(" ", "\n"), size=10.5, color=_MUTED, va="center"
        )
        for j, (picture, image) in enumerate(pictures):
            axes = place(1.25 + j * 0.795, upper, 0.72, 0.72)
            _show(axes, picture, image, results, is_given=i == 0 and name.startswith("given"))
    return figure


def _title(results: Results) -> str:
    labels = "1 label" if results.num_labeled == 1 else f"{results.num_labeled:,} labels"
    score = headline_score(headline_scores(results))
    if score is None:
        return f"{labels}  →  labels for {results.num_sure:,} {results.noun}"
    return f"{labels}  →  {format_percent(score.accuracy)} of {score.num_items:,} {set_name(score.on, results)} right"


def _bars(results: Results) -> tuple[list[Score], str]:
    scores = sorted(headline_scores(results), key=lambda score: -score.accuracy)[:6]
    if scores:
        return scores, f"accuracy on {set_name(scores[0].on, results)}, with 95 % intervals"
    checks = sorted(results.given_checks, key=lambda check: -check.accuracy)[:6]
    scores = [Score(check.key, check.method, "given", check.accuracy, check.num_items, None) for check in checks]
    return scores, "no truth known: given labels, each hidden in turn"


def _show(axes: Axes, picture: Picture, image: Image.Image, results: Results, *, is_given: bool) -> None:
    axes.imshow(np.asarray(image), cmap="gray", vmin=0, vmax=255, interpolation="nearest", aspect="equal")
    axes.set_xticks([])
    axes.set_yticks([])
    names = results.class_names
    color = class_color(names.index(picture.label) if picture.label in names else -1, len(names))
    if is_given or picture.is_right is None:
        text, ink = short(picture.label, 12), _INK
    else:
        text, ink = (
            f"{short(picture.label, 11)} {'✓' if picture.is_right else '✗'}",
            _GOOD if picture.is_right else _BAD,
        )
    for spine in axes.spines.values():
        spine.set_visible(True)
        spine.set_color(color)
        spine.set_linewidth(2)
    axes.set_xlabel(text, color=ink, size=9 if len(text) < 9 else 7.5, labelpad=3)


def _say(axes: Axes, sentence: str) -> None:
    axes.set_axis_off()
    axes.text(0.5, 0.5, sentence, ha="center", va="center", color=_MUTED, size=12, transform=axes.transAxes)
