import csv
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lspread.cli.config import bundled_config
from lspread.cli.main import main

COLORS = {"blue": (40, 60, 200), "green": (50, 190, 60), "red": (200, 50, 40)}


@dataclass(frozen=True)
class Photos:
    root: Path
    label: dict[str, str]  # true class of every file
    given: dict[str, str]  # labels.csv
    val: dict[str, str]  # val.csv


def make_photos(root):
    """Write 42 small pictures, mostly of one color each, some of them in a subfolder."""
    draw = np.random.default_rng(0)
    label = {}
    (root / "more things").mkdir(parents=True)
    for number in range(42):
        name = list(COLORS)[number % 3]
        file = f"{'more things/' if number % 7 == 0 else ''}{number:02d} picture.png"
        pixel = np.array(COLORS[name]) + draw.normal(0, 25, (12, 12, 3))
        Image.fromarray(pixel.clip(0, 255).astype(np.uint8)).save(root / file)
        label[file] = name
    files = list(label)
    given = {file: label[file] for file in files[:6]}
    val = {file: label[file] for file in files[6:12]}
    for table, rows in (("labels.csv", given), ("val.csv", val)):
        with (root / table).open("w", newline="", encoding="utf-8") as out:
            csv.writer(out).writerows([("file", "label"), *rows.items()])
    return Photos(root, label, given, val)


@pytest.fixture(scope="session")
def photos(tmp_path_factory):
    return make_photos(tmp_path_factory.mktemp("data") / "my photos")


@pytest.fixture(scope="session")
def config_path():
    return lambda name: str(bundled_config(name))


@pytest.fixture(scope="session")
def photo_arguments(photos, config_path):
    """Return a function that lists the arguments of a fit which takes about a second."""
    options = {
        "--config": config_path("image_folder"),
        "--data.root": str(photos.root),
        "--data.val_csv": "val.csv",
        "--data.image_size": "12",
        "--data.batch_size": "16",
        "--data.labeled_batch_size": "6",
        "--model.backbone.widths": "[8, 16]",
        "--model.warmup_epochs": "1",
        "--trainer.max_epochs": "4",
        "--trainer.accelerator": "cpu",
    }
    listed = [text for option in options.items() for text in option]
    return lambda run_dir, *others: ["fit", *listed, "--run_dir", str(run_dir), *others]


@pytest.fixture(scope="session")
def finished_run(photo_arguments, tmp_path_factory):
    """A run folder that tests read and leave as it is."""
    run_dir = tmp_path_factory.mktemp("runs") / "photos"
    assert main(photo_arguments(run_dir)) == 0
    return run_dir
