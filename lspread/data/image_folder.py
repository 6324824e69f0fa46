"""A folder of images, with labels in a CSV file or one subfolder per class."""

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor

from lspread.data.decoding import Window, check_window
from lspread.data.groups import choose_held_out, read_groups_csv, whole_groups
from lspread.data.images import FolderImages, Images
from lspread.data.labels_csv import LabelTable, class_names_of, read_labels_csv
from lspread.data.module import FewLabelData, Items
from lspread.errors import ConfigError, DataError
from lspread.typing import UNLABELED

__all__ = ["IMAGE_SUFFIXES", "ImageFolder", "find_images"]

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".webp", ".tif", ".tiff", ".gif")
DEFAULT_CSV = "labels.csv"
_PART_NAMES = {"train", "training", "val", "valid", "validation", "test", "testing"}
_UNLABELED_NAMES = {"unlabeled", "unlabelled"}
_SHOWN = 8
_OWN_PICTURES = {"thumbnails": "results.json", "suggestions.png": "suggestions.csv", "audit.png": "audit.csv"}
"""What lspread itself draws, a folder or a file, and what lies beside it where that is so."""


class ImageFolder(FewLabelData):
    """All images below a folder; a few of them have a label.

    Labels come from `labels_csv` (columns `file` and `label`; paths relative to `root`; files that it does not list,
    or lists with an empty label, are unlabeled). Where there is no such file, each subfolder of `root` is a class,
    and images directly in `root`, or in a subfolder named `unlabeled`, are unlabeled. Without this subfolder, an option
    has to say how many labels to draw. The same options work with a CSV file: the labels that are not drawn are hidden
    from the method and used by the evaluator.

    With `group_column`, all images of a group, such as a patient, stand on one side: `val_fraction` and `test_fraction`
    hold out whole groups before labels are chosen, the other images of a group in `val_csv` or `test_csv` leave the
    training pool as well, and unlabeled images of a patient with a given label are not judged.

    Grey files of more than 8 bits (PNG and TIFF of 16 bits) keep all of them; `window` says what is black and white.

    Args:
        root: The folder; nested folders are searched, hidden files and the pictures of runs are not.
        labels_csv: Label file, relative to `root` or, where there is none, to the working folder ("./labels.csv" is
            sought there first); null for one subfolder per class; "auto" for labels.csv in `root` or, where there is
            none, one subfolder per class.
        val_csv: Label file of validation images, sought alike.
        test_csv: Label file of test images, sought alike.
        group_column: Column that names the group of every image, such as its patient; null: images stand alone.
        groups_csv: File with the columns `file` and `group_column`, sought alike; null: `labels_csv`.
        class_names: Class names in order; null takes the sorted names of `labels_csv` or of the subfolders.
        image_size: Height and width; the shorter side is resized to it, then the center is cropped.
        in_channels: 3 for color, 1 for grey.
        window: Of files with more than 8 bits: "full" keeps the format's scale (0 to 65535 becomes 0 to 1), "image"
            stretches each image from its darkest to its brightest value, [low, high] these two values.
        cache_gib: Keep decoded images in memory up to this size; above it, decode them again each time.
        progress: Show a progress bar on a terminal while images are read.
        num_labels_per_class: Labels to draw from each class.
        fraction: Share of each class to draw as labels.
        labeled_indices: Rows to use as labels, in the order of the sorted paths.
        seed: Seed of the draw.
        val_fraction: Share of the items with a known class to keep for validation; their labels are no training labels.
            With `group_column`: share of the groups.
        test_fraction: Share of the groups to keep for test; needs `group_column`.
        batch_size: Images of the pool per training step.
        labeled_batch_size: Labeled images per training step.
        eval_batch_size: Images per step without gradient.
        num_workers: Loader processes.

    Raises:
        DataError: The folder or a label file cannot be used: no labels at all, one class only, an unknown column, ...
            With groups: an image without one, a group on two sides, too few groups.
        ConfigError: Subfolders as classes, none of them `unlabeled`, and no option that draws labels; an option outside
            its range, or a label file that may be one of two.
    """

    def __init__(
        self,
        root: str,
        labels_csv: str | None = "auto",
        val_csv: str | None = None,
        *,
        test_csv: str | None = None,
        group_column: str | None = None,
        groups_csv: str | None = None,
        class_names: Sequence[str] | None = None,
        image_size: int = 64,
        in_channels: int = 3,
        window: Window = "full",
        cache_gib: float = 4.0,
        progress: bool = True,
        num_labels_per_class: int | None = None,
        fraction: float | None = None,
        labeled_indices: Sequence[int] | None = None,
        seed: int = 0,
        val_fraction: float = 0.0,
        test_fraction: float = 0.0,
        batch_size: int = 256,
        labeled_batch_size: int = 64,
        eval_batch_size: int = 1024,
        num_workers: int = 0,
    ) -> None:
        self.root = Path(root)
        if not self.root.is_dir():
            raise DataError(f"There is no folder {root}. Give the folder that holds the images as root.")
        if image_size < 1:
            raise ConfigError(f"image_size must be at least 1 pixel, but is {image_size}.")
        if in_channels not in (1, 3):
            raise ConfigError(f"in_channels must be 1 (grey) or 3 (color), but is {in_channels}.")
        if group_column is None and (groups_csv is not None or test_fraction):
            raise ConfigError("groups_csv and test_fraction need group_column, the column that names the groups.")
        self.group_column, self.test_fraction = group_column, test_fraction
        self._group_of = None if group_column is None else self._read_groups(group_column, groups_csv or labels_csv)
        self._is_drawn = num_labels_per_class is not None or fraction is not None or labeled_indices is not None
        self._table = self._read_table(labels_csv)
        self._held_out = {
            part: read_labels_csv(self._find(name), self.root, besides=self._besides)
            for part, name in (("val", val_csv), ("test", test_csv))
            if name is not None
        }
        if class_names is not None:
            names = list(class_names)
            if len(set(names)) != len(names):
                raise ConfigError(f"class_names must differ from each other, but are {', '.join(names)}.")
        found = class_names_of(self._table) if self._table else self._subfolder_classes(labels_csv, self._is_drawn)
        if class_names is None:
            names = found
        super().__init__(
            self.root.resolve().name,
            names,
            in_channels,
            num_labels_per_class=num_labels_per_class,
            fraction=fraction,
            labeled_indices=labeled_indices,
            seed=seed,
            val_fraction=val_fraction,
            batch_size=batch_size,
            labeled_batch_size=labeled_batch_size,
            eval_batch_size=eval_batch_size,
            num_workers=num_workers,
        )
        for table in (self._table, *self._held_out.values()):
            if table is not None:
                table.encode(names)  # a label outside the classes is an error before anything is read
        self.image_size = image_size
        self.window = check_window(window)
        self.cache_gib = cache_gib
        self.progress = progress

    def load_items(self) -> Items:
        """Find and read all images and choose the labels.

        Raises:
            DataError: No images, unreadable images, or a label file that does not fit the folder.
        """
        names = find_images(self.root)
        if not names:
            raise DataError(
                f"There are no images under {self.root}. Files that end in {', '.join(IMAGE_SUFFIXES)} are read."
            )
        label = self._known_labels(names)
        parts: dict[str, Tensor] = {}
        held_out_label = label.clone()
        for part, table in self._held_out.items():
            rows, part_label = table.match(names, self.root, self.class_names)
            _check_held_out(table, part, rows, part_label, label if self._table is not None else None)
            parts[part] = rows
            held_out_label[rows] = part_label
        group = self._groups(names)
        if group is not None:
            parts = self._whole_parts(parts, label, group)
        elif self.val_fraction and not self._is_drawn:
            # All known labels are for training unless they are set aside before.
            apart = torch.cat([torch.empty(0, dtype=torch.int64), *parts.values()])
            chosen = choose_held_out(label, val_fraction=self.val_fraction, apart=apart, seed=self.seed)["val"]
            parts["val"] = torch.cat([parts.get("val", chosen[:0]), chosen])
        split = self.draw_split(label, val=parts.get("val"), test=parts.get("test"))
        if self.val_fraction and self._is_drawn and group is None:
            split = split.hold_out(self.val_fraction, label, seed=self.seed)
        return Items(self._read_images(names), names, held_out_label, split, group)

    def _read_groups(self, column: str, groups_csv: str | None) -> dict[str, str]:
        if groups_csv is None:
            raise ConfigError(f"group_column '{column}' needs groups_csv, with the columns `file` and `{column}`.")
        path = self.root / DEFAULT_CSV if groups_csv == "auto" else self._find(groups_csv)
        return read_groups_csv(path, self.root, column)

    def _groups(self, names: list[str]) -> list[str] | None:
        """Return the group of each image; None where images stand alone."""
        if self._group_of is None:
            return None
        missing = [name for name in names if name not in self._group_of]
        if missing:
            raise DataError(
                f"`{self.group_column}` is not known of {len(missing)} of {len(names)} images (first: {missing[0]}). "
                "List every image, also those without a label: any of them may be of a held-out group."
            )
        return [self._group_of[name] for name in names]

    def _whole_parts(self, parts: dict[str, Tensor], label: Tensor, group: list[str]) -> dict[str, Tensor]:
        """Return the rows of val and test with all of their groups, those that the fractions ask for included."""
        whole = {part: whole_groups(rows, group) for part, rows in parts.items()}
        for part, rows in whole.items():
            taken = rows[(label[rows] != UNLABELED) & ~torch.isin(rows, parts[part])]
            if self._table is not None and taken.numel():
                raise DataError(
                    f"{self._table.path} has labels for training of {taken.numel()} images whose group is in "
                    f"{part}_csv (first: group '{group[int(taken[0])]}'). A group belongs on one side: move these rows "
                    "there."
                )
        apart = torch.cat([torch.empty(0, dtype=torch.int64), *whole.values()])
        chosen = choose_held_out(
            label,
            test_fraction=self.test_fraction,
            val_fraction=self.val_fraction,
            group=group,
            apart=apart,
            seed=self.seed,
        )
        return {part: torch.cat([whole.get(part, rows[:0]), rows]) for part, rows in chosen.items()}

    @property
    def _besides(self) -> tuple[str, ...]:
        return () if self.group_column is None else (self.group_column,)

    def _read_images(self, names: list[str]) -> Images:
        paths = [self.root / name for name in names]
        files = FolderImages(paths, self.image_size, self.in_channels, window=self.window)
        num_bytes = len(names) * self.in_channels * self.image_size**2 * files.dtype.itemsize
        if num_bytes <= self.cache_gib * 2**30:
            return files.load(progress=self.progress)
        files.check(progress=self.progress)
        return files

    def _read_table(self, labels_csv: str | None) -> LabelTable | None:
        is_auto = labels_csv == "auto"
        if labels_csv is None or (is_auto and not (self.root / DEFAULT_CSV).exists() and self._has_classes()):
            return None
        path = self.root / DEFAULT_CSV if is_auto else self._find(labels_csv)
        return read_labels_csv(path, self.root, besides=self._besides)

    def _has_classes(self) -> bool:
        return next(_class_folders(self.root), None) is not None

    def _find(self, csv: str) -> Path:
        """Return a file in the folder or, where it has none, in the working folder; "./" asks for the latter first."""
        inside, here = self.root / csv, Path(csv)
        if here.exists() and (csv.startswith("./") or not inside.exists()):
            return here
        if inside.is_file() and here.is_file() and inside.read_bytes() != here.read_bytes():
            raise ConfigError(
                f"{csv} may be {inside} or the other file of that name in the working folder {Path.cwd()}. "
                f"Say which: {inside.resolve()}, or ./{here} for the one in the working folder."
            )
        return inside

    def _subfolder_classes(self, labels_csv: str | None, is_drawn: bool) -> list[str]:
        names = sorted(_class_folders(self.root))
        shown = ", ".join(names[:_SHOWN]) + (", ..." if len(names) > _SHOWN else "")
        if not names:
            raise DataError(
                f"No labels at all: {self.root} has no subfolder with images, so that there are no classes. "
                "Make one subfolder per class, or write a labels.csv with the columns file,label."
            )
        if {name.lower() for name in names} <= _PART_NAMES:
            raise DataError(
                f"The subfolders of {self.root} ({shown}) look like parts of a dataset, not like classes. "
                f"Set root to one of them, such as {self.root / names[0]}, or write a labels.csv."
            )
        if len(names) == 1:
            raise DataError(
                f"One class only: {self.root} has the single subfolder '{names[0]}' with images. "
                "Make one subfolder per class, or write a labels.csv with the columns file,label."
            )
        if not is_drawn and not any(folder.lower() in _UNLABELED_NAMES for folder in _image_folders(self.root)):
            no_csv = "" if labels_csv is None else f"There is no {self.root / DEFAULT_CSV}. "
            raise ConfigError(
                f"{no_csv}Taking the {len(names)} subfolders of {self.root} as classes ({shown}) needs to know how "
                "many labels to use: set num_labels_per_class (10, say), or fraction (1.0 uses all). Where a subfolder "
                "`unlabeled` holds the unlabeled images, all others are used."
            )
        return names

    def _known_labels(self, names: list[str]) -> Tensor:
        """Return (n,) int64: every label that the CSV file or the subfolders state."""
        label = torch.full((len(names),), UNLABELED, dtype=torch.int64)
        if self._table is not None:
            rows, table_label = self._table.match(names, self.root, self.class_names)
            label[rows] = table_label
            return label
        class_of = {name: c for c, name in enumerate(self.class_names)}
        for row, name in enumerate(names):
            folder, inside, _ = name.partition("/")
            if inside and (folder in class_of or folder.lower() not in _UNLABELED_NAMES):
                if folder not in class_of:
                    raise DataError(
                        f"{self.root / name}: the subfolder '{folder}' is outside the classes "
                        f"{', '.join(self.class_names)}. Rename it, remove it, or add it to class_names."
                    )
                label[row] = class_of[folder]
        return label


