"""A finished run as one page to read and one picture to show; reads run folders, writes files, never trains."""

from .comparison import draw_comparison
from .contact_sheet import SheetPicture, draw_contact_sheet
from .page import write_report
from .picture import plot_result
from .results import Results, read_results
from .summary import Summary, summarize

__all__ = [
    "Results",
    "SheetPicture",
    "Summary",
    "draw_comparison",
    "draw_contact_sheet",
    "plot_result",
    "read_results",
    "summarize",
    "write_report",
]
