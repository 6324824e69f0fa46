"""The house keeps its shape: who imports whom, what loads when, where tests lie."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "lspread"
TESTS = ROOT / "tests"

FOUNDATION = {"errors", "typing", "dist", "autograd"}
EVERYTHING = {"graph", "solve", "labels", "nn", "data", "active", "lit", "estimators", "report", "cli", ""}

# Room: the rooms that it may import beside itself and the foundation. The room "" is `lspread` itself.
MAY_IMPORT = {
    **{name: set() for name in FOUNDATION},
    "graph": set(),
    "solve": set(),
    "labels": {"graph", "solve"},
    "nn": {"labels", "graph", "solve"},
    "data": set(),
    "active": {"labels", "graph", "data"},
    # The callbacks run the epoch path, so they call the graph and solver functions themselves.
    "lit": {"nn", "data", "labels", "active", "graph", "solve"},
    "estimators": {"active", "nn", "labels", "graph", "solve"},
    "report": set(),
    "cli": EVERYTHING,
    "__main__": {"cli"},
    "": EVERYTHING - {""},
}

# Who may use a framework; everything below works on tensors alone.
FRAMEWORKS = {"lightning", "pytorch_lightning", "sklearn", "matplotlib", "pandas"}
WITHOUT_FRAMEWORKS = FOUNDATION | {"graph", "solve", "labels", "nn", "active"}
CONFIG_READERS = {"yaml", "jsonargparse", "omegaconf", "hydra", "argparse"}
OUTSIDE_THE_PACKAGE = {"tests", "experiments", "notebooks", "configs"}

FILES = sorted(PACKAGE.rglob("*.py"))


def name_module(path):
    """Give the dotted name of a file: lspread/nn/__init__.py is lspread.nn."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def name_room(module):
    """Give the room of a dotted name in lspread: lspread.graph.neighbors is in graph."""
    return module.split(".")[1] if "." in module else ""


def is_module(name):
    path = ROOT.joinpath(*name.split("."))
    return path.is_dir() or path.with_suffix(".py").is_file()


def list_imports(source, module, *, is_package):
    """List (line, dotted name) of every import, also inside functions, `if TYPE_CHECKING` and import_module("...")."""
    package = module.split(".") if is_package else module.split(".")[:-1]
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            origin = ".".join([*base, *([node.module] if node.module else [])])
            for alias in node.names:  # `from lspread import graph` is an import of lspread.graph
                deeper = f"{origin}.{alias.name}"
                yield node.lineno, deeper if origin.split(".")[0] == "lspread" and is_module(deeper) else origin
        elif isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
            function = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            if function in {"import_module", "__import__"} and isinstance(node.args[0].value, str):
                yield node.lineno, node.args[0].value


def list_faults(source, module, *, is_package=False):
    """List what one module imports and must not."""
    room = name_room(module)
    if room not in MAY_IMPORT:
        yield f"{module}: room {room!r} is not in the table; give it a place there and in README.md"
        return
    for line, name in list_imports(source, module, is_package=is_package):
        top = name.split(".")[0]
        target = name_room(name)
        if top == "lspread":
            if target != room and target not in FOUNDATION | MAY_IMPORT[room]:
                yield f"{module}:{line}: {room or 'lspread'} must not import {name}"
        elif top in FRAMEWORKS and room in WITHOUT_FRAMEWORKS:
            yield f"{module}:{line}: {room} works on tensors alone and must not import {name}"
        elif top in CONFIG_READERS and room != "cli":
            yield f"{module}:{line}: only cli reads configs and arguments; {room} must not import {name}"
        elif top in OUTSIDE_THE_PACKAGE:
            yield f"{module}:{line}: nothing in lspread imports {name}"


@pytest.mark.parametrize("path", FILES, ids=name_module)
def test_imports_point_down(path):
    faults = list(list_faults(path.read_text(), name_module(path), is_package=path.name == "__init__.py"))
    assert not faults, "\n".join(faults)


