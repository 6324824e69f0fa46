"""Modules with state: graph layers, backbones, and the way from images to embeddings."""

from lspread.nn.backbones import SmallResNet, create_backbone
from lspread.nn.bank import EmbeddingBank
from lspread.nn.embedding import embed
from lspread.nn.metric import LinearMetric
from lspread.nn.spreading import LabelPropagation, LabelSpreading

__all__ = [
    "EmbeddingBank",
    "LabelPropagation",
    "LabelSpreading",
    "LinearMetric",
    "SmallResNet",
    "create_backbone",
    "embed",
]
