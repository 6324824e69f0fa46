import json

import pytest
import torch
from safetensors import safe_open

from lspread.data import EmbeddedItems
from lspread.data.columns import read_columns
from lspread.errors import DataError
from tests.reference import seeded


def make(**changed):
    facts = {
        "embedding": torch.randn(3, 2, generator=seeded(0)),
        "items": ["a.png", "b/ä.png", "c.png"],
        "kind": "image",
        "root": "/somewhere",
        "metric": "euclidean",
        "made_by": {"features": "a test"},
    }
    return EmbeddedItems(**{**facts, **changed})


def test_what_is_saved_comes_back(tmp_path):
    before = make()
    path = before.save(tmp_path / "deeper" / "z.safetensors")
    after = EmbeddedItems.load(path)
    assert torch.equal(after.embedding, before.embedding)
    assert (after.items, after.kind, after.root) == (before.items, before.kind, before.root)
    assert (after.metric, after.made_by) == (before.metric, before.made_by)
    with safe_open(path, framework="pt") as file:
        assert list(file.keys()) == ["embedding"]
        assert json.loads(file.metadata()["lspread"])["items"] == before.items
    assert [found.name for found in path.parent.iterdir()] == ["z.safetensors"]


def test_errors(tmp_path):
    with pytest.raises(DataError, match="3 embeddings and 2 distinct names"):
        make(items=["a", "b", "a"])
    with pytest.raises(DataError, match="NaN or infinity"):
        make(embedding=torch.full((3, 2), torch.nan))
    with pytest.raises(DataError, match="There is no embedding file"):
        EmbeddedItems.load(tmp_path / "none.safetensors")
    (tmp_path / "bad.safetensors").write_bytes(b"x" * 40)
    with pytest.raises(DataError, match=r"bad.safetensors is not a file of `lspread embed`"):
        EmbeddedItems.load(tmp_path / "bad.safetensors")
    make(root=str(tmp_path)).save(tmp_path / "z.safetensors")
    (tmp_path / "labels.csv").write_text("item,label\na.png,x\nq.png,y\n")
    with pytest.raises(DataError, match=r"names 1 of 2 files that are not images under"):
        EmbeddedItems.load(tmp_path / "z.safetensors").read_labels(tmp_path / "labels.csv")


@pytest.mark.parametrize("named", [True, False])
def test_the_embedded_file_is_a_label_file(tmp_path, named):
    rows = tmp_path / "texts.csv"
    first = ["code,text,label", "b,one,food", "a,two,", "c,three,arts"]
    rows.write_text("\n".join(first if named else [row.partition(",")[2] for row in first]))
    items = make(items=["b", "a", "c"] if named else ["1", "2", "3"], kind="text", root=str(rows))
    label, names = items.read_labels(tmp_path / "." / "texts.csv")
    assert (names, label.tolist()) == (["arts", "food"], [1, -1, 0])
    # Another file names its rows, since nothing else says which they are.
    (tmp_path / "other.csv").write_text("text,label\none,food\n")
    with pytest.raises(
        DataError, match=r"exactly the columns `item` and `label`.*Missing: item\. Unknown: text\. .*: 1, 2, 3"
    ):
        items.read_labels(tmp_path / "other.csv")
    with rows.open("a") as file:
        file.write("\nd,four,food" if named else "\nfour,food")
    with pytest.raises(
        DataError, match=r"no longer holds the 3 rows that were embedded, in their order\. Embed it again"
    ):
        items.read_labels(rows)
    rows.write_text("text\none\ntwo\nthree\n")
    with pytest.raises(DataError, match="has no column `label`"):
        items.read_labels(rows)


def test_labels_find_their_items(tmp_path):
    items = make(root=str(tmp_path))
    (tmp_path / "labels.csv").write_text("label,item\nzebra,c.png\nape,a.png\n,b/ä.png\n", encoding="utf-8")
    label, names = items.read_labels(tmp_path / "labels.csv")
    assert names == ["ape", "zebra"]
    assert label.tolist() == [0, -1, 1]


def test_counted_rows_have_to_stand_in_their_order(tmp_path):
    rows = tmp_path / "texts.csv"
    rows.write_text("text,label\none,\ntwo,\nthree,\n")
    items = make(items=["1", "2", "3"], kind="text", root=str(rows), rows=read_columns(rows).fingerprint())
    items.save(tmp_path / "z.safetensors")
    items = EmbeddedItems.load(tmp_path / "z.safetensors")
    rows.write_text("text,label\none,food\ntwo,\nthree,arts\n")
    assert items.read_labels(rows)[0].tolist() == [1, -1, 0]
    rows.write_text("text,label\nthree,arts\ntwo,\none,food\n")
    with pytest.raises(DataError, match="no longer holds the 3 rows that were embedded, in their order"):
        items.read_labels(rows)
