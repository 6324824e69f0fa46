"""The report: one HTML file that holds all it shows and loads nothing."""

import json
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape

from ..errors import DataError
from .figures import figure_bars, figure_confusion, figure_curves, figure_map, figure_reliability
from .metrics import Metrics, read_metrics
from .results import Picture, Results, Score, read_results
from .summary import format_percent, headline_score, headline_scores, recommend, set_name, summarize
from .svg import class_color
from .thumbnails import read_thumbnail, thumbnail_uri

__all__ = ["write_report"]

_SHOWN = 40
_GIVEN = ("given", "suspicious")
"""Parts whose items have a given label."""
_MAX_PICTURES = 200
_STAGES = {
    "fit": "training, all in all",
    "embed": "embedding all items",
    "neighbors": "finding neighbors",
    "graph": "building the graph",
    "spread": "spreading labels",
    "baselines": "baselines",
}
_FACTS = {
    "k": "neighbors per item (k)",
    "metric": "distance",
    "kernel": "edge kernel",
    "alpha": "alpha",
    "num_edges": "edges",
    "num_unreached": "items no label reached",
    "solver": "solver",
    "num_steps": "solver steps",
    "status": "solver status",
    "head_rows": "items kept to label new ones (graph_head.safetensors)",
    "error_bound": "distance to the exact solution, at most",
}


@dataclass(frozen=True, eq=False)
class _Thumb:
    picture: Picture
    uri: str | None
    alt: str


