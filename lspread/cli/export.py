"""`lspread export`: a finished run as files that other tools read."""

import argparse
import csv
import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lspread.cli.items import check_folder
from lspread.errors import ConfigError, DataError

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

    from lspread.lit.graph_head import GraphClassifier
    from lspread.lit.saved_model import SavedClassifier

__all__ = ["run"]

FORMATS = ("safetensors", "torch-export", "onnx", "label-studio")
TOLERANCE = 1e-4
"""Largest difference of outputs between the run's network and what was exported."""
MAX_BATCH = 2**31 - 1
"""Images at a time that an exported network takes: PyTorch 2.6 exports no graph head without an end."""


def run(command: str, argv: list[str]) -> int:
    """Write one format of a run and check that it answers as the run does."""
    parser = argparse.ArgumentParser(
        prog=f"lspread {command}",
        allow_abbrev=False,
        description="Write a finished run for other tools; what was written is read again and compared with the run.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="""formats:
  safetensors   weights of backbone and head, and model.json that says how to build them
  torch-export  model.pt2 for torch.export.load: images (m, ch, h, w), float in [0, 1], to logits; no lspread needed
  onnx          model.onnx, the same for ONNX runtimes (needs: pip install onnx onnxscript onnxruntime)

with --head graph the nearest training images vote, with the labels that the graph spread to them:
  safetensors   graph_head.safetensors (embeddings and their labels) beside the two files of the network
  torch-export  graph.pt2: images to class probabilities
  onnx          graph.onnx, the same

and of the run's answers:
  label-studio  predictions.json: tasks with predictions, to be corrected in Label Studio

examples:
  lspread export runs/20260101-120000-photos --to torch-export -o exported/
  lspread export runs/20260101-120000-photos --to onnx --head graph -o exported/
  lspread export runs/20260101-120000-photos --to label-studio -o exported/ --url-prefix https://host/photos/""",
    )
    parser.add_argument("run", type=Path, metavar="RUN", help="a folder of a finished run")
    parser.add_argument("--to", choices=FORMATS, required=True)
    parser.add_argument("-o", "--output", type=Path, required=True, help="folder to write")
    parser.add_argument(
        "--head",
        choices=("classifier", "graph"),
        default="classifier",
        help="who answers in the network that is written",
    )
    parser.add_argument("--url-prefix", default="", help="label-studio: what stands before the path of every image")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of sentences")
    options = parser.parse_args(argv)
    if options.to == "label-studio" and options.head == "graph":
        raise ConfigError("--head graph is for networks; label-studio gets the answers in the run's predictions.csv.")
    if options.output.resolve() == options.run.resolve():
        raise ConfigError(f"-o {options.output} is the run itself; choose another folder.")
    check_folder(options.output)
    options.output.mkdir(parents=True, exist_ok=True)
    if options.to == "label-studio":
        path, note = _label_studio(options.run, options.output, options.url_prefix)
    else:
        path, note = _network(options.run, options.to, options.output, options.head)
    print(json.dumps({"output": str(path), "check": note}) if options.json else f"wrote {path}: {note}")
    return 0


def _network(folder: Path, to: str, output: Path, head: str) -> tuple[Path, str]:
    import torch

    from lspread.lit.graph_head import GRAPH_HEAD_FILE, load_graph_classifier
    from lspread.lit.saved_model import MODEL_FILE, SPEC_FILE, load_classifier

    load: Callable[[Path], SavedClassifier | GraphClassifier]
    load, name, files = load_classifier, "model", [SPEC_FILE, MODEL_FILE]
    if head == "graph":
        load, name, files = load_graph_classifier, "graph", [*files, GRAPH_HEAD_FILE]
    model = load(folder)
    image = torch.rand(3, *model.image_shape, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = model(image)
    if to == "safetensors":
        for file in files:
            shutil.copyfile(folder / file, output / file)
        with torch.no_grad():
            found = load(output)(image)
        return output / files[-1], _compare(found, expected)
    if to == "torch-export":
        path = output / f"{name}.pt2"
        program = torch.export.export(model, (image,), dynamic_shapes=({0: torch.export.Dim("batch", max=MAX_BATCH)},))
        torch.export.save(program, path)
        with torch.no_grad():
            found = torch.export.load(path).module()(image[:2])
        _write_classes(model, output)
        return path, _compare(found, expected[:2])
    path = output / f"{name}.onnx"
    return path, _onnx(model, image, expected, path)


def _onnx(model: "SavedClassifier | GraphClassifier", image: "Tensor", expected: "Tensor", path: Path) -> str:
    import torch

    try:
        import onnxruntime
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise ConfigError(
            f"--to onnx needs packages that are not installed ({error.name}): pip install onnx onnxscript onnxruntime"
        ) from error
    torch.onnx.export(
        model,
        (image,),
        str(path),
        input_names=["image"],
        output_names=["logits" if path.stem == "model" else "probability"],
        dynamic_shapes=({0: torch.export.Dim("batch", max=MAX_BATCH)},),
        dynamo=True,
        external_data=False,
        verbose=False,
    )
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    found = torch.from_numpy(session.run(None, {"image": image[:2].numpy()})[0])
    _write_classes(model, path.parent)
    return _compare(found, expected[:2])


def _write_classes(model: "SavedClassifier | GraphClassifier", output: Path) -> None:
    (output / "classes.json").write_text(json.dumps(model.class_names, ensure_ascii=False) + "\n", encoding="utf-8")


def _compare(found: "Tensor", expected: "Tensor") -> str:
    """Return a sentence on the largest difference; raise `DataError` where it is no rounding."""
    difference = float((found - expected).abs().max())
    if not difference <= TOLERANCE * max(1.0, float(expected.abs().max())):
        raise DataError(
            f"what was exported answers differently: outputs differ by up to {difference:.3g}. Please report this with "
            "the run's model.json."
        )
    return f"outputs agree with the run's to {difference:.1e}"


def _label_studio(folder: Path, output: Path, prefix: str) -> tuple[Path, str]:
    table = folder / "predictions.csv"
    if not table.is_file():
        raise DataError(f"{folder} has no predictions.csv; name the folder of a finished run or of `lspread spread`.")
    if (folder / "results.json").is_file():
        from lspread.report import read_results

        noun = read_results(folder).noun
        if noun in ("texts", "rows"):
            raise ConfigError(
                f"--to label-studio needs a run on images, whose paths its tasks hold; {folder} is about {noun}, and "
                "its predictions.csv has only their names. Join it by its column `item` with the file of the rows."
            )
    tasks: list[dict[str, Any]] = []
    with table.open(newline="", encoding="utf-8", errors="surrogateescape") as file:
        for row in csv.DictReader(file):
            task: dict[str, Any] = {"data": {"image": prefix + (row["item"] if "item" in row else row["file"])}}
            if row["label"]:
                choice = {
                    "from_name": "label",
                    "to_name": "image",
                    "type": "choices",
                    "value": {"choices": [row["label"]]},
                }
                kind = "annotations" if row.get("status") == "given" else "predictions"
                task[kind] = [
                    {"result": [choice]} | ({} if kind == "annotations" else {"score": float(row["confidence"])})
                ]
            tasks.append(task)
    path = output / "predictions.json"
    path.write_text(json.dumps(tasks, indent=1) + "\n", encoding="utf-8")
    given = sum("annotations" in task for task in tasks)
    return path, f"{len(tasks):,} tasks, {given:,} annotated, the others with predictions"
