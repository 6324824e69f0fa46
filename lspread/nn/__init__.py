"""Modules with state: graph layers, backbones, and the way from images to embeddings."""

from lspread.nn.backbones import NamedBackbone, create_backbone
from lspread.nn.bank import EmbeddingBank
from lspread.nn.confidence import AdaptiveThreshold, CurriculumThreshold, DistributionAlignment, UsualFairness
from lspread.nn.embedding import embed
from lspread.nn.inductive import InductiveHead
from lspread.nn.metric import LinearMetric
from lspread.nn.poisson import PoissonLearning
from lspread.nn.small_resnet import SmallResNet
from lspread.nn.spreading import LabelPropagation, LabelSpreading
from lspread.nn.vector_mlp import VectorMLP

__all__ = [
    "AdaptiveThreshold",
    "CurriculumThreshold",
    "DistributionAlignment",
    "EmbeddingBank",
    "InductiveHead",
    "LabelPropagation",
    "LabelSpreading",
    "LinearMetric",
    "NamedBackbone",
    "PoissonLearning",
    "SmallResNet",
    "UsualFairness",
    "VectorMLP",
    "create_backbone",
    "embed",
]