def write_report(run_dir: str | Path) -> Path:
    """Write `report.html` into a run folder.

    Args:
        run_dir: The folder of a finished run: `results.json`, and where they exist `metrics.csv`, `config.yaml`,
            `versions.json` and `thumbnails/`. A part that is absent gets a sentence in place of its figure.

    Returns:
        The path of the page: one file, style, figures and pictures inside, no script and nothing to load.

    Raises:
        DataError: The folder or `results.json` is missing, or a file is there but cannot be right.
    """
    folder = Path(run_dir)
    results = read_results(folder)
    metrics = read_metrics(folder / "metrics.csv")
    environment = Environment(
        loader=PackageLoader("lspread.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(percent=format_percent, certainty=_certainty, numbers=_highlight, duration=_duration)
    page = environment.get_template("report.html").render(
        r=results,
        summary=summarize(results),
        tiles=_tiles(results),
        recommendation=recommend(results),
        accuracy=_accuracy(results),
        reliability=_reliability(results),
        map=_map(results),
        classes=_classes(results),
        confusion=_confusion(results),
        class_scores=_class_scores(results),
        galleries=_galleries(folder, results),
        curves=_curves(metrics),
        metrics=metrics,
        facts=_facts(results),
        stages=_stages(results),
        config=_read_text(folder / "config.yaml"),
        versions=results.versions or _read_versions(folder / "versions.json"),
        set_name=lambda on: set_name(on, results),
        shown=_SHOWN,
    )
    path = folder / "report.html"
    partial = folder / f".report.html.{os.getpid()}"
    try:
        partial.write_text(page, encoding="utf-8")
        partial.replace(path)  # a reader never meets half a page
    except OSError as error:
        raise DataError(f"{path} cannot be written ({error.strerror}). Make the run folder writable.") from error
    return path


def _certainty(confidence: float) -> str:
    if confidence >= 0.995:
        return "100 %" if confidence == 1 else "> 99 %"
    return f"{100 * confidence:.0f} %"


def _highlight(sentence: str) -> Markup:
    """Keep percentages on one line and mark them; everything is escaped first."""
    return Markup(re.sub(r"(\d[\d.,]*) %", r'<strong class="n">\1 %</strong>', str(escape(sentence))))


def _duration(seconds: float) -> str:
    if seconds < 1:
        return f"{1000 * seconds:.0f} ms"
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s"


def _tiles(results: Results) -> list[tuple[str, str]]:
    tiles = [
        (f"{results.num_labeled:,}", "labels given"),
        (f"{results.num_unlabeled:,}", f"unlabeled {results.noun}"),
        (f"{len(results.class_names):,}", "classes"),
    ]
    score = headline_score(headline_scores(results))
    if score is not None:
        tiles.append((format_percent(score.accuracy), f"right on {set_name(score.on, results)}"))
    if "fit" in results.seconds:
        tiles.append((_duration(results.seconds["fit"]), "of training"))
    return tiles


def _accuracy(results: Results) -> list[dict[str, Any]]:
    """One figure and one table per set of items that was scored, the headline's set first."""
    first = [score.on for score in headline_scores(results)]
    groups: list[dict[str, Any]] = []
    for on in dict.fromkeys([*first, *(score.on for score in results.scores)]):
        scores = sorted((s for s in results.scores if s.on == on), key=lambda s: -s.accuracy)
        alt = f"Bars of accuracy on {set_name(on, results)}: " + "; ".join(_bar_text(score) for score in scores) + "."
        groups.append(
            {
                "on": on,
                "scores": scores,
                "same_items": len({s.num_items for s in scores}) == 1,
                "svg": figure_bars(scores, f"bars{len(groups)}"),
                "alt": alt,
            }
        )
    return groups


def _bar_text(score: Score) -> str:
    return f"{score.method} {format_percent(score.accuracy)}"


def _legend(results: Results) -> list[tuple[str, str]]:
    num_classes = len(results.class_names)
    return [(class_color(c, num_classes), name) for c, name in enumerate(results.class_names)]


def _map(results: Results) -> dict[str, Any] | None:
    points = results.map
    if points is None or not len(points.x):
        return None
    given = int(points.given.sum())
    alt = f"Map of {len(points.x):,} embeddings in two dimensions, colored by class; {given} given labels are stars."
    legend = _legend(results)
    if (points.label < 0).any():
        legend.append((class_color(-1, 1), "no label reached it"))
    return {"svg": figure_map(points, results.class_names, "map"), "alt": alt, "legend": legend}


def _classes(results: Results) -> dict[str, Any] | None:
    columns = {"given": results.given_count, "predicted": results.predicted_count, "true": results.true_count}
    columns = {name: counts for name, counts in columns.items() if counts is not None}
    if not columns:
        return None
    rows = [
        (color, name, {column: counts[c] for column, counts in columns.items() if counts is not None})
        for c, (color, name) in enumerate(_legend(results))
    ]
    largest = max([1, *(max(counts) for name, counts in columns.items() if counts is not None and name != "given")])
    return {"columns": list(columns), "rows": rows, "largest": largest}


def _confusion(results: Results) -> dict[str, Any] | None:
    confusion = results.confusion
    if confusion is None or not confusion.matrix.any():
        return None
    matrix = confusion.matrix
    wrong = matrix * (1 - np.eye(len(matrix), dtype=np.int64))
    worst = []
    for cell in np.argsort(-wrong, axis=None, kind="stable")[:5]:
        i, j = divmod(int(cell), len(matrix))
        if wrong[i, j]:
            share = wrong[i, j] / matrix[i].sum()
            worst.append((results.class_names[i], results.class_names[j], int(wrong[i, j]), float(share)))
    num_right, num_all = int(np.trace(matrix)), int(matrix.sum())
    alt = f"Confusion matrix: {num_right:,} of {num_all:,} {set_name(confusion.on, results)} lie on the diagonal."
    svg = figure_confusion(confusion, results.class_names, "confusion")
    return {"svg": svg, "alt": alt, "on": confusion.on, "worst": worst, "num_right": num_right, "num_all": num_all}


_MEASURES = {
    "precision": ("precision", "of those taken for the class, how many are of it"),
    "recall": ("recall", "of the class, how many are found; also called sensitivity"),
    "specificity": ("specificity", "of all others, how many are not taken for the class"),
    "f1": ("F1", "harmonic mean of precision and recall"),
    "auroc": ("AUROC", "how often one of the class gets a larger probability of it than one of another class"),
}


def _class_scores(results: Results) -> dict[str, Any] | None:
    """A row per class, and their unweighted mean, in which rare classes count as much as common ones."""
    found = results.class_scores
    if found is None or not found.measures:
        return None
    columns = [_MEASURES[name] for name in found.measures]
    rows = [
        (color, name, found.count[c], [values[c] for values in found.measures.values()])
        for c, (color, name) in enumerate(_legend(results))
    ]
    means = [_mean(values) for values in found.measures.values()]
    return {"on": found.on, "columns": columns, "rows": rows, "means": means}


def _mean(values: list[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


def _reliability(results: Results) -> dict[str, Any] | None:
    found = results.reliability
    if found is None or not found.count:
        return None
    where = "given labels, each hidden in turn" if found.on == "given" else set_name(found.on, results)
    bins = "; ".join(
        f"{format_percent(sure)} sure, {format_percent(right)} right"
        for sure, right in zip(found.confidence, found.accuracy, strict=True)
    )
    total = sum(found.count)
    sure = sum(n * value for n, value in zip(found.count, found.confidence, strict=True)) / total
    right = sum(n * value for n, value in zip(found.count, found.accuracy, strict=True)) / total
    return {
        "svg": figure_reliability(found, "reliability"),
        "alt": f"Reliability on {where}: {bins}.",
        "where": where,
        "num_items": total,
        "error": found.error,
        "sure": sure,
        "right": right,
    }


def _galleries(folder: Path, results: Results) -> dict[str, dict[str, Any]]:
    galleries = {}
    parts = {
        "given": results.given,
        "most": results.most_certain,
        "least": results.least_certain,
        "novel": results.novel,
        "suspicious": results.suspicious,
        "to_label": results.to_label,
    }
    for name, pictures in parts.items():
        thumbs = [_thumb(folder, picture, name) for picture in pictures[:_MAX_PICTURES]]
        known = [picture.is_right for picture in pictures if picture.is_right is not None]
        galleries[name] = {
            "thumbs": thumbs,
            "num_right": sum(known),
            "num_known": 0 if name in _GIVEN else len(known),
            "is_text": not any(thumb.uri for thumb in thumbs) and any(picture.text for picture in pictures),
            "num_missing": sum(thumb.uri is None and thumb.picture.thumbnail is not None for thumb in thumbs),
            "num_left_out": len(pictures) - len(thumbs),
        }
    return galleries


def _thumb(folder: Path, picture: Picture, part: str) -> _Thumb:
    image = read_thumbnail(folder, picture.thumbnail)
    said = f"given label {picture.label}" if part in _GIVEN else f"predicted {picture.label}"
    alt = f"{picture.item}: {said}"
    if picture.note is not None:
        alt += f", {picture.note}"
    if part not in _GIVEN and picture.true_label is not None:
        alt += ", which is right" if picture.is_right else f", truly {picture.true_label}"
    return _Thumb(picture, None if image is None else thumbnail_uri(image), alt)


def _curves(metrics: Metrics | None) -> list[dict[str, Any]]:
    if metrics is None:
        return []
    panels: list[dict[str, Any]] = []
    for title, curves in (("Losses", metrics.losses), ("Accuracies and other fractions", metrics.fractions)):
        if curves:
            svg, legend = figure_curves(curves, metrics, f"curves{len(panels)}")
            last = "; ".join(f"{curve.name} ends at {curve.last:.4g}" for curve in curves)
            alt = f"{title} over {metrics.axis}s: {last}."
            entries = [(color, name, f"{curve.last:.3g}") for (color, name), curve in zip(legend, curves, strict=True)]
            averaged = any(curve.num_logged > len(curve.x) for curve in curves)
            panels.append({"title": title, "svg": svg, "alt": alt, "legend": entries, "averaged": averaged})
    return panels


def _facts(results: Results) -> list[tuple[str, str]]:
    facts = []
    for name in [*_FACTS, *(name for name in results.graph if name not in _FACTS)]:
        if name in results.graph:
            value = results.graph[name]
            facts.append(
                (_FACTS.get(name, name.replace("_", " ")), f"{value:,}" if isinstance(value, int) else _tidy(value))
            )
    return facts


def _tidy(text: str) -> str:
    try:
        return f"{float(text):.3g}"
    except ValueError:
        return text


def _stages(results: Results) -> list[tuple[str, float, float]]:
    longest = max(results.seconds.values(), default=0) or 1.0
    return [(_STAGES.get(name, name), seconds, seconds / longest) for name, seconds in results.seconds.items()]


def _read_text(path: Path) -> str | None:
    if not path.is_file():
        return None
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(
            f"{path} cannot be read as UTF-8 text ({error}). Restore it, or remove it to report without it."
        ) from error


def _read_versions(path: Path) -> dict[str, str]:
    text = _read_text(path)
    if text is None:
        return {}
    try:
        value = json.loads(text)
    except ValueError as error:
        raise DataError(f"{path} is not readable as JSON ({error}). Remove it to report without versions.") from error
    if not isinstance(value, dict):
        raise DataError(
            f"{path} must hold an object of names and versions; got {type(value).__name__}. Remove or correct it."
        )
    return {str(name): str(version) for name, version in value.items()}
