"""Modules with state: graph layers, backbones, and the way from images to embeddings."""

from lspread.nn.backbones import SmallResNet, create_backbone
from lspread.nn.embedding import embed
from lspread.nn.inductive import InductiveHead
from lspread.nn.poisson import PoissonLearning
from lspread.nn.spreading import LabelPropagation, LabelSpreading

__all__ = [
    "InductiveHead",
    "LabelPropagation",
    "LabelSpreading",
    "PoissonLearning",
    "SmallResNet",
    "create_backbone",
    "embed",
]
