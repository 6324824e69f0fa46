"""What to label next, and which labels look wrong: plain functions on tensors."""

from lspread.active.acquisition import Acquisition, Pool, Suggestions, make_pool
from lspread.active.audit import Audit, audit_labels
from lspread.active.coverage import Coverage, ProbCover, TypiClust
from lspread.active.uncertainty import Auto, Entropy, Margin, Random, VOptimality

__all__ = [
    "Acquisition",
    "Audit",
    "Auto",
    "Coverage",
    "Entropy",
    "Margin",
    "Pool",
    "ProbCover",
    "Random",
    "Suggestions",
    "TypiClust",
    "VOptimality",
    "audit_labels",
    "make_pool",
]
