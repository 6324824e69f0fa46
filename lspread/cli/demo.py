"""`lspread demo`: the whole path on bundled data."""

import argparse

from lspread.cli.config import bundled_config

__all__ = ["run"]


def run(command: str, argv: list[str]) -> int:
    """Train on scikit-learn's digits with one label per class, with the settings of `lspread config digits`."""
    parser = argparse.ArgumentParser(
        prog=f"lspread {command}",
        description="1,797 handwritten digits, one label per class, on the CPU: train, predict, report.",
        epilog="Other options go to `lspread fit`, for example --trainer.max_epochs 10.",
        allow_abbrev=False,
    )
    parser.add_argument("--seed", type=int, default=0, help="which ten digits get a label (default: 0)")
    parser.add_argument("--run_dir", help="folder of the run (default: runs/<date>-<time>-digits)")
    options, others = parser.parse_known_args(argv)
    config = bundled_config("digits")
    print("lspread demo: 1,797 handwritten digits, ten of them labeled, one per class.")
    print("First the network learns without labels, by telling images apart; then a graph of similar images spreads")
    print("the ten labels, and the network learns from what arrives, again and again.")
    print(f"settings: {config}", flush=True)

    from lspread.cli import training

    arguments = ["--config", str(config), "--data.seed", str(options.seed), "--trainer.accelerator", "cpu"]
    if options.run_dir is not None:
        arguments += ["--run_dir", options.run_dir]
    return training.run("fit", [*arguments, *others])
