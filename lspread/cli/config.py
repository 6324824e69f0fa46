"""`lspread config`: the settings files that come with the package."""

import argparse
from pathlib import Path

from lspread.errors import ConfigError

__all__ = ["bundled_config", "bundled_configs", "run"]


def bundled_configs() -> dict[str, Path]:
    """Name and path of each settings file: `configs/` of a checkout, `lspread/cli/configs/` of an installed wheel.

    Files in a subfolder have its name in front, as in "methods/fixmatch".
    """
    here = Path(__file__).resolve()
    for folder in (here.parent / "configs", here.parents[2] / "configs"):
        paths = sorted(folder.rglob("*.yaml"), key=lambda path: (len(path.parts), path))
        found = {path.relative_to(folder).with_suffix("").as_posix(): path for path in paths}
        if found:
            return found
    return {}


def bundled_config(name: str) -> Path:
    """Path of the settings file `name`, such as "digits" or "digits.yaml".

    Raises:
        ConfigError: There is no such file.
    """
    known = bundled_configs()
    stem = name.removesuffix(".yaml")
    if stem not in known:
        raise ConfigError(f"No settings file {name!r} comes with lspread; there are: {', '.join(known) or 'none'}.")
    return known[stem]


def run(command: str, argv: list[str]) -> int:
    """List the settings files, or print one."""
    parser = argparse.ArgumentParser(
        prog=f"lspread {command}",
        allow_abbrev=False,
        description="List the settings files that come with lspread, or print one.",
    )
    parser.add_argument("name", nargs="?", help="the file to print, such as image_folder")
    name = parser.parse_args(argv).name
    if name is not None:
        print(bundled_config(name).read_text(encoding="utf-8"), end="")
        return 0
    for stem, path in bundled_configs().items():
        first_line = path.read_text(encoding="utf-8").partition("\n")[0].lstrip("# ")
        print(f"{stem:<24}{first_line}")
    return 0
