"""The `lspread` command: finds the subcommand, loads only what it needs, turns errors into messages and exit codes."""

import difflib
import importlib
import os
import sys
import traceback
import warnings
from collections.abc import Callable, Sequence

from lspread.errors import LspreadError

__all__ = ["EXIT_ERROR", "EXIT_INTERRUPTED", "EXIT_OK", "EXIT_USAGE", "main"]

EXIT_OK = 0
EXIT_ERROR = 1
EXIT_USAGE = 2
EXIT_INTERRUPTED = 130  # 128 + SIGINT, what a shell reports for Ctrl-C

# Command: what it does, the module that does it. Each module has `run(command, argv) -> exit code`.
_COMMANDS = {
    "demo": ("Ten labeled digits in, a trained classifier and a report out; under two minutes on a CPU.", "demo"),
    "fit": ("Train from a YAML file; writes one folder with predictions, model and report.", "loop"),
    "validate": ("Accuracy of a trained run on its validation images.", "loop"),
    "test": ("Accuracy of a trained run on its test images.", "loop"),
    "predict": ("Label new images, texts or rows, or every item of a run.", "predict"),
    "compare": ("Accuracies of several runs in one table and one figure.", "compare"),
    "export": ("A finished run for other tools: torch.export, ONNX, safetensors, Label Studio.", "export"),
    "init": ("The two files that a folder of images needs, ready to be filled in.", "init"),
    "embed": ("Embeddings of images, texts or a table; the file that the next three read.", "embed"),
    "spread": ("A label for every item from embeddings and a few labels, without training.", "spread"),
    "suggest": ("What to label next, also without a single label.", "suggest"),
    "audit": ("Given labels that look wrong.", "audit"),
    "doctor": ("Versions, device, data, and images that cannot be read.", "doctor"),
    "report": ("Write report.html of a finished run again.", "report"),
    "config": ("List the settings files that come with lspread, or print one to start from.", "config"),
}

_EXAMPLES = """examples:
  lspread demo
  lspread config image_folder > my.yaml
  lspread fit --config my.yaml --data.root photos/ --data.labels_csv labels.csv
  lspread fit --config my.yaml --trainer.max_epochs 60 --seed_everything 1
  lspread fit runs/20260101-120000-photos          (go on after Ctrl-C)
  lspread test runs/20260101-120000-photos
  lspread predict runs/20260101-120000-photos new/
  lspread report runs/20260101-120000-photos
  lspread compare runs/a runs/b
  lspread export runs/20260101-120000-photos --to torch-export -o exported/
  lspread init photos/
  lspread embed photos/ -o photos.safetensors
  lspread spread photos.safetensors --labels labels.csv -o out/
  lspread suggest photos.safetensors -n 20
  lspread audit photos.safetensors --labels labels.csv"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one `lspread` command.

    Args:
        argv: Arguments after the program's name; default: the process's own.

    Returns:
        The exit code: 0 fine, 1 an error that lspread explains (`--traceback` or LSPREAD_TRACEBACK=1 shows where
        it arose), 2 wrong usage, 130 after Ctrl-C.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    wants_traceback = os.environ.get("LSPREAD_TRACEBACK", "") not in {"", "0"}
    if "--traceback" in arguments:
        arguments.remove("--traceback")
        wants_traceback = True
    with_place = warnings.formatwarning
    warnings.formatwarning = with_place if wants_traceback else _say_warning
    try:
        return _dispatch(arguments)
    except (LspreadError, OSError) as error:
        if wants_traceback:
            traceback.print_exc()
        else:
            print(f"lspread: error: {_explain(error)}", file=sys.stderr)
        return EXIT_ERROR
    except KeyboardInterrupt:
        print("\nlspread: stopped by Ctrl-C.", file=sys.stderr)
        return EXIT_INTERRUPTED
    finally:
        warnings.formatwarning = with_place


def _explain(error: Exception) -> str:
    """Return the message of an error, without the number that the system gives to those of files."""
    if not isinstance(error, OSError):
        return str(error)
    place = "" if error.filename is None else f"{error.filename}: "
    return f"{place}{error.strerror or error}."


def _say_warning(
    message: Warning | str, category: type[Warning], filename: str, lineno: int, line: str | None = None
) -> str:
    """Return a warning without the line of code that it came from."""
    return f"warning: {message}\n"


def _dispatch(arguments: list[str]) -> int:
    if not arguments:
        print(_help())
        return EXIT_USAGE
    command, rest = arguments[0], arguments[1:]
    if command in {"-h", "--help", "help"}:
        print(_help())
        return EXIT_OK
    if command in {"-V", "--version", "version"}:
        print(f"lspread {_version()}")
        return EXIT_OK
    if command not in _COMMANDS:
        close = difflib.get_close_matches(command, _COMMANDS, n=1)
        hint = f"Did you mean '{close[0]}'?" if close else f"Commands: {', '.join(_COMMANDS)}."
        print(f"lspread: unknown command '{command}'. {hint} `lspread --help` explains them.", file=sys.stderr)
        return EXIT_USAGE
    try:
        module = importlib.import_module(f"lspread.cli.{_COMMANDS[command][1]}")
        run: Callable[[str, list[str]], int] = module.run
        return run(command, rest)
    except SystemExit as exit_request:  # argument parsers leave this way, after printing why
        code = exit_request.code
        return code if isinstance(code, int) else EXIT_OK if code is None else EXIT_ERROR


def _help() -> str:
    width = max(map(len, _COMMANDS))
    lines = [f"  {name:<{width}}  {text}" for name, (text, _) in _COMMANDS.items()]
    return "\n".join(
        [
            "usage: lspread [--version] [--traceback] COMMAND ...",
            "",
            "Train good image classifiers from very few labels: a similarity graph spreads them to all images.",
            "",
            "commands:",
            *lines,
            "",
            _EXAMPLES,
            "",
            "`lspread COMMAND --help` lists a command's options. `--traceback` shows where an error arose.",
        ]
    )


def _version() -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("lspread")
    except PackageNotFoundError:
        return "0+unknown (not installed)"
