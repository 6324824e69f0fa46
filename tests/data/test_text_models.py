"""Texts by models: wordllama for real; the two packages of transformers by stand-ins that record their calls."""

import builtins
import json
import sys
import types
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from lspread.data.features import text_features
from lspread.errors import ConfigError


def hide(monkeypatch, *packages):
    real = builtins.__import__

    def fail(name, *args, **kwargs):
        if name.split(".")[0] in packages:
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", fail)


@pytest.mark.parametrize(
    ("model", "packages", "message"),
    [
        ("wordllama", ["wordllama"], "pip install wordllama"),
        ("some/folder", ["sentence_transformers", "transformers"], r"pip install 'lspread\[text\]'"),
    ],
)
def test_a_missing_package_is_named(monkeypatch, model, packages, message):
    hide(monkeypatch, *packages)
    with pytest.raises(ConfigError, match=message):
        text_features(["a b", "c d"], model=model)


def test_wordllama_knows_what_words_mean():
    pytest.importorskip("wordllama")
    texts = ["the doctor treats a patient", "a nurse in the hospital", "the car needs fuel", "petrol for the engine"]
    z = torch.nn.functional.normalize(text_features(texts, model="wordllama"), dim=1)
    cosine = z @ z.T  # no two of these texts share a word that tells
    assert cosine[0, 1] > cosine[0, 2:].max()
    assert cosine[2, 3] > cosine[3, :2].max()


def fake_sentence_transformers(monkeypatch, encode):
    """Put a package in place of sentence-transformers that records how it is called."""
    calls = {}

    class SentenceTransformer:
        def __init__(self, name, **options):
            calls["made"] = (name, options)
            if not (Path(name) / "modules.json").is_file():
                raise OSError(f"no file named modules.json in {name}")

        def encode(self, texts, **options):
            calls["texts"] = texts
            return encode(texts)

    module = types.ModuleType("sentence_transformers")
    module.SentenceTransformer = SentenceTransformer
    monkeypatch.setitem(sys.modules, "sentence_transformers", module)
    return calls


def test_a_sentence_transformers_folder_is_loaded_without_the_network(monkeypatch, tmp_path):
    calls = fake_sentence_transformers(monkeypatch, lambda texts: np.array([[len(text), 1.0] for text in texts]))
    (tmp_path / "modules.json").write_text("[]")
    found = text_features(["a", "bcd"], model=str(tmp_path))
    torch.testing.assert_close(found, torch.tensor([[1.0, 1], [3, 1]]))
    assert calls == {"made": (str(tmp_path), {"local_files_only": True}), "texts": ["a", "bcd"]}


def test_a_folder_that_is_no_sentence_transformers_folder(monkeypatch, tmp_path):
    fake_sentence_transformers(monkeypatch, None)
    with pytest.raises(ConfigError, match=r"is no folder.*Nothing is downloaded"):
        text_features(["a b", "c d"], model="all-MiniLM-L6-v2")
    with pytest.raises(ConfigError, match=r"cannot be loaded as a sentence-transformers folder: no file named"):
        text_features(["a b", "c d"], model=str(tmp_path))


class Tokenizer:
    """Tokens are letters, 0 fills up; the whole text starts with a 1."""

    model_max_length = 10**30

    def __call__(self, texts, *, padding, truncation, max_length, return_tensors):
        assert (padding, truncation, max_length, return_tensors) == (True, True, 512, "pt")
        rows = [[1, *map(ord, text)] for text in texts]
        width = max(map(len, rows))
        tokens = torch.tensor([row + [0] * (width - len(row)) for row in rows])
        return {"input_ids": tokens, "attention_mask": (tokens > 0).long()}


class Network:
    def eval(self):
        return self

    def __call__(self, input_ids, attention_mask):
        # What stands where nothing was written must not count.
        value = torch.where(attention_mask > 0, input_ids, 999).float()
        return SimpleNamespace(last_hidden_state=torch.stack([value, value.square()], -1))


@pytest.fixture
def transformers(monkeypatch):
    module = types.ModuleType("transformers")

    def loader(result):
        return SimpleNamespace(from_pretrained=lambda folder, local_files_only: result)

    module.AutoTokenizer, module.AutoModel = loader(Tokenizer()), loader(Network())
    monkeypatch.setitem(sys.modules, "transformers", module)
    hide(monkeypatch, "sentence_transformers")


def write_pooling(folder, *modes, layers=("Transformer", "Pooling")):
    (folder / "1_Pooling").mkdir(exist_ok=True)
    pooling = {"word_embedding_dimension": 2, "pooling_mode_max_tokens": False} | dict.fromkeys(modes, True)
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(pooling))
    kinds = [{"type": f"sentence_transformers.models.{layer}"} for layer in layers]
    (folder / "modules.json").write_text(json.dumps(kinds))


def test_transformers_alone_average_the_tokens(transformers, tmp_path):
    texts = [chr(100 + i) * (1 + i % 3) for i in range(70)]  # three batches
    rows = [torch.tensor([1.0, *map(ord, text)]) for text in texts]
    mean = torch.stack([torch.stack([row.mean(), row.square().mean()]) for row in rows])
    torch.testing.assert_close(text_features(texts, model=str(tmp_path)), mean)
    write_pooling(tmp_path, "pooling_mode_mean_tokens", layers=("Transformer", "Pooling", "Normalize"))
    torch.testing.assert_close(text_features(texts, model=str(tmp_path)), mean)
    write_pooling(tmp_path, "pooling_mode_cls_token")
    torch.testing.assert_close(text_features(texts, model=str(tmp_path)), torch.ones(70, 2))


def test_what_transformers_alone_cannot_do(transformers, tmp_path):
    write_pooling(tmp_path, "pooling_mode_weightedmean_tokens")
    with pytest.raises(ConfigError, match="pooling pooling_mode_weightedmean_tokens needs the package: pip install"):
        text_features(["a", "b"], model=str(tmp_path))
    write_pooling(tmp_path, "pooling_mode_mean_tokens", layers=("Transformer", "Pooling", "Dense"))
    with pytest.raises(ConfigError, match="layers Transformer, Pooling, Dense need the package"):
        text_features(["a", "b"], model=str(tmp_path))
