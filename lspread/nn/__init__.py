"""Modules with state: graph layers, backbones, and the way from images to embeddings."""

from lspread.nn.backbones import SmallResNet, create_backbone
from lspread.nn.embedding import embed
from lspread.nn.spreading import LabelPropagation, LabelSpreading

__all__ = ["LabelPropagation", "LabelSpreading", "SmallResNet", "create_backbone", "embed"]
