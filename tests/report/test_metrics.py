import math
from pathlib import Path

import numpy as np
import pytest

from lspread.errors import DataError
from lspread.report.metrics import read_metrics


def write(folder: Path, text: str) -> Path:
    path = folder / "metrics.csv"
    path.write_text(text)
    return path


def test_sparse_rows_become_curves_by_kind(tmp_path: Path) -> None:
    text = (
        "epoch,lr-AdamW,pseudo_accuracy,seconds_spread,step,train_loss,val_accuracy\n"
        ",0.001,,,9,,\n"
        "0,,,,9,2.5,\n"
        "0,,0.5,0.25,9,,0.25\n"
        "1,,,,19,1.5,\n"
        "1,,0.75,0.125,19,,0.5\n"
    )
    metrics = read_metrics(write(tmp_path, text))
    assert metrics is not None
    assert [curve.name for curve in metrics.losses] == ["train_loss"]
    assert [curve.name for curve in metrics.fractions] == ["pseudo_accuracy", "val_accuracy"]
    # the learning rate has no epoch: all is drawn over steps
    assert [curve.name for curve in metrics.others] == ["lr-AdamW", "seconds_spread"]
    assert metrics.axis == "step"
    np.testing.assert_array_equal(metrics.losses[0].x, [9, 19])
    np.testing.assert_array_equal(metrics.losses[0].y, [2.5, 1.5])
    assert metrics.fractions[0].last == 0.75


def test_epochs_are_the_axis_where_each_has_one_value(tmp_path: Path) -> None:
    once = read_metrics(write(tmp_path, "epoch,step,loss\n0,9,3\n1,19,2\n"))
    twice = read_metrics(write(tmp_path, "epoch,step,loss\n0,9,3\n0,14,2.5\n1,19,2\n"))
    neither = read_metrics(write(tmp_path, "loss\n3\n2\n"))
    assert once is not None
    assert twice is not None
    assert neither is not None
    assert (once.axis, once.losses[0].x.tolist()) == ("epoch", [1, 2])
    assert (twice.axis, twice.losses[0].x.tolist()) == ("step", [9, 14, 19])
    assert (neither.axis, neither.losses[0].x.tolist()) == ("row", [0, 1])


def test_long_curves_are_means_of_neighbors(tmp_path: Path) -> None:
    values = np.linspace(5, 1, 3000)
    text = "step,train_loss\n" + "".join(f"{step},{value!r}\n" for step, value in enumerate(values.tolist()))
    metrics = read_metrics(write(tmp_path, text))
    assert metrics is not None
    curve = metrics.losses[0]
    np.testing.assert_allclose(curve.y, values.reshape(150, 20).mean(1))
    np.testing.assert_allclose(curve.x, np.arange(3000).reshape(150, 20).mean(1))
    assert curve.num_logged == 3000
    assert math.isclose(curve.last, 1)


def test_values_that_are_not_finite_are_counted(tmp_path: Path) -> None:
    metrics = read_metrics(write(tmp_path, "epoch,step,loss,empty\n0,1,nan,\n1,2,inf,\n2,3,0.5,\n"))
    assert metrics is not None
    assert metrics.num_nonfinite == 2
    assert metrics.losses[0].y.tolist() == [0.5]
    assert len(metrics.fractions) == len(metrics.others) == 0


def test_absent_and_half_written_files(tmp_path: Path) -> None:
    assert read_metrics(tmp_path / "metrics.csv") is None
    empty = read_metrics(write(tmp_path, ""))
    assert empty is not None
    assert not empty.losses
    half = read_metrics(write(tmp_path, "epoch,step,loss\n0,1,0.5\n1,2"))
    assert half is not None
    assert half.losses[0].y.tolist() == [0.5]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"epoch,loss\n0,1\n1,oops\n", r"metrics\.csv, line 3: every cell must be empty or a number .*'oops'"),
        (b"epoch,loss\n0,1,2\n", r"metrics\.csv, line 2: 2 cells are needed.*got 3"),
        (b"epoch,loss\n\xff\xfe,1\n", r"metrics\.csv cannot be read as a CSV table"),
    ],
)
def test_a_file_that_is_no_such_table_is_named(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "metrics.csv"
    path.write_bytes(content)
    with pytest.raises(DataError, match=message):
        read_metrics(path)
