"""`lspread fit|validate|test|predict RUN`: a short help at once; Lightning loads only for what needs it."""

__all__ = ["run"]

_WHAT = {
    "fit": "Train from settings files and options; writes one folder with predictions, model and report.",
    "validate": "Accuracy of a trained run on its validation images.",
    "test": "Accuracy of a trained run on its test images.",
}
_HELP = """usage: lspread {command} [RUN] [--config FILE ...] [--SETTING VALUE ...]

{what}

  RUN                          a run folder: its settings and its last checkpoint; `fit RUN` goes on after Ctrl-C
  --config FILE                settings; several are laid over each other (`lspread config` lists those that come along)
  --run_dir FOLDER             where to write; default: runs/<date>-<time>-<data>
  --data.root photos/          any setting of a file by its place: the data's,
  --model.lr 0.001             the model's,
  --trainer.max_epochs 60      or the trainer's
  --help-all                   every setting with its meaning (takes some seconds)

examples:
  lspread fit --config configs/image_folder.yaml --data.root photos/ --data.labels_csv labels.csv
  lspread fit --config configs/fashion_mnist.yaml --config configs/methods/fixmatch.yaml --trainer.max_time 00:00:10:00
  lspread fit runs/20260101-120000-photos
  lspread {command} runs/20260101-120000-photos"""


def run(command: str, argv: list[str]) -> int:
    """Print the short help, or hand over to the training loop."""
    if argv in (["--help"], ["-h"]):
        print(_HELP.format(command=command, what=_WHAT[command]))
        return 0
    from lspread.cli import training

    return training.run(command, ["--help"] if argv == ["--help-all"] else argv)
