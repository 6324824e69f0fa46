"""README.md and experiments/README.md keep their word: code runs, and what is named exists."""

import re
from pathlib import Path
from urllib.parse import unquote

import pytest

ROOT = Path(__file__).resolve().parent.parent
README = ROOT / "README.md"
BOTH = pytest.mark.parametrize("page", [README, ROOT / "experiments" / "README.md"], ids=["top", "experiments"])

FENCE = re.compile(
    r"^(?P<indent> {0,3})(?P<mark>`{3,}|~{3,})[ \t]*(?P<language>[\w+-]*)[^\n]*\n(?P<body>.*?)^ {0,3}(?P=mark)[ \t]*$",
    re.M | re.S,
)
INLINE_CODE = re.compile(r"(?<!`)`([^`\n]+)`(?!`)")
MARKDOWN_LINK = re.compile(r"!?\[(?:[^\[\]]|\[[^\]]*\](?:\([^)]*\))?)*\]\(\s*<?([^\s)>]+)>?(?:\s+\"[^\"]*\")?\s*\)")
NESTED_IMAGE = re.compile(r"!\[[^\]]*\]\(\s*<?([^\s)>]+)>?(?:\s+\"[^\"]*\")?\s*\)")
REFERENCE = re.compile(r"^ {0,3}\[[^\]]+\]:\s*<?([^\s>]+)>?", re.M)
HTML_LINK = re.compile(r"\b(?:src|href|srcset)\s*=\s*[\"']([^\"'\s]+)")
CONFIG = re.compile(r"(?<![\w./-])configs/[\w./-]*\.ya?ml\b")
MAKE = re.compile(r"(?:^|&&|;|\|)\s*(?:\$\s+)?make((?:[ \t]+[A-Za-z_][\w=./-]*)+)", re.M)
TARGET = re.compile(r"^([a-z][\w -]*?)\s*:(?!=)", re.M)
ELSEWHERE = re.compile(r"^(?:[a-z][a-z0-9+.-]*:|//|#)", re.I)


def find_python(text):
    """Give (line number of its first line, code) of every python fence."""
    return [
        (text.count("\n", 0, match.start("body")) + 1, match["body"])
        for match in FENCE.finditer(text)
        if match["language"].lower() in {"python", "py"}
    ]


def find_links(text):
    """Give relative targets of links and pictures, without anchors; code is no link."""
    prose = INLINE_CODE.sub("", FENCE.sub("", text))
    found = {
        target for pattern in (MARKDOWN_LINK, NESTED_IMAGE, REFERENCE, HTML_LINK) for target in pattern.findall(prose)
    }
    return sorted({unquote(re.split("[#?]", target)[0]) for target in found if not ELSEWHERE.match(target)})


def find_make_targets(text):
    """Give targets of `make ...` in inline code and in fences of other languages than Python."""
    code = [match["body"] for match in FENCE.finditer(text) if match["language"].lower() not in {"python", "py"}]
    code += INLINE_CODE.findall(FENCE.sub("", text))
    words = {word for part in code for arguments in MAKE.findall(part) for word in arguments.split()}
    return sorted(word for word in words if "=" not in word)


def readme():
    return README.read_text(encoding="utf-8")


def makefile_targets():
    names = TARGET.findall((ROOT / "Makefile").read_text(encoding="utf-8"))
    return {word for name in names for word in name.split()}


def test_every_python_block_runs_alone(tmp_path, monkeypatch):
    blocks = find_python(readme())
    assert blocks, "README.md shows no python code"
    monkeypatch.chdir(tmp_path)  # what the code writes does not land in the repository
    for line, code in blocks:
        # Empty lines in front, so that an error names the line of README.md.
        exec(compile("\n" * (line - 1) + code, str(README), "exec"), {"__name__": "readme"})


@BOTH
def test_named_settings_exist(page):
    named = sorted(set(CONFIG.findall(page.read_text(encoding="utf-8"))))
    assert [name for name in named if not (ROOT / name).is_file()] == []


@BOTH
def test_links_and_pictures_exist(page):
    named = find_links(page.read_text(encoding="utf-8"))
    assert named
    assert [name for name in named if not (page.parent / name).exists()] == []


def test_make_targets_exist():
    known = makefile_targets()
    assert {"install", "demo", "test"} <= known
    assert [name for name in find_make_targets(readme()) if name not in known] == []


EXAMPLE = """
# Title

[![build](docs/badge.svg)](https://example.org/ci) See [the page](docs/page.md#part), [up](#title) and
[mail](mailto:a@b.c), [with space](docs/a%20b.md "hint"). <img src="docs/map.png" width="300">
[later]: notes/later.md
People make good things; `make test-all PYTHON=python3.12` and `make check` run; `x[0](y)` is no link.

```sh
git clone https://example.org/x && make install
$ make demo   # make nothing else
lspread fit --config configs/digits.yaml
```

```python
x = 1  # make cake, see [no](docs/no.md)
```

``` python title="second"
y = x + 1
```
"""


def test_reader_finds_code():
    found = find_python(EXAMPLE)
    assert [code for _, code in found] == ["x = 1  # make cake, see [no](docs/no.md)\n", "y = x + 1\n"]
    assert [EXAMPLE.splitlines()[line - 1] for line, _ in found] == [code.rstrip("\n") for _, code in found]


def test_reader_finds_links():
    assert find_links(EXAMPLE) == ["docs/a b.md", "docs/badge.svg", "docs/map.png", "docs/page.md", "notes/later.md"]


def test_reader_finds_settings_and_make_targets():
    assert CONFIG.findall(EXAMPLE) == ["configs/digits.yaml"]
    assert find_make_targets(EXAMPLE) == ["check", "demo", "install", "test-all"]


@pytest.mark.parametrize("name", ["install", "demo", "test", "test-all", "check"])
def test_makefile_reader_finds_targets(name):
    assert name in makefile_targets()
    assert "VENV" not in makefile_targets()
