"""Lightning: the classifier, the callback that refreshes pseudo-labels, and what a run writes."""

from lspread.lit.averaging import RampedAveraging
from lspread.lit.baselines import knn_vote, logistic_regression
from lspread.lit.graph_head import GraphClassifier, GraphHead, load_graph_classifier, load_graph_head
from lspread.lit.module import FewLabelClassifier
from lspread.lit.random_state import RandomState
from lspread.lit.refresh import RefreshPseudoLabels
from lspread.lit.run_folder import RunFolder
from lspread.lit.run_logger import RunLogger
from lspread.lit.saved_model import load_classifier

__all__ = [
    "FewLabelClassifier",
    "GraphClassifier",
    "GraphHead",
    "RampedAveraging",
    "RandomState",
    "RefreshPseudoLabels",
    "RunFolder",
    "RunLogger",
    "knn_vote",
    "load_classifier",
    "load_graph_classifier",
    "load_graph_head",
    "logistic_regression",
]
