"""`lspread report`: write report.html of a finished run again."""

import argparse
from pathlib import Path

from lspread.errors import DataError

__all__ = ["run"]


def run(command: str, argv: list[str]) -> int:
    """Read a run folder and write its report.html."""
    parser = argparse.ArgumentParser(
        prog=f"lspread {command}",
        allow_abbrev=False,
        description="Write report.html of a finished run from the files in its folder.",
    )
    parser.add_argument("run_dir", metavar="RUN", type=Path, help="a run folder, such as runs/20260101-120000-photos")
    run_dir: Path = parser.parse_args(argv).run_dir
    if not (run_dir / "results.json").is_file():
        raise DataError(
            f"lspread report needs the folder of a finished run; {run_dir} has no results.json. "
            "An interrupted run writes it when it is resumed to its end: lspread fit RUN."
        )
    from lspread.report import write_report

    print(write_report(run_dir))
    return 0
