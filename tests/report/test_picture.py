import json
from pathlib import Path

import matplotlib
import numpy as np
import pytest
from PIL import Image

from lspread.errors import DataError
from lspread.report import plot_result


def change(run_dir: Path, **parts) -> None:
    path = run_dir / "results.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | parts))


def test_the_picture_is_a_small_png_and_leaves_matplotlib_alone(run_dir: Path, tmp_path: Path) -> None:
    before = dict(matplotlib.rcParams)
    path = plot_result(run_dir, tmp_path / "docs" / "result.png")
    assert path == tmp_path / "docs" / "result.png"
    assert path.stat().st_size < 300_000
    with Image.open(path) as image:
        assert image.format == "PNG"
        assert image.width >= 1000
        pixels = np.asarray(image.convert("RGB")).reshape(-1, 3)
    colors = {tuple(color) for color in np.unique(pixels, axis=0).tolist()}
    assert (255, 255, 255) in colors
    assert (12, 133, 153) in colors or min(np.abs(np.array(sorted(colors)) - (12, 133, 153)).sum(1)) < 12
    assert dict(matplotlib.rcParams) == before
    assert plot_result(run_dir, tmp_path / "again.png").read_bytes() == path.read_bytes()


def test_bars_are_as_long_as_the_accuracies(run_dir: Path, tmp_path: Path) -> None:
    """Measured on the picture itself: the colored length of each bar against the axis."""
    results = json.loads((run_dir / "results.json").read_text())
    wanted = {"classifier": 0.9, "graph": 0.45}
    scores = [
        score | {"accuracy": wanted[score["key"]], "ci95": None}
        for score in results["scores"]
        if score["key"] in wanted
    ]
    change(run_dir, scores=scores, given=[], most_certain=[], least_certain=[])
    with Image.open(plot_result(run_dir, tmp_path / "p.png")) as image:
        pixels = np.asarray(image.convert("RGB")).astype(int)
    right = pixels[:, int(pixels.shape[1] * 0.57) :]
    is_bar = np.abs(right - (12, 133, 153)).sum(-1) < 40
    lengths = is_bar.sum(1)
    long, short = (
        np.median(lengths[lengths > lengths.max() * 0.75]),
        np.median(lengths[(lengths > 20) & (lengths < lengths.max() * 0.75)]),
    )
    assert abs(short / long - 0.5) < 0.01


@pytest.mark.parametrize(
    "parts",
    [
        {"scores": [], "cross_validation": []},
        {"scores": [], "cross_validation": [{"key": "graph", "method": "graph", "accuracy": 0.5, "num_items": 10}]},
        {"map": None},
        {"given": None, "most_certain": None, "least_certain": None},
        {"scores": [], "map": None, "given": [], "most_certain": [], "least_certain": []},
    ],
)
def test_what_is_absent_is_left_out(run_dir: Path, tmp_path: Path, parts: dict) -> None:
    change(run_dir, **parts)
    with Image.open(plot_result(run_dir, tmp_path / "p.png")) as image:
        assert image.width == 1650


def test_heavy_pictures_stay_below_the_limit(run_dir: Path, tmp_path: Path) -> None:
    for path in (run_dir / "thumbnails").iterdir():
        Image.effect_noise((128, 128), 100).convert("RGB").save(path)
    assert plot_result(run_dir, tmp_path / "p.png").stat().st_size < 300_000


def test_errors_name_the_file(run_dir: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match=r"plot_result cannot write .*p\.png"):
        plot_result(run_dir, tmp_path / "file" / "p.png")
    with pytest.raises(DataError, match=r"results\.json"):
        plot_result(tmp_path, tmp_path / "p.png")
