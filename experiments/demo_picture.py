"""What does a run look like? Makes the picture at the top of the README from one `lspread demo`.

python experiments/demo_picture.py                  # runs the demo first
python experiments/demo_picture.py runs/my-run      # from a finished run
"""

import argparse
import tempfile
from pathlib import Path

from lspread.cli.main import main as lspread
from lspread.report import plot_result

PICTURE = Path(__file__).resolve().parent / "figures" / "demo.png"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, nargs="?", help="folder of a finished run")
    run: Path | None = parser.parse_args().run
    with tempfile.TemporaryDirectory() as folder:
        if run is None:
            run = Path(folder) / "demo"
            if lspread(["demo", "--run_dir", str(run)]) != 0:
                raise SystemExit("lspread demo failed")
        PICTURE.parent.mkdir(exist_ok=True)
        print(plot_result(run, PICTURE))


if __name__ == "__main__":
    main()
