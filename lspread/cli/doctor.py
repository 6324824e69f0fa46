"""`lspread doctor`: what is installed, what the machine has, and which images of a folder cannot be read."""

import argparse
import json
import os
import platform
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

__all__ = ["run"]

PACKAGES = (
    *("lspread", "torch", "torchvision", "lightning", "torch-geometric", "scikit-learn", "numpy", "scipy"),
    *("numba", "timm", "faiss-cpu", "pynndescent"),
)
LEAST_PYTHON = (3, 10)


def run(command: str, argv: list[str]) -> int:
    """Print what was found; exit code 1 where something is wrong."""
    parser = argparse.ArgumentParser(
        prog=f"lspread {command}",
        allow_abbrev=False,
        description="Versions, device, memory and data of this machine; with a folder, every image in it is opened.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="examples:\n  lspread doctor\n  lspread doctor photos/\n\nexit code: 0 fine, 1 something is wrong",
    )
    parser.add_argument("folder", nargs="?", type=Path, help="a folder of images to verify")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    options = parser.parse_args(argv)
    facts: dict[str, Any] = {"python": platform.python_version(), "system": platform.platform()}
    facts["packages"] = {name: _version(name) for name in PACKAGES}
    facts["device"] = _device()
    facts["memory_gib"] = _memory()
    facts["data"] = _data()
    facts["warm_ups"] = _warm_ups()
    problems = []
    if sys.version_info < LEAST_PYTHON:
        problems.append(f"Python {platform.python_version()} is older than {'.'.join(map(str, LEAST_PYTHON))}")
    if options.folder is not None:
        facts["folder"] = _folder(options.folder)
        problems += [f"{path}: {reason}" for path, reason in facts["folder"]["unreadable"]]
        if not facts["folder"]["num_images"]:
            problems.append(f"{options.folder} has no images")
    facts["problems"] = problems
    if options.json:
        print(json.dumps(facts))
        return bool(problems)
    print(f"python {facts['python']} on {facts['system']}")
    for name, found in facts["packages"].items():
        print(f"  {name:<16} {found or 'not installed (optional)'}")
    print(f"device: {facts['device']}")
    print(f"memory: {facts['memory_gib']} GiB" if facts["memory_gib"] else "memory: unknown")
    for name, place in facts["data"].items():
        print(f"data: {name} in {place}" if place else f"data: {name} not found")
    kept = facts["warm_ups"]
    print(f"warm-ups: {kept['number']} kept in {kept['folder']}, {kept['mib']} MiB (lspread fit --warmup_cache)")
    if options.folder is not None:
        good = facts["folder"]["num_images"] - len(facts["folder"]["unreadable"])
        print(f"{options.folder}: {good:,} of {facts['folder']['num_images']:,} images can be read")
    for problem in problems:
        print(f"problem: {problem}")
    print("all is well" if not problems else f"{len(problems)} problems")
    return bool(problems)


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _device() -> str:
    import torch

    if torch.cuda.is_available():
        free, total = torch.cuda.mem_get_info()
        return f"{torch.cuda.get_device_name()}, {free / 2**30:.1f} of {total / 2**30:.1f} GiB free"
    if torch.backends.mps.is_available():
        return "mps"
    from lspread.lit.precision import choose_precision

    return f"cpu, {torch.get_num_threads()} threads; {choose_precision('cpu').reason}"


def _memory() -> float | None:
    names = ("SC_PAGE_SIZE", "SC_PHYS_PAGES")
    if not hasattr(os, "sysconf") or not set(names) <= set(os.sysconf_names):
        return None
    return round(os.sysconf(names[0]) * os.sysconf(names[1]) / 2**30, 1)


def _data() -> dict[str, str | None]:
    from lspread.data import FashionMNIST

    return {"Fashion-MNIST": FashionMNIST().find_folder()}


def _warm_ups() -> dict[str, Any]:
    from lspread.cli.warm_up import warm_up_folder

    folder = warm_up_folder("auto")
    assert folder is not None
    sizes = [path.stat().st_size for path in folder.glob("warm_up-*.ckpt")]
    return {"folder": str(folder), "number": len(sizes), "mib": round(sum(sizes) / 2**20, 1)}


def _folder(folder: Path) -> dict[str, Any]:
    from lspread.data import FolderImages
    from lspread.data.image_folder import find_images
    from lspread.errors import DataError

    if not folder.is_dir():
        raise DataError(f"There is no folder {folder}.")
    names = find_images(folder)
    bad = FolderImages([folder / name for name in names], 32, 3).find_unreadable(progress=True) if names else []
    return {"num_images": len(names), "unreadable": [(str(path), reason) for path, reason in bad]}
