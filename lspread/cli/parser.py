"""LightningCLI's parser with short error messages: what is wrong and where, without the list of all options."""

import re
import sys
from typing import Any, NoReturn

from lightning.pytorch.cli import LightningArgumentParser

__all__ = ["RunParser", "shorten_message"]

# jsonargparse lists everything that it tried; these lines say nothing to somebody who mistyped a setting.
_NOISE = re.compile(
    r"^\s*(-\s*)?("
    r"Does not validate against any of the Union subtypes|Subtypes: .*|Errors:|Expected a <class 'NoneType'>"
    r"|Given value type: .*|Given value: (\{|Namespace).*|Expected a path but .* either not accessible or invalid"
    r")\s*$"
)
_DENIED = re.compile(r"Importing '(?P<name>[^']*)' is not allowed, denied by .*")
_UNKNOWN = re.compile(r"Option '(?P<name>[^']*)' is not accepted")


class RunParser(LightningArgumentParser):
    """LightningCLI's parser, but names are written out, and an error is told in a few lines."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        kwargs.setdefault("allow_abbrev", False)  # a mistyped name would be taken as the beginning of another
        super().__init__(*args, **kwargs)

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Print what is wrong and leave with exit code 2."""
        if not self.exit_on_error:  # a parser inside another one: the outer one adds where it was and reports
            super().error(message, ex)
        command = self.prog.replace(" [options]", "")
        print(f"{command}: error: {shorten_message(message)}", file=sys.stderr)
        print(f"All settings: {command} --help-all. A settings file is given as --config FILE.", file=sys.stderr)
        sys.exit(2)


def shorten_message(message: str) -> str:
    """Leave out of a jsonargparse message what repeats or explains its inner workings."""
    lines: list[str] = []
    for line in message.splitlines():
        if _NOISE.match(line) or not line.strip():
            continue
        line = _DENIED.sub(
            r"'\g<name>' must not be named here: settings can only name classes of lspread, Lightning's callbacks, "
            "loggers and strategies, torch.nn, torch.optim and torchvision.transforms.v2.",
            line,
        )
        line = _UNKNOWN.sub(r"unknown setting '\g<name>'", line)
        if line not in lines:
            lines.append(line)
    return "\n".join(lines)