def find_images(root: Path) -> list[str]:
    """Return the paths of all images below `root`, relative to it, with forward slashes, sorted.

    Files and folders whose name starts with a dot are left out, and so are the pictures that runs, `lspread suggest`
    and `lspread audit` leave; linked folders are followed once.
    """
    return sorted(_walk(root))


def _walk(root: Path) -> Iterator[str]:
    seen = set()
    for folder, subfolders, files in os.walk(root, followlinks=True):
        real = os.path.realpath(folder)
        if real in seen:  # a link that leads back up
            subfolders.clear()
            continue
        seen.add(real)
        own = {name for name, beside in _OWN_PICTURES.items() if beside in files}
        subfolders[:] = [name for name in subfolders if not name.startswith(".") and name not in own]
        for name in files:
            if name.lower().endswith(IMAGE_SUFFIXES) and not name.startswith(".") and name not in own:
                yield (Path(folder) / name).relative_to(root).as_posix()


def _class_folders(root: Path) -> Iterator[str]:
    return (name for name in _image_folders(root) if name.lower() not in _UNLABELED_NAMES)


def _image_folders(root: Path) -> Iterator[str]:
    for entry in os.scandir(root):
        if entry.is_dir() and not entry.name.startswith(".") and next(_walk(Path(entry.path)), None) is not None:
            yield entry.name


def _check_held_out(table: LabelTable, part: str, rows: Tensor, part_label: Tensor, given: Tensor | None) -> None:
    for i, line in enumerate(table.line):
        if part_label[i] == UNLABELED:
            raise DataError(f"{table.path}, line {line}: a {part} image needs a label, but {table.file[i]} has none.")
        if given is not None and given[rows[i]] != UNLABELED:
            raise DataError(
                f"{table.path}, line {line}: {table.file[i]} also has a label for training. "
                "Remove it from one of the two."
            )
    if not table.line:
        raise DataError(f"{table.path} has no rows. Add {part} images, or leave this file out.")