@pytest.mark.parametrize(
    ("module", "source", "num_faults"),
    [
        ("lspread.graph.neighbors", "from lspread.solve import Solution", 1),
        ("lspread.graph.neighbors", "from lspread.errors import GraphError\nfrom lspread.graph.exact import x", 0),
        ("lspread.graph.neighbors", "from . import exact\nfrom .exact import x\nfrom ..errors import y", 0),
        ("lspread.graph.neighbors", "from ..labels import spread_labels", 1),
        ("lspread.labels.spreading", "def f():\n    import lspread.nn.embedding", 1),
        (
            "lspread.labels.spreading",
            "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from lspread import lit",
            1,
        ),
        ("lspread.labels.spreading", "from lspread import graph", 0),
        ("lspread.nn.spreading", "from lspread import spread_labels", 1),
        ("lspread.nn.spreading", "import importlib\nimportlib.import_module('lspread.data')", 1),
        ("lspread.nn.embedding", "import lightning.pytorch as pl\nfrom sklearn.svm import SVC", 2),
        ("lspread.data.module", "import lightning.pytorch as pl", 0),
        ("lspread.lit.callbacks", "import yaml", 1),
        ("lspread.lit.callbacks", "from lspread.cli import main\nfrom lspread.report import write_report", 2),
        ("lspread.report.page", "from lspread.data import FewLabelSplit", 1),
        ("lspread.cli.main", "import yaml\nimport lspread\nfrom lspread.report import x", 0),
        ("lspread.estimators", "import sklearn\nfrom lspread.lit import x", 1),
        ("lspread.attic.box", "", 1),
        ("lspread.data.module", "import experiments.digits", 1),
    ],
)
def test_the_check_itself(module, source, num_faults):
    assert len(list(list_faults(source, module))) == num_faults


def test_there_is_no_utils():
    vague = [
        name_module(path) for path in FILES if path.stem in {"util", "utils", "helper", "helpers", "misc", "common"}
    ]
    assert not vague, f"a helper lives with its first user: {vague}"


def run_and_list_modules(code):
    """Run code in a fresh interpreter; give the top names of all modules that it loaded."""
    report = "\nimport sys\nprint('\\nloaded:', *sorted({name.split('.')[0] for name in sys.modules}))"
    done = subprocess.run([sys.executable, "-c", code + report], capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 0, done.stderr
    return set(done.stdout.rpartition("loaded:")[2].split()), done.stdout


def test_import_is_light():
    loaded, _ = run_and_list_modules("import lspread")
    assert "lspread" in loaded
    assert not loaded & {
        "lightning",
        "pytorch_lightning",
        "sklearn",
        "torch_geometric",
        "matplotlib",
        "torchvision",
        "timm",
    }


def test_names_of_the_core_load_no_framework():
    loaded, _ = run_and_list_modules("import lspread\nfor name in lspread.__all__: getattr(lspread, name)")
    assert "torch" in loaded
    assert not loaded & {"lightning", "pytorch_lightning", "sklearn", "torch_geometric", "matplotlib"}


def test_help_is_light():
    code = (
        "import sys\nfrom lspread.cli.main import main\nsys.argv = ['lspread', '--help']\n"
        "try:\n    code = main()\nexcept SystemExit as leaving:\n    code = leaving.code\nassert not code, code"
    )
    loaded, printed = run_and_list_modules(code)
    assert "usage" in printed.lower()
    heavy = {
        "torch",
        "torchvision",
        "numpy",
        "scipy",
        "lightning",
        "sklearn",
        "torch_geometric",
        "matplotlib",
        "jsonargparse",
    }
    assert not loaded & heavy


def test_tests_mirror_the_package():
    rooms = {path.name for path in PACKAGE.iterdir() if path.is_dir() and any(path.glob("*.py"))}
    tested = {path.name for path in TESTS.iterdir() if path.is_dir() and any(path.rglob("test_*.py"))}
    assert rooms - tested == set(), "rooms without a test"
    assert tested - rooms == set(), "folders of tests for no room"
