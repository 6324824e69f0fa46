"""Datasets with few labels: splits, data modules, augmentation and embeddings made elsewhere."""

from lspread.data.augmentation import (
    PerImage,
    RandomAffine,
    RandomColor,
    RandomErase,
    StrongAugmentation,
    WeakAugmentation,
)
from lspread.data.corruption import RandomCorruption
from lspread.data.decoding import decode_image
from lspread.data.digits import Digits
from lspread.data.embedded_items import EmbeddedItems
from lspread.data.embeddings import check_embeddings, load_embeddings, save_embeddings
from lspread.data.evaluation import Evaluator
from lspread.data.fashion_mnist import FashionMNIST
from lspread.data.image_folder import ImageFolder
from lspread.data.images import FolderImages, TensorImages
from lspread.data.medmnist import MedMNIST
from lspread.data.mixing import mix_images
from lspread.data.module import FewLabelData, Items
from lspread.data.row_data import RowData
from lspread.data.row_encoder import RowEncoder, load_row_encoder
from lspread.data.split import FewLabelSplit
from lspread.data.tensor_data import TensorData
from lspread.data.torchvision_images import TorchvisionImages
from lspread.data.vector_data import EmbeddingData, VectorData

__all__ = [
    "Digits",
    "EmbeddedItems",
    "EmbeddingData",
    "Evaluator",
    "FashionMNIST",
    "FewLabelData",
    "FewLabelSplit",
    "FolderImages",
    "ImageFolder",
    "Items",
    "MedMNIST",
    "PerImage",
    "RandomAffine",
    "RandomColor",
    "RandomCorruption",
    "RandomErase",
    "RowData",
    "RowEncoder",
    "StrongAugmentation",
    "TensorData",
    "TensorImages",
    "TorchvisionImages",
    "VectorData",
    "WeakAugmentation",
    "check_embeddings",
    "decode_image",
    "load_embeddings",
    "load_row_encoder",
    "mix_images",
    "save_embeddings",
]
