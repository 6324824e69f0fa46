"""From a matplotlib figure to SVG that lives inside a page: its fonts, its colors by name, no ids that clash."""

import io
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import matplotlib
from markupsafe import Markup
from matplotlib.figure import Figure

__all__ = ["ACCENT", "CARD", "INK", "LINE", "MUTED", "WARN", "class_color", "figure_style", "short", "to_svg"]

# Stand-ins that no palette uses; the page's style sheet gives each its value, for light and for dark screens.
INK, MUTED, LINE, CARD, ACCENT, WARN = ("#010203", "#010204", "#010205", "#010206", "#010207", "#010208")
_VARIABLES = {INK: "ink", MUTED: "muted", LINE: "line", CARD: "card", ACCENT: "accent", WARN: "warn"}

_TEN = ("#4e79a7", "#f28e2b", "#59a14f", "#e15759", "#b07aa1", "#76b7b2", "#edc948", "#ff9da7", "#9c755f", "#9fc131")


def class_color(index: int, num_classes: int) -> str:
    """Return a color "#rrggbb" for a class that can be told from the page in both schemes; gray for no class (< 0)."""
    if index < 0:
        return "#8a8f98"
    if num_classes <= len(_TEN):
        return _TEN[index]
    hue = (index * 0.61803398875) % 1.0  # golden ratio steps: neighbors in the list are far apart in hue
    value = (0.9, 0.72, 0.6)[index % 3]
    red, green, blue = matplotlib.colors.hsv_to_rgb((hue, 0.55, value))
    return matplotlib.colors.to_hex((red, green, blue))


def short(text: str, size: int = 14) -> str:
    """Return `text` cut to `size` characters, with an ellipsis where something is missing."""
    return text if len(text) <= size else text[: size - 1].rstrip() + "…"


@contextmanager
def figure_style(font_size: float = 9) -> Iterator[None]:
    """Draw with our settings, whatever a user's matplotlibrc says; names with `$` stay names, not formulas."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a glyph missing from matplotlib's font is there in the browser's
        style: dict[Any, Any] = {k: v for k, v in matplotlib.rcParamsDefault.items() if "backend" not in k}
        style |= {
            "svg.fonttype": "none",
            "svg.hashsalt": "lspread",
            "font.family": "sans-serif",
            "font.size": font_size,
            "text.parse_math": False,
            "axes.spines.top": False,
            "axes.spines.right": False,
            "axes.grid": False,
            "figure.dpi": 72,
        }
        with matplotlib.rc_context(style):
            yield


def to_svg(figure: Figure, name: str) -> Markup:
    """Return a figure as an `<svg>` element for the middle of an HTML page.

    Args:
        figure: Drawn under `figure_style`, with this module's color names where the page is to choose the color.
        name: A word unique on the page; it goes in front of the ids that remain.

    Returns:
        Markup without XML head, metadata, comments, style sheets or addresses, that fills its container's width.
        All text in it was escaped by matplotlib.
    """
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :]
    box = re.search(r'viewBox="[-\d. ]+"', svg)
    assert box is not None
    svg = f"<svg {box[0]}>" + svg[svg.index(">") + 1 :]
    for pattern in (r"<metadata>.*?</metadata>", r"<style[^>]*>.*?</style>", r"<!--.*?-->"):
        svg = re.sub(pattern, "", svg, flags=re.DOTALL)
    svg = re.sub(r'<g id="halo[^"]*">', '<g class="halo">', svg)
    svg = re.sub(r'<g id="[^"]*"/>', "", svg)
    svg = re.sub(r'<g id="[^"]*">', "<g>", svg)
    svg = re.sub(r'(\bid="|xlink:href="#|url\(#)', rf"\g<1>{name}-", svg).replace("xlink:href=", "href=")
    svg = re.sub(r"font-family: [^;\"]*(;|(?=\"))", "", svg)
    for color, variable in _VARIABLES.items():
        svg = svg.replace(color, f"var(--{variable})")
    svg = re.sub(r"(?<=[\s\"(-])(\d+\.\d{2})\d+", r"\1", svg)
    return Markup(re.sub(r"\s*\n\s*", "\n", svg).strip())
