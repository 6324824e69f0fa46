"""Lightning: the classifier, the callback that refreshes pseudo-labels, and what a run writes."""

from lspread.lit.module import FewLabelClassifier
from lspread.lit.refresh import RefreshPseudoLabels

__all__ = ["FewLabelClassifier", "RefreshPseudoLabels"]
