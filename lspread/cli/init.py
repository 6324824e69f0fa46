"""`lspread init`: the two files that a folder of images needs, ready to be filled in."""

import argparse
import csv
from pathlib import Path

from lspread.cli.config import bundled_config
from lspread.errors import DataError

__all__ = ["run"]


def run(command: str, argv: list[str]) -> int:
    """Write labels.csv, with a row for every image, and config.yaml."""
    parser = argparse.ArgumentParser(
        prog=f"lspread {command}",
        allow_abbrev=False,
        description="Write labels.csv (a row for every image, labels empty) and config.yaml (settings, with comments) "
        "into a folder of images. Files that are there stay as they are.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="""examples:
  lspread init photos/
  then fill some cells of the column `label`, at least one of two classes, and:
  lspread fit --config photos/config.yaml""",
    )
    parser.add_argument("folder", type=Path, metavar="DIR", help="the folder of images")
    folder: Path = parser.parse_args(argv).folder
    from lspread.data.image_folder import IMAGE_SUFFIXES, find_images

    if not folder.is_dir():
        raise DataError(f"There is no folder {folder}.")
    names = find_images(folder)
    if not names:
        raise DataError(f"There are no images under {folder}. Files that end in {', '.join(IMAGE_SUFFIXES)} are read.")
    labels, config = folder / "labels.csv", folder / "config.yaml"
    written = []
    if not labels.exists():
        with labels.open("w", newline="", encoding="utf-8", errors="surrogateescape") as file:
            csv.writer(file).writerows([("file", "label"), *((name, "") for name in names)])
        written.append(labels)
    if not config.exists():
        config.write_text(_settings(folder), encoding="utf-8")
        written.append(config)
    for path in (labels, config):
        print(f"{'wrote' if path in written else 'left as it was:'} {path}")
    print(f"{len(names):,} images. Next:")
    print(f"  1. fill cells of the column `label` in {labels}; what stays empty is unlabeled. Which ones help most:")
    print(f"     lspread embed {folder} -o embeddings.safetensors && lspread suggest embeddings.safetensors")
    print(f"  2. lspread fit --config {config}")
    return 0


def _settings(folder: Path) -> str:
    """Return the settings of image_folder.yaml for this folder, comments and all."""
    text = bundled_config("image_folder").read_text(encoding="utf-8")
    lines = []
    for line in text.splitlines():
        indent = line[: len(line) - len(line.lstrip())]
        if line.strip().startswith("root:"):
            line = f"{indent}root: {_quoted(str(folder))}"
        elif line.strip().startswith("labels_csv:"):
            line = f"{indent}labels_csv: labels.csv"
        lines.append(line)
    return "\n".join(lines) + "\n"


def _quoted(text: str) -> str:
    """Return a YAML string that holds any path."""
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'
