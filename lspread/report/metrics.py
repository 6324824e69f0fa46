"""Training curves out of `metrics.csv`: a wide table in which most cells are empty."""

import csv
import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from ..errors import DataError
from .fields import clean_text

__all__ = ["Curve", "Metrics", "read_metrics"]

_MAX_POINTS = 150
_AXES = ("epoch", "step")


@dataclass(frozen=True, eq=False)
class Curve:
    """One logged quantity over training: `x` (p,), `y` (p,), both float64 and finite.

    `num_logged` is how often it was logged; where that is more than p, each point is the mean of neighboring values.
    """

    name: str
    x: npt.NDArray[np.float64]
    y: npt.NDArray[np.float64]
    num_logged: int
    last: float


@dataclass(frozen=True, eq=False)
class Metrics:
    """Curves of one run, by what they measure; `axis` says what their x counts ("epoch", "step" or "row")."""

    axis: str
    losses: list[Curve]
    fractions: list[Curve]
    others: list[Curve]
    num_nonfinite: int


def read_metrics(path: str | Path) -> Metrics | None:
    """Read a `metrics.csv` as Lightning's CSVLogger writes it: one row per logging call, empty cells elsewhere.

    Args:
        path: The file.

    Returns:
        Curves over epochs where every quantity is logged at most once per epoch, else over steps; NaN and infinite
        values are left out and counted. None where the file does not exist.

    Raises:
        DataError: The file is no such table; the message names the line.
    """
    path = Path(path)
    if not path.is_file():
        return None
    header, rows = _read_table(path)
    column = {name: i for i, name in enumerate(header)}
    names = [name for name in header if name not in _AXES and name]
    axis = _choose_axis(rows, column, names)
    curves, num_nonfinite = [], 0
    for name in names:
        points = []
        for number, row in enumerate(rows):
            x = float(number) if axis == "row" else row[column[axis]]
            y = row[column[name]]
            if x is None or y is None:
                continue
            if math.isfinite(y) and math.isfinite(x):
                points.append((x + 1 if axis == "epoch" else x, y))
            else:
                num_nonfinite += 1
        if points:
            curves.append(_curve(name, points))
    losses = [curve for curve in curves if "loss" in curve.name.lower()]
    fractions = [curve for curve in curves if curve not in losses and _is_fraction(curve)]
    others = [curve for curve in curves if curve not in losses and curve not in fractions]
    return Metrics(axis=axis, losses=losses, fractions=fractions, others=others, num_nonfinite=num_nonfinite)


def _read_table(path: Path) -> tuple[list[str], list[list[float | None]]]:
    advice = "It is written while training; remove it to report without curves, or repeat the run."
    rows: list[list[float | None]] = []
    header: list[str] = []
    try:
        with path.open(encoding="utf-8", newline="") as file:
            reader = csv.reader(file)
            header = [clean_text(name) for name in next(reader, [])]
            for cells in reader:
                if len(cells) > len(header):
                    raise DataError(
                        f"{path}, line {reader.line_num}: {len(header)} cells are needed, as in the first line; "
                        f"got {len(cells)}. {advice}"
                    )
                cells += [""] * (len(header) - len(cells))  # a run that was killed may leave half a line
                try:
                    rows.append([float(cell) if cell.strip() else None for cell in cells])
                except ValueError as error:
                    raise DataError(
                        f"{path}, line {reader.line_num}: every cell must be empty or a number ({error}). {advice}"
                    ) from error
    except (UnicodeDecodeError, csv.Error, OSError) as error:
        raise DataError(f"{path} cannot be read as a CSV table ({clean_text(error)}). {advice}") from error
    return header, rows


def _choose_axis(rows: list[list[float | None]], column: dict[str, int], names: list[str]) -> str:
    """Epochs are what people count in, but they are of use only where no quantity has two values in one epoch."""
    if "epoch" in column:
        seen = [(name, row[column["epoch"]]) for row in rows for name in names if row[column[name]] is not None]
        if len(set(seen)) == len(seen) and all(epoch is not None for _, epoch in seen):
            return "epoch"
    return "step" if "step" in column else "row"


def _curve(name: str, points: list[tuple[float, float]]) -> Curve:
    xy = np.asarray(points, dtype=np.float64)
    last = float(xy[-1, 1])
    xy = xy[np.argsort(xy[:, 0], kind="stable")]
    if len(xy) > _MAX_POINTS:
        xy = np.stack([part.mean(axis=0) for part in np.array_split(xy, _MAX_POINTS)])
    return Curve(name=name, x=xy[:, 0], y=xy[:, 1], num_logged=len(points), last=last)


def _is_fraction(curve: Curve) -> bool:
    name = curve.name.lower()
    if name.startswith(("lr", "learning_rate", "num_")) or any(
        word in name for word in ("second", "time", "residual", "bound")
    ):
        return False
    return bool(curve.y.min() >= 0 and curve.y.max() <= 1)
