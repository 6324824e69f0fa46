"""What a finished run says about itself: `results.json`, checked and typed."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ..errors import DataError
from ..typing import UNLABELED
from .fields import Fields, clean_text

__all__ = [
    "ClassScores",
    "Confusion",
    "Duel",
    "EmbeddingMap",
    "GivenCheck",
    "Picture",
    "Reliability",
    "Results",
    "Score",
    "read_results",
]

_NOUNS = {"image": "images", "text": "texts", "table": "rows"}


@dataclass(frozen=True, eq=False)
class Score:
    """Accuracy of one method on one set of items whose truth is known.

    Fields: `accuracy` in [0, 1]; `interval` its 95 % interval, or None; `on` is "unlabeled", "val" or "test".
    """

    key: str
    method: str
    on: str
    accuracy: float
    num_items: int
    interval: tuple[float, float] | None

    @property
    def is_ours(self) -> bool:
        """Whether this is what lspread trained or spread, not a baseline."""
        return self.key in ("classifier", "graph")


@dataclass(frozen=True, eq=False)
class Duel:
    """A method against the best one on the same items: how many it alone got right, how many the best one alone.

    `p` is the chance of a split at least as uneven between two equally good methods.
    """

    won: int
    lost: int
    p: float


@dataclass(frozen=True, eq=False)
class GivenCheck:
    """Accuracy of one method on given labels that were hidden from it in turn (cross-validation).

    `against_best` is None for the best method, and for all in folders of earlier versions.
    """

    key: str
    method: str
    accuracy: float
    num_items: int
    interval: tuple[float, float] | None
    against_best: Duel | None


@dataclass(frozen=True, eq=False)
class Picture:
    """One item to show: its label, how sure the run is, the truth where known, its thumbnail's path, why it's shown.

    `text` is what there is to read of an item without a picture.
    """

    item: str
    label: str
    confidence: float | None
    true_label: str | None
    thumbnail: str | None
    note: str | None
    text: str | None

    @property
    def is_right(self) -> bool | None:
        """Whether the label is the true one; None where that is not known."""
        return None if self.true_label is None else self.true_label == self.label


@dataclass(frozen=True, eq=False)
class Confusion:
    """Counts (c, c) int64: rows true classes, columns predicted ones."""

    on: str
    matrix: npt.NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Reliability:
    """How sure and how right answers were, in b bins of confidence: `count`, mean `confidence` and `accuracy` (b,).

    `on` is a set of items, or "given" for given labels hidden in turn; `error` the expected calibration error.
    """

    on: str
    count: list[int]
    confidence: list[float]
    accuracy: list[float]
    error: float


@dataclass(frozen=True, eq=False)
class ClassScores:
    """How well each of c classes is told from the others: `measures` has c values in [0, 1], or None, for each name."""

    on: str
    count: list[int]
    measures: dict[str, list[float | None]]


@dataclass(frozen=True, eq=False)
class EmbeddingMap:
    """Embeddings of p items in two dimensions.

    Fields: `x`, `y`, `confidence` (p,) float64; `label` (p,) int64, UNLABELED where no label arrived; `given` (p,)
    bool; `explained` the share of the variance that the two dimensions hold.
    """

    x: npt.NDArray[np.float64]
    y: npt.NDArray[np.float64]
    label: npt.NDArray[np.int64]
    confidence: npt.NDArray[np.float64]
    given: npt.NDArray[np.bool_]
    explained: float | None


@dataclass(frozen=True, eq=False)
class Results:
    """`results.json` of one run; None or empty where the run has nothing to say."""

    path: Path
    title: str
    created: str | None
    command: str | None
    warm_up: str | None
    seed: str | None
    data_name: str
    num_items: int
    num_labeled: int
    num_unlearned: int
    num_unlabeled: int
    num_sure: int
    num_val: int
    num_test: int
    class_names: list[str]
    is_image: bool
    noun: str
    graph: dict[str, Any]
    seconds: dict[str, float]
    scores: list[Score]
    given_checks: list[GivenCheck]
    given_count: list[int] | None
    predicted_count: list[int] | None
    true_count: list[int] | None
    confusion: Confusion | None
    class_scores: ClassScores | None
    reliability: Reliability | None
    most_certain: list[Picture]
    least_certain: list[Picture]
    given: list[Picture]
    novel: list[Picture]
    suspicious: list[Picture]
    to_label: list[Picture]
    not_sought: list[str]
    map: EmbeddingMap | None
    versions: dict[str, str]

    @property
    def is_trained(self) -> bool:
        """Whether a network was trained on the labels, so that its embeddings know them."""
        return "fit" in self.seconds


def read_results(run_dir: str | Path) -> Results:
    """Read `results.json` of a run folder.

    Args:
        run_dir: The folder of a finished run.

    Returns:
        Its content, checked. `data` with `num_labeled`, `num_unlabeled` and `num_classes` must be there; every other
        part may be absent or null.

    Raises:
        DataError: The folder or the file is missing, is no JSON, or holds a value that cannot be right; the message
            names the file and the value's place.
    """
    folder = Path(run_dir)
    path = folder / "results.json"
    if not folder.is_dir():
        raise DataError(
            f"A report needs the folder of a finished run; {folder} is no folder. Name one such as runs/demo."
        )
    if not path.is_file():
        raise DataError(
            f"A report needs {path}, and there is no such file. It is written when a run ends: "
            "let the run finish (or resume it), or name another run folder."
        )
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise DataError(
            f"{path} is not readable as JSON ({clean_text(error)}). "
            "It may have been cut off; repeat the run to write it anew."
        ) from error
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror}). Check its permissions.") from error
    return _results(Fields(value, path))


def _results(top: Fields) -> Results:
    data = top.child("data")
    if data is None:
        top.require("data", False, "an object with num_labeled, num_unlabeled and num_classes")
        raise AssertionError
    num_classes: int = data.count("num_classes")
    data.require("num_classes", num_classes >= 1, "at least 1")
    names = data.texts("class_names", None, size=num_classes) or [f"class {c}" for c in range(num_classes)]
    counts = top.child("class_counts")

    def class_count(name: str) -> list[int] | None:
        return None if counts is None else counts.counts(name, None, size=num_classes)

    is_image = data.counts("image_shape", None) is not None
    num_labeled: int = data.count("num_labeled")
    num_unlabeled: int = data.count("num_unlabeled")
    return Results(
        path=top.path,
        title=top.text("title", None) or top.path.parent.resolve().name,
        created=top.text("created", None),
        command=top.text("command", None),
        warm_up=top.text("warm_up", None),
        seed=top.text("seed", None),
        data_name=data.text("name", None) or "the data",
        num_items=data.count("num_items", num_labeled + num_unlabeled),
        num_labeled=num_labeled,
        num_unlearned=data.count("num_unlearned", 0),
        num_unlabeled=num_unlabeled,
        num_sure=top.count("num_sure", num_unlabeled),
        num_val=data.count("num_val", 0),
        num_test=data.count("num_test", 0),
        class_names=names,
        is_image=is_image,
        noun=_NOUNS.get(data.text("kind", "image" if is_image else None), "items"),
        graph=_graph(top.child("graph")),
        seconds=_seconds(top.child("seconds")),
        scores=[_score(fields) for fields in top.children("scores")],
        given_checks=[_given_check(fields) for fields in top.children("cross_validation")],
        given_count=class_count("given"),
        predicted_count=class_count("predicted"),
        true_count=class_count("true"),
        confusion=_confusion(top.child("confusion"), num_classes),
        class_scores=_class_scores(top.child("per_class"), num_classes),
        reliability=_reliability(top.child("reliability")),
        most_certain=[_picture(fields) for fields in top.children("most_certain")],
        least_certain=[_picture(fields) for fields in top.children("least_certain")],
        given=[_picture(fields) for fields in top.children("given")],
        novel=[_picture(fields) for fields in top.children("novel")],
        suspicious=[_picture(fields) for fields in top.children("suspicious")],
        to_label=[_picture(fields) for fields in top.children("to_label")],
        not_sought=top.texts("not_sought", []),
        map=_map(top.child("map"), num_classes),
        versions=_versions(top.child("versions")),
    )


def _interval(fields: Fields) -> tuple[float, float] | None:
    interval = fields.numbers("ci95", None, size=2, low=0, high=1)
    if interval is None:
        return None
    fields.require("ci95", interval[0] <= interval[1], "[low, high] with low <= high")
    return interval[0], interval[1]


def _score(fields: Fields) -> Score:
    return Score(
        key=fields.text("key", ""),
        method=fields.text("method", None) or fields.text("key"),
        on=fields.text("on", "unlabeled"),
        accuracy=fields.number("accuracy", low=0, high=1),
        num_items=fields.count("num_items"),
        interval=_interval(fields),
    )


def _given_check(fields: Fields) -> GivenCheck:
    duel = fields.child("against_best")
    return GivenCheck(
        key=fields.text("key", ""),
        method=fields.text("method", None) or fields.text("key"),
        accuracy=fields.number("accuracy", low=0, high=1),
        num_items=fields.count("num_items", 0),
        interval=_interval(fields),
        against_best=None
        if duel is None
        else Duel(won=duel.count("won"), lost=duel.count("lost"), p=duel.number("p", low=0, high=1)),
    )


def _picture(fields: Fields) -> Picture:
    return Picture(
        item=fields.text("item", None) or fields.text("index", "?"),
        label=fields.text("label", "?"),
        confidence=fields.number("confidence", None, low=0, high=1),
        true_label=fields.text("true_label", None),
        thumbnail=fields.text("thumbnail", None),
        note=fields.text("note", None),
        text=fields.text("text", None),
    )


def _confusion(fields: Fields | None, num_classes: int) -> Confusion | None:
    if fields is None:
        return None
    table = fields.count_table("matrix", num_classes)
    return Confusion(on=fields.text("on", "unlabeled"), matrix=np.asarray(table, dtype=np.int64))


def _reliability(fields: Fields | None) -> Reliability | None:
    if fields is None:
        return None
    count = fields.counts("count")
    return Reliability(
        on=fields.text("on", "unlabeled"),
        count=count,
        confidence=fields.numbers("confidence", size=len(count), low=0, high=1),
        accuracy=fields.numbers("accuracy", size=len(count), low=0, high=1),
        error=fields.number("error", low=0, high=1),
    )


def _class_scores(fields: Fields | None, num_classes: int) -> ClassScores | None:
    if fields is None:
        return None
    names = ("precision", "recall", "specificity", "f1", "auroc")
    measures = {name: fields.numbers_or_none(name, size=num_classes, low=0, high=1) for name in names}
    return ClassScores(
        on=fields.text("on", "unlabeled"),
        count=fields.counts("count", size=num_classes),
        measures={name: values for name, values in measures.items() if values is not None},
    )


def _map(fields: Fields | None, num_classes: int) -> EmbeddingMap | None:
    if fields is None:
        return None
    x = fields.numbers("x")
    label = fields.numbers("label", size=len(x), low=UNLABELED, high=num_classes - 1)
    return EmbeddingMap(
        x=np.asarray(x, dtype=np.float64),
        y=np.asarray(fields.numbers("y", size=len(x)), dtype=np.float64),
        label=np.asarray(label, dtype=np.int64),
        confidence=np.asarray(
            fields.numbers("confidence", [1.0] * len(x), size=len(x), low=0, high=1), dtype=np.float64
        ),
        given=np.asarray(fields.flags("given", len(x)), dtype=np.bool_),
        explained=fields.number("explained", None, low=0, high=1),
    )


def _graph(fields: Fields | None) -> dict[str, Any]:
    if fields is None:
        return {}
    numbers: dict[str, Any] = {
        name: fields.count(name, None) for name in ("k", "num_edges", "num_unreached", "num_steps", "head_rows")
    }
    texts = {name: fields.text(name, None) for name in fields if name not in numbers}
    return {name: value for name, value in (numbers | texts).items() if value is not None}


def _seconds(fields: Fields | None) -> dict[str, float]:
    if fields is None:
        return {}
    seconds = {clean_text(name): fields.number(name, None, low=0) for name in fields}
    return {name: value for name, value in seconds.items() if value is not None}


def _versions(fields: Fields | None) -> dict[str, str]:
    return {} if fields is None else {clean_text(name): fields.text(name, "unknown") for name in fields}
