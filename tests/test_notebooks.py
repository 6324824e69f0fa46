"""The lessons run from top to bottom, and what is committed is what they print."""

import base64
import json
import os
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
MAX_BYTES = 1_000_000
# A path of the machine that ran it has no place in a lesson: /home/me, /Users/me, /tmp/x, C:\Users, ...
ABSOLUTE_PATH = re.compile(r"(?<![\w.:/<])/(?:srv|tmp|root|home|Users|var|usr|opt|mnt|private)(?:/|\b)|\b[A-Za-z]:\\\w")
PNG = b"\x89PNG\r\n\x1a\n"

each_notebook = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


def read_cells(path, kind):
    return [cell for cell in json.loads(path.read_text(encoding="utf-8"))["cells"] if cell["cell_type"] == kind]


def join(text):
    return text if isinstance(text, str) else "".join(text)


def list_texts(output):
    """Give everything readable in an output; pictures are base64 and may spell anything."""
    texts = [join(output[field]) for field in ("text", "evalue") if field in output]
    return texts + [join(value) for kind, value in output.get("data", {}).items() if kind.startswith("text/")]


def find_paths(path):
    """Name the machine's paths in a notebook's sources, readable outputs and metadata."""
    notebook = json.loads(path.read_text(encoding="utf-8"))
    texts = [json.dumps(notebook["metadata"])]
    for cell in notebook["cells"]:
        texts += [join(cell["source"]), json.dumps(cell["metadata"])]
        for output in cell.get("outputs", []):
            texts += list_texts(output)
    return [match for text in texts for match in ABSOLUTE_PATH.findall(text)]


def test_the_lessons_are_there():
    names = {"01_ten_labels", "02_layer", "03_active_learning", "04_noisy_labels", "05_text_and_tables"}
    assert names | {"06_from_scikit_learn"} <= {path.stem for path in NOTEBOOKS}


@each_notebook
def test_runs_without_an_error(path, tmp_path):
    nbclient = pytest.importorskip("nbclient")
    nbformat = pytest.importorskip("nbformat")
    pytest.importorskip("ipykernel")
    notebook = nbformat.read(path, as_version=4)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None
    client = nbclient.NotebookClient(
        notebook,
        timeout=300,
        startup_timeout=300,  # a busy machine takes more than the minute that is the default
        kernel_name="python3",
        resources={"metadata": {"path": str(tmp_path)}},
    )
    python_path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    client.execute(env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": python_path})  # raises CellExecutionError
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    assert list(tmp_path.iterdir()) == [], "a lesson cleans up after itself"
    # A reader sees the committed outputs; they must be of the same kinds, cell by cell, as a run of today prints.
    for fresh, kept in zip(code, read_cells(path, "code"), strict=True):
        assert list_kinds(fresh["outputs"]) == list_kinds(kept["outputs"]), join(kept["source"])


def list_kinds(outputs):
    """Name what a cell shows: text, errors, pictures. Order and number of text pieces depend on timing."""
    kinds = [(output["output_type"], output.get("name"), *sorted(output.get("data", {}))) for output in outputs]
    pictures = [kind for kind in kinds if "image/png" in kind]
    return sorted(set(kinds) - set(pictures), key=str), len(pictures)


@each_notebook
def test_is_committed_with_its_outputs(path):
    assert path.stat().st_size < MAX_BYTES
    code = read_cells(path, "code")
    assert [cell["execution_count"] for cell in code] == list(range(1, len(code) + 1)), "run it from top to bottom"
    outputs = [output for cell in code for output in cell["outputs"]]
    assert not [output for output in outputs if output["output_type"] == "error"]
    assert not [join(output["text"]) for output in outputs if output.get("name") == "stderr"]
    assert any(output.get("name") == "stdout" for output in outputs)
    pictures = [
        base64.b64decode(join(output["data"]["image/png"]))
        for output in outputs
        if "image/png" in output.get("data", {})
    ]
    assert pictures
    assert all(picture.startswith(PNG) for picture in pictures)


@each_notebook
def test_shows_no_path_of_a_machine(path):
    assert find_paths(path) == []


@pytest.mark.parametrize(
    ("text", "is_path"),
    [
        ("saved in /tmp/tmpab12/run", True),
        ("File /root/x.py", True),
        ("'/srv/data'", True),
        ("cd /home/me", True),
        ("C:\\Users\\me", True),
        ("configs/image_folder.yaml", False),
        ("https://example.org/home/page", False),
        ("notebooks/tmp/x", False),
        ("1/2", False),
    ],
)
def test_path_search_finds_paths_and_nothing_else(text, is_path, tmp_path):
    output = {"output_type": "stream", "name": "stdout", "text": [text]}
    cells = [{"cell_type": "code", "source": "", "metadata": {}, "outputs": [output]}]
    notebook = tmp_path / "x.ipynb"
    notebook.write_text(json.dumps({"metadata": {}, "cells": cells}), encoding="utf-8")
    assert bool(find_paths(notebook)) == is_path


@each_notebook
def test_explains_before_it_computes(path):
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    assert cells[0]["cell_type"] == "markdown"
    assert join(cells[0]["source"]).startswith("# ")
    named = set(re.findall(r"`((?:configs|experiments)/[\w./-]+)`", "\n".join(join(cell["source"]) for cell in cells)))
    named |= set(re.findall(r"--config (configs/[\w./-]+)", "\n".join(join(cell["source"]) for cell in cells)))
    assert [name for name in sorted(named) if not (ROOT / name).is_file()] == []
