"""`lspread embed`: from images, texts or a table to one file of embeddings."""

import argparse
import hashlib
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lspread.errors import ConfigError, DataError

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from lspread.data import EmbeddedItems
    from lspread.data.decoding import Window
    from lspread.typing import Metric

__all__ = ["pick_device", "run"]

PART = 2048
"""Images between two savings."""
_FOR_IMAGES = ("backbone", "weights", "image_size", "channels", "window", "skip_unreadable")
_FOR_ROWS = ("text", "model", "id", "leave_out")
_FOR_NETWORKS = ("batch_size", "device")
_OTHER_NETWORKS = ("backbone", "weights")


def run(command: str, argv: list[str]) -> int:
    """Embed a folder of images or the rows of a CSV file."""
    parser = argparse.ArgumentParser(
        prog=f"lspread {command}",
        allow_abbrev=False,
        description="Write the embeddings of images, texts or rows of a table to one .safetensors file.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="""examples:
  lspread embed photos/ -o photos.safetensors                                      (pixels; no network)
  lspread embed photos/ -o photos.safetensors --run runs/20260101-120000-photos    (a network that lspread trained)
  lspread embed photos/ -o photos.safetensors --backbone torchvision/resnet18 --weights resnet18.pth --image-size 224
  lspread embed scans/ -o scans.safetensors --channels 1 --window 0 4095           (12-bit scans in 16-bit files)
  lspread embed mails.csv -o mails.safetensors --text message                      (words; --model for a network)
  lspread embed payments.csv -o payments.safetensors --leave-out customer
  lspread embed new.csv -o new.safetensors --run runs/20260101-120000-payments     (a network trained on such rows)""",
    )
    parser.add_argument("source", type=Path, help="a folder of images, or a CSV file with one item per row")
    parser.add_argument("-o", "--output", type=Path, required=True, help="the .safetensors file to write")
    parser.add_argument("--run", type=Path, metavar="RUN", help="folder of a finished run whose network to use")
    parser.add_argument("--batch-size", type=int, default=256, help="items of one step of a network; default: 256")
    parser.add_argument("--device", default="auto", help="cpu, cuda, mps or auto (default)")
    images = parser.add_argument_group("images")
    images.add_argument("--backbone", default="pixels", help="torchvision/<model>, timm/<model> or pixels (default)")
    images.add_argument("--weights", type=Path, help="local file with the backbone's weights")
    images.add_argument("--image-size", type=int, help="height and width; default: the run's, else 32")
    images.add_argument("--channels", type=int, choices=(1, 3), help="1 grey, 3 color; default: the run's, else 3")
    images.add_argument(
        "--window",
        nargs="+",
        metavar="WORD",
        help="files with more than 8 bits: full (default), image, or the values of black and white; default: the run's",
    )
    images.add_argument("--skip-unreadable", action="store_true", help="leave out files that cannot be read")
    rows = parser.add_argument_group("rows of a CSV file")
    rows.add_argument("--text", metavar="COLUMN", help="column of texts; default: `text`, if there is one")
    rows.add_argument("--model", help="wordllama, or a local folder of sentence-transformers; default: words")
    rows.add_argument("--id", metavar="COLUMN", help="column that names the items; default: `item` or `id`, else rows")
    rows.add_argument("--leave-out", nargs="+", default=[], metavar="COLUMN", help="columns that are no features")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of sentences")
    options = parser.parse_args(argv)
    if options.output.suffix != ".safetensors":
        raise ConfigError(f"-o needs a name that ends in .safetensors; got {options.output}.")
    if options.batch_size < 1:
        raise ConfigError(f"--batch-size must be at least 1; got {options.batch_size}.")
    has_labels = False
    if options.source.is_dir():
        _refuse(parser, options, _FOR_ROWS, f"rows of a CSV file, and {options.source} is a folder")
        if options.run is not None:
            _refuse(parser, options, _OTHER_NETWORKS, "another network than that of --run: name one of them")
        elif options.backbone == "pixels":
            _refuse(parser, options, ("weights", *_FOR_NETWORKS), "a network, which --backbone names, or --run")
        found = _embed_images(options)
    elif options.source.is_file():
        _refuse(parser, options, _FOR_IMAGES, f"a folder of images, and {options.source} is a file")
        if options.run is None:
            _refuse(parser, options, _FOR_NETWORKS, "a network; that of a run on such rows is named by --run")
        found, has_labels = _embed_rows(options)
    else:
        raise DataError(f"There is no folder and no file {options.source}.")
    found.save(options.output)
    _Parts.remove(options.output)
    n, d = found.embedding.shape
    facts = {"output": str(options.output), "kind": found.kind, "num_items": n, "num_features": d, **found.made_by}
    if options.json:
        print(json.dumps(facts))
    else:
        print(f"{n:,} items of {options.source}, {d} numbers each ({found.made_by['features']})")
        print(f"wrote {options.output}")
        labels = options.source if has_labels else "labels.csv"
        print(f"next: lspread suggest {options.output}    lspread spread {options.output} --labels {labels} -o out/")
        if found.kind != "image" and not has_labels:
            print(f"labels.csv has the columns item and label; items are {', '.join(found.items[:3])}, ...")
    return 0


def _refuse(parser: argparse.ArgumentParser, options: argparse.Namespace, names: tuple[str, ...], what: str) -> None:
    """End with an error where an option for something else was given."""
    for name in names:
        if getattr(options, name) != parser.get_default(name):
            parser.error(f"--{name.replace('_', '-')} is for {what}.")


def _embed_images(options: argparse.Namespace) -> "EmbeddedItems":
    import torch

    from lspread.data import EmbeddedItems, FolderImages
    from lspread.data.image_folder import IMAGE_SUFFIXES, find_images

    network, preprocess, size, channels, features, window = _network(options)
    if options.window is not None:
        window = _window(options.window)
    names = find_images(options.source)
    if not names:
        raise DataError(
            f"There are no images under {options.source}. Files that end in {', '.join(IMAGE_SUFFIXES)} are read."
        )
    if options.skip_unreadable:
        files = FolderImages([options.source / name for name in names], size, channels, window=window)
        bad = {path for path, _ in files.find_unreadable(progress=True)}
        names = [name for name in names if options.source / name not in bad]
        for path in sorted(bad):
            print(f"left out, unreadable: {path}", file=sys.stderr)
        if not names:
            raise DataError(f"None of the {len(bad)} image files under {options.source} can be read.")
    source = options.source.resolve()
    images = FolderImages([source / name for name in names], size, channels, window=window)
    told = [size, channels, features, window, images.fingerprint(torch.arange(len(names))), _weights(options)]
    parts = _Parts(options.output, told)
    device = pick_device(options.device)
    if network is not None:
        network.to(device)
    from rich.console import Console
    from rich.progress import track

    starts = range(0, len(names), PART)
    done: list[Tensor] = []
    is_watched = sys.stderr.isatty() and not options.json
    for start in track(starts, description="embed", console=Console(stderr=True)) if is_watched else starts:
        rows = torch.arange(start, min(start + PART, len(names)))
        found = parts.load(start)
        if found is None:
            found = _embed_part(images, rows, network, preprocess, options.batch_size, device)
            parts.save(start, found)
        done.append(found)
    return EmbeddedItems(torch.cat(done), names, "image", str(source), "cosine", {"features": features})


def _embed_part(images: Any, rows: "Tensor", network: Any, preprocess: Any, batch_size: int, device: Any) -> "Tensor":
    import torch

    from lspread.data.features import pixel_features
    from lspread.nn import embed

    batches = (images.fetch(part) for part in rows.split(batch_size))
    if network is None:
        return torch.cat([pixel_features(batch) for batch in batches])
    return embed(network, list(batches), device=device, preprocess=preprocess).cpu()


def _network(options: argparse.Namespace) -> "tuple[Any, Any, int, int, str, Window]":
    """Return the network or None, how to prepare its images, their size, channels and window, and what it is called."""
    if options.run is not None:
        from lspread.cli.new_items import check_takes_images
        from lspread.lit.saved_model import load_classifier

        saved = load_classifier(options.run)
        shape = saved.image_shape
        check_takes_images(options.run, saved)
        mean, std = saved.mean, saved.std
        size, channels = options.image_size or shape[1], options.channels or shape[0]
        return saved.backbone, _Normalize(mean, std), size, channels, f"run {options.run}", saved.window
    size, channels = options.image_size or 32, options.channels or 3
    if options.backbone == "pixels":
        return None, None, size, channels, f"pixels of {size} x {size}", "full"
    if options.weights is None:
        raise ConfigError(
            f"--backbone {options.backbone} needs --weights FILE: weights are never downloaded, and a network without "
            "them sees nothing. Without a network: --backbone pixels."
        )
    import torch

    from lspread.nn import create_backbone

    network = create_backbone(options.backbone, in_channels=channels, checkpoint=options.weights)
    # What networks trained on ImageNet expect.
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    if channels == 1:
        mean, std = mean.mean(0, keepdim=True), std.mean(0, keepdim=True)
    prepare = _Normalize(mean.view(1, -1, 1, 1), std.view(1, -1, 1, 1))
    return network, prepare, size, channels, f"{options.backbone}, {options.weights.name}, {size} x {size}", "full"


def _weights(options: argparse.Namespace) -> list[Any]:
    """Return what tells the weights from others under the same name: their path, size and time of change."""
    from lspread.lit.saved_model import MODEL_FILE

    if options.run is None and options.backbone == "pixels":
        return []
    file = options.weights if options.run is None else options.run / MODEL_FILE
    return [str(file.resolve()), file.stat().st_size, file.stat().st_mtime_ns]


def _window(words: list[str]) -> "Window":
    from lspread.data.decoding import check_window

    if len(words) == 1:
        return check_window(words[0])  # type: ignore[arg-type]
    try:
        low, high = map(float, words)
    except ValueError:
        raise ConfigError(f"--window takes full, image or two numbers; got {' '.join(words)}.") from None
    return check_window((low, high))


class _Normalize:
    """Bring images in [0, 1] to what a network expects."""

    def __init__(self, mean: "Tensor", std: "Tensor") -> None:
        self.mean, self.std = mean, std

    def __call__(self, image: "Tensor") -> "Tensor":
        return (image - self.mean.to(image.device)) / self.std.to(image.device)


class _Parts:
    """What is embedded already, beside the file that will hold all of it; other files or weights start anew."""

    def __init__(self, output: Path, source: list[Any]) -> None:
        self.folder = self.folder_of(output)
        key = hashlib.sha256(json.dumps(source).encode("utf-8", "surrogatepass")).hexdigest()
        note = self.folder / "source"
        if note.is_file() and note.read_text() == key:
            return
        self.remove(output)
        self.folder.mkdir(parents=True)
        note.write_text(key)

    def load(self, start: int) -> "Tensor | None":
        from safetensors.torch import load_file

        path = self.folder / f"{start}.safetensors"
        return load_file(path)["embedding"] if path.is_file() else None

    def save(self, start: int, embedding: "Tensor") -> None:
        from safetensors.torch import save_file

        part = self.folder / "part"
        save_file({"embedding": embedding.contiguous()}, part)
        part.replace(self.folder / f"{start}.safetensors")

    @staticmethod
    def folder_of(output: Path) -> Path:
        return output.with_name(output.name + ".parts")

    @staticmethod
    def remove(output: Path) -> None:
        import shutil

        shutil.rmtree(_Parts.folder_of(output), ignore_errors=True)


def pick_device(name: str) -> "torch.device":
    """Return the device of a name; "auto" takes a GPU where there is one.

    Raises:
        ConfigError: There is no such device.
    """
    import torch

    if name != "auto":
        try:
            device = torch.device(name)
            torch.empty(0, device=device)
        except (RuntimeError, AssertionError) as error:
            raise ConfigError(f"--device {name} cannot be used here: {str(error).splitlines()[0]}") from error
        return device
    if torch.cuda.is_available():
        return torch.device("cuda")
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")


def _embed_rows(options: argparse.Namespace) -> "tuple[EmbeddedItems, bool]":
    """Return the rows with their embeddings, and whether some of them have a label."""
    from lspread.data import EmbeddedItems
    from lspread.data.columns import read_columns

    root = str(options.source.resolve())
    if options.run is not None:
        return _embed_by_run(options, root)
    columns = read_columns(options.source)
    columns.require(options.text, *options.leave_out)
    items, id_column = columns.name_rows(options.id)
    told = {"label", *options.leave_out} | ({id_column} if id_column else set())
    found = columns.features(options.text, model=options.model, leave_out=told)
    metric: Metric = "cosine" if found.kind == "text" else "euclidean"
    rows = columns.fingerprint()
    return EmbeddedItems(found.embedding, items, found.kind, root, metric, found.made_by, rows), columns.has_labels


def _embed_by_run(options: argparse.Namespace, root: str) -> "tuple[EmbeddedItems, bool]":
    """Return the rows embedded by the network of a run on such rows, and whether some of them have a label."""
    import torch

    from lspread.cli.new_items import open_new_items
    from lspread.data import EmbeddedItems
    from lspread.lit.saved_model import load_classifier
    from lspread.nn import embed

    if options.text or options.model or options.leave_out:
        raise ConfigError(
            "--run says itself which columns are read and how: leave out --text, --model and --leave-out."
        )
    saved = load_classifier(options.run)
    new = open_new_items(options.source, options.run, saved, options.id)
    device = pick_device(options.device)
    batches = [new.fetch(rows)[0] for rows in torch.arange(len(new.names)).split(options.batch_size)]
    z = embed(saved.backbone.to(device), batches, device=device, preprocess=_Normalize(saved.mean, saved.std)).cpu()
    made_by = {"features": f"run {options.run}"}
    return EmbeddedItems(z, new.names, new.kind, root, "cosine", made_by, new.rows), new.has_labels
