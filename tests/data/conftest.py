from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image


@pytest.fixture
def make_folder(tmp_path: Path) -> Callable[..., Path]:
    """Return a function that writes small PNGs, each of one grey value: 10, 20, 30, ..."""

    def make(files: list[str], csv: str | None = None, name: str = "photos") -> Path:
        root = tmp_path / name
        root.mkdir(exist_ok=True)
        for i, file in enumerate(files):
            path = root / file
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(np.full((10, 12, 3), 10 * (i + 1), dtype=np.uint8)).save(path)
        if csv is not None:
            (root / "labels.csv").write_text(csv, encoding="utf-8")
        return root

    return make
