"""The page as a browser shows it: Debian's Chromium without a window, at a desk and on a phone."""

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from PIL import Image

from lspread.report import write_report

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium: apt-get install chromium")
QUIET = ["--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"]
QUIET += ["--disable-component-update", "--disable-sync", "--hide-scrollbars", "--disable-dev-shm-usage"]
QUIET += ["--host-resolver-rules=MAP * ~NOTFOUND"]  # what a browser asks for by itself stays unanswered
POLICY = """<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'; """
POLICY += """img-src data:">"""
# A page around ours that asks the browser how wide it is: ours runs no scripts itself.
FRAME = """<!doctype html><html><body style="margin:0"><iframe id="page" src="{page}" style="border:0;width:{width}px;\
height:2000px"></iframe><script>
addEventListener("load", () => {{
  const page = document.getElementById("page").contentDocument.documentElement;
  const wide = [...page.querySelectorAll("*")].filter(one => one.getBoundingClientRect().right > {width} + 1 &&
    !one.closest(".scroll, nav, pre, details")).map(one => one.tagName + "." + one.className);
  document.title = JSON.stringify({{scroll: page.scrollWidth, wide: wide.slice(0, 5), height: page.scrollHeight}});
}});
</script></body></html>"""


def chromium(folder: Path, *arguments: str) -> "subprocess.CompletedProcess[str]":
    assert CHROMIUM is not None
    command = [CHROMIUM, "--headless", "--no-sandbox", *QUIET, f"--user-data-dir={folder / 'profile'}"]
    command += ["--enable-logging=stderr", "--v=0", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=True, cwd=folder)


def measure(page: Path, width: int) -> dict:
    """Return how wide and high a page is, and what sticks out of it."""
    frame = page.with_name("frame.html")
    frame.write_text(FRAME.format(page=page.as_uri(), width=width))
    allowed = ("--allow-file-access-from-files", "--dump-dom", f"--window-size={width},2000")
    dom = chromium(page.parent, *allowed, frame.as_uri()).stdout
    found = re.search(r"<title>(.*?)</title>", dom)
    assert found is not None
    measured: dict = json.loads(found[1].replace("&quot;", '"'))
    return measured


@pytest.fixture
def small_run(tmp_path: Path) -> Path:
    """What a run on a table without any truth leaves: no picture, no score."""
    folder = tmp_path / "small"
    folder.mkdir()
    named = [{"item": f"customer {i:05d} of a branch with a long name", "label": "fraud"} for i in range(9)]
    results = {
        "title": "payments: 90 rows from 9 labels",
        "data": {"num_classes": 2, "class_names": ["fraud", "none"], "num_labeled": 9, "num_unlabeled": 81},
        "given": named,
        "suspicious": [{**named[0], "note": "looks like none, 88 %"}],
        "least_certain": [{**one, "confidence": 0.5} for one in named],
    }
    (folder / "results.json").write_text(json.dumps(results))
    return folder


@pytest.fixture
def text_run(tmp_path: Path) -> Path:
    """Texts in place of pictures, one of them a single long word."""
    folder = tmp_path / "texts"
    folder.mkdir()
    texts = ["the striker missed the goal in the match " * 5, "w" * 200]
    told = [{"item": f"t{i}", "label": "sport", "text": text, "note": "rather food"} for i, text in enumerate(texts)]
    data = {"kind": "text", "num_classes": 2, "num_labeled": 4, "num_unlabeled": 16}
    (folder / "results.json").write_text(json.dumps({"data": data, "given": told, "to_label": told * 8}))
    return folder


@pytest.mark.parametrize("width", [1280, 390], ids=["desk", "phone"])
@pytest.mark.parametrize("which", ["run_dir", "small_run", "text_run"])
def test_the_page_is_drawn_without_errors_requests_or_sideways_scrolling(
    which: str, width: int, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    page = write_report(request.getfixturevalue(which))
    picture = tmp_path / "page.png"
    shot = chromium(tmp_path, f"--screenshot={picture}", f"--window-size={width},3000", page.as_uri())
    with Image.open(picture) as image:
        assert image.width == width
        colors = image.convert("RGB").getcolors(1 << 24)
    assert colors is not None
    assert len(colors) > 100  # something is drawn, in more than a few colors
    # Errors would be told here, and so would anything that the page wants to load: its policy forbids all of it.
    assert "CONSOLE" not in shot.stderr
    assert POLICY in page.read_text(encoding="utf-8")
    measured = measure(page, width)
    assert measured["wide"] == []
    assert measured["scroll"] <= width
    assert measured["height"] > 500


def test_what_would_be_wrong_is_seen(tmp_path: Path) -> None:
    page = tmp_path / "bad.html"
    page.write_text(f'{POLICY}<img src="https://example.invalid/a.png"><div style="width:900px">wide</div>')
    measured = measure(page, 390)
    assert measured["wide"] == ["DIV."]
    assert measured["scroll"] == 900 + 8  # and the body's margin
    said = chromium(tmp_path, "--screenshot", page.as_uri()).stderr
    assert "CONSOLE" in said
    assert "Content Security Policy" in said
