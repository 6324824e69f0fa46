"""Embeddings of texts from models that lie on this machine; nothing is downloaded."""

import json
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lspread.errors import ConfigError

__all__ = ["embed_with_folder", "embed_with_model", "embed_with_wordllama"]

_BATCH, _MOST_TOKENS = 32, 512


def embed_with_model(texts: Sequence[str], model: str) -> Tensor:
    """Return embeddings `(n, d)` float32 of n texts by "wordllama", or by a folder of sentence-transformers.

    Raises:
        ConfigError: A package is not installed, there is no such folder, or it cannot be loaded.
    """
    return embed_with_wordllama(texts) if model == "wordllama" else embed_with_folder(texts, model)


def embed_with_wordllama(texts: Sequence[str]) -> Tensor:
    """Return embeddings `(n, d)` float32 by the small model that comes with the package wordllama.

    Raises:
        ConfigError: The package is not installed.
    """
    try:
        import wordllama
    except ImportError as error:
        raise ConfigError("model 'wordllama' needs the package: pip install wordllama") from error
    # Weights and tokenizer come with the package, which looks for the latter in another folder of its own.
    here = Path(wordllama.__file__).parent
    network = wordllama.WordLlama.load(cache_dir=here, disable_download=True)
    return torch.from_numpy(np.asarray(network.embed(list(texts)), dtype=np.float32))


def embed_with_folder(texts: Sequence[str], folder: str | Path) -> Tensor:
    """Return embeddings `(n, d)` float32 by a model saved by sentence-transformers (or transformers).

    With the package transformers alone, the last hidden states are averaged over the tokens, or the first token's is
    taken where the folder says so (`1_Pooling/config.json`); further layers of sentence-transformers need that package.

    Args:
        texts: n texts.
        folder: The saved model. No code in it is run.

    Raises:
        ConfigError: Neither package is installed, there is no such folder, or it cannot be loaded.
    """
    folder = Path(folder)
    package = _package(folder)
    if not folder.is_dir():
        raise ConfigError(
            f"model must be 'wordllama' or a local folder of sentence-transformers; {folder} is no folder. Nothing is "
            "downloaded: where there is a network, save the model once with SentenceTransformer(name).save(folder)."
        )
    try:
        if package.__name__ == "sentence_transformers":
            encoder = package.SentenceTransformer(str(folder), local_files_only=True)
        else:
            tokenizer = package.AutoTokenizer.from_pretrained(folder, local_files_only=True)
            network = package.AutoModel.from_pretrained(folder, local_files_only=True).eval()
            takes_first = _takes_first_token(folder)
    except (OSError, ValueError) as error:
        raise ConfigError(f"{folder} cannot be loaded as a sentence-transformers folder: {error}") from error
    if package.__name__ == "sentence_transformers":
        return torch.from_numpy(np.asarray(encoder.encode(list(texts), show_progress_bar=True), dtype=np.float32))
    most = min(tokenizer.model_max_length, _MOST_TOKENS)
    parts = [texts[start : start + _BATCH] for start in range(0, len(texts), _BATCH)]
    return torch.cat([_pooled(tokenizer, network, list(part), most, takes_first) for part in parts])


@torch.no_grad()
def _pooled(tokenizer: Any, network: Any, texts: list[str], most: int, takes_first: bool) -> Tensor:
    tokens = tokenizer(texts, padding=True, truncation=True, max_length=most, return_tensors="pt")
    hidden: Tensor = network(**tokens).last_hidden_state
    if takes_first:
        return hidden[:, 0].float()
    is_token = tokens["attention_mask"][:, :, None].to(hidden.dtype)
    return ((hidden * is_token).sum(1) / is_token.sum(1).clamp(min=1)).float()


def _takes_first_token(folder: Path) -> bool:
    modules, pooling = folder / "modules.json", folder / "1_Pooling" / "config.json"
    if modules.is_file():
        known = {"Transformer", "Pooling", "Normalize"}  # unit length makes no difference to the cosine
        kinds = [str(module["type"]).rpartition(".")[2] for module in json.loads(modules.read_text(encoding="utf-8"))]
        if not set(kinds) <= known:
            raise ValueError(f"its layers {', '.join(kinds)} need the package: pip install sentence-transformers")
    if not pooling.is_file():
        return False
    modes = [name for name, value in json.loads(pooling.read_text(encoding="utf-8")).items() if value is True]
    modes = [name for name in modes if name.startswith("pooling_mode_")]
    if modes not in (["pooling_mode_mean_tokens"], ["pooling_mode_cls_token"]):
        raise ValueError(f"its pooling {', '.join(modes)} needs the package: pip install sentence-transformers")
    return modes == ["pooling_mode_cls_token"]


def _package(folder: Path) -> ModuleType:
    try:
        import sentence_transformers

        return sentence_transformers
    except ImportError:
        pass
    try:
        import transformers

        return transformers
    except ImportError as error:
        raise ConfigError(
            f"model '{folder}' needs the package sentence-transformers: pip install 'lspread[text]'"
        ) from error
