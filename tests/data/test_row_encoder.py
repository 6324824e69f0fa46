import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from sklearn.decomposition import TruncatedSVD
from sklearn.feature_extraction.text import TfidfVectorizer

from lspread.data import words as words_module
from lspread.data.columns import read_columns
from lspread.data.features import table_features, text_features
from lspread.data.row_encoder import ENCODER_FILE, WORDS_FILE, TextEncoder, load_row_encoder, save_row_encoder
from lspread.data.words import Words
from lspread.errors import ConfigError, DataError

TEXTS = ["red apple pie", "apple pie with cream", "steel bolts and nuts", "nuts of steel", "a red steel bolt"]
NEW = ["bolts of steel", "cream pie", "nothing known"]


def write(path: Path, *lines: str) -> Path:
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


@pytest.fixture
def table(tmp_path: Path) -> Path:
    rows = [f"{i},{'' if i == 3 else i * 0.1},{'xyz'[i % 3]},name {i}" for i in range(12)]
    return write(tmp_path / "t.csv", "age,size,kind,person", *rows)


@pytest.mark.filterwarnings("ignore:.*left out person")
def test_new_rows_of_a_table_are_scaled_as_the_old_ones_were(table: Path, tmp_path: Path) -> None:
    found = read_columns(table).features()
    save_row_encoder(tmp_path, found.encoder)
    table.unlink()
    encoder = load_row_encoder(tmp_path)
    assert (encoder.kind, encoder.columns) == ("table", ["age", "size", "kind"])
    new = {"kind": ["y", "w", ""], "age": ["100", "3", ""], "size": ["", "0.5", "1e400"], "person": ["a", "b", "c"]}
    old = {
        "age": [str(i) for i in range(12)],
        "size": ["" if i == 3 else str(i * 0.1) for i in range(12)],
        "kind": ["xyz"[i % 3] for i in range(12)],
    }
    both = table_features({name: old[name] + new[name] for name in old}, reference=range(12))
    assert encoder.encode(new).equal(both.embedding[12:])
    assert encoder.encode(old).equal(found.embedding)
    # An empty cell is known where training had one; what is no number (1e400 is none), and no category, tells nothing.
    assert encoder.unknown(new, encoder.encode(new)) == {"age": [2], "size": [2], "kind": [1, 2]}
    assert encoder.unknown(old, encoder.encode(old)) == {}
    huge = {"age": ["1e40", "1e37"], "size": ["1", "1"], "kind": ["x", "x"]}
    assert encoder.encode(huge).isfinite().all()
    assert encoder.unknown(huge, encoder.encode(huge)) == {"age": [0]}


def test_new_texts_meet_the_words_of_the_old_ones(tmp_path: Path) -> None:
    path = write(tmp_path / "t.csv", "id,mail", *(f"{i},{text}" for i, text in enumerate(TEXTS)))
    found = read_columns(path).features("mail")
    save_row_encoder(tmp_path, found.encoder)
    encoder = load_row_encoder(tmp_path)
    assert (encoder.kind, encoder.columns) == ("text", ["mail"])
    assert encoder.encode({"mail": TEXTS}).equal(found.embedding)
    assert encoder.encode({"mail": NEW}).equal(text_features(TEXTS + NEW, reference=range(5))[5:])
    assert encoder.unknown({"mail": NEW}, encoder.encode({"mail": NEW})) == {"mail": [2]}
    assert encoder.unknown({"mail": TEXTS}, found.embedding) == {}
    # One text is enough, and it gets what it gets among others.
    assert encoder.encode({"mail": NEW[1:2]}).equal(encoder.encode({"mail": NEW})[1:2])


def test_words_are_those_of_scikit_learn() -> None:
    counter = TfidfVectorizer(sublinear_tf=True, ngram_range=(1, 2))
    count = counter.fit_transform(TEXTS)
    expected = TruncatedSVD(3, random_state=0).fit(count).transform(counter.transform(NEW))
    words = Words.fit(TEXTS, 3)
    torch.testing.assert_close(words.encode(NEW), torch.from_numpy(expected).float(), atol=1e-6, rtol=1e-5)
    # Of two texts, one of them about nothing, no direction is left but the words themselves.
    plain = Words.fit(["red", "red"])
    assert plain.components is None
    assert plain.encode(["red", "blue"]).tolist() == [[1], [0]]


def test_the_commonest_words_count_where_there_are_many(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(words_module, "MOST_WORDS", 2)
    words = Words.fit([*TEXTS, "apple steel apple steel"])
    assert words.vocabulary == ["apple", "steel"]


def test_a_language_model_is_named_and_not_kept(tmp_path: Path) -> None:
    pytest.importorskip("wordllama")
    columns = read_columns(write(tmp_path / "t.csv", "text", *TEXTS))
    found = columns.features(model="wordllama")
    save_row_encoder(tmp_path, found.encoder)
    encoder = load_row_encoder(tmp_path)
    torch.testing.assert_close(encoder.encode({"text": TEXTS}), found.embedding)
    assert encoder.unknown({"text": NEW}, torch.zeros(3, 2)) == {}
    assert not (tmp_path / WORDS_FILE).exists()


def test_a_language_model_that_is_gone_is_missed_by_name(tmp_path: Path) -> None:
    spec = {"format": "lspread-rows-1", "kind": "text", "column": "a", "model": "b", "id_column": None}
    write(tmp_path / ENCODER_FILE, json.dumps(spec))
    with pytest.raises(ConfigError, match=r"b is no folder|needs the package"):
        load_row_encoder(tmp_path).encode({"a": ["c"]})


def test_a_folder_with_a_language_model_is_found_from_elsewhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for model, kept in (("model", str(tmp_path / "model")), ("wordllama", "wordllama")):  # the latter is a package
        (tmp_path / model).mkdir()
        save_row_encoder(tmp_path, TextEncoder("text", model, id_column="name"))
        encoder = load_row_encoder(tmp_path)
        assert isinstance(encoder, TextEncoder)
        assert (encoder.by, encoder.id_column) == (kept, "name")


def test_words_of_an_earlier_ending_do_not_stay(tmp_path: Path) -> None:
    save_row_encoder(tmp_path, read_columns(write(tmp_path / "t.csv", "text", *TEXTS)).features().encoder)
    assert (tmp_path / WORDS_FILE).exists()
    save_row_encoder(tmp_path, read_columns(write(tmp_path / "t.csv", "x", "1", "2")).features().encoder)
    assert not (tmp_path / WORDS_FILE).exists()
    assert load_row_encoder(tmp_path).columns == ["x"]


def test_files_that_are_missing_or_damaged(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"has no features\.json(.|\n)*`lspread fit RUN` adds what is missing"):
        load_row_encoder(tmp_path)
    save_row_encoder(tmp_path, read_columns(write(tmp_path / "t.csv", "text", *TEXTS)).features().encoder)
    spec, tensors = json.loads((tmp_path / ENCODER_FILE).read_text()), load_file(tmp_path / WORDS_FILE)

    def refuse(match: str) -> None:
        with pytest.raises(DataError, match=f"features in .* cannot be read(.|\n)*{match}"):
            load_row_encoder(tmp_path)

    save_file({**tensors, "idf": tensors["idf"][1:]}, tmp_path / WORDS_FILE)
    refuse("words, but shapes")
    save_file({**tensors, "idf": tensors["idf"].float()}, tmp_path / WORDS_FILE)
    refuse("idf is torch.float32")
    save_file({"components": tensors["components"]}, tmp_path / WORDS_FILE)
    refuse("KeyError: 'idf'")
    (tmp_path / WORDS_FILE).write_bytes(b"no tensors")
    refuse("SafetensorError")
    (tmp_path / WORDS_FILE).unlink()
    refuse("FileNotFoundError")
    write(tmp_path / ENCODER_FILE, json.dumps({**spec, "format": "lspread-rows-9"}))
    refuse("format lspread-rows-9 is not lspread-rows-1")
    write(tmp_path / ENCODER_FILE, json.dumps({**spec, "kind": "table", "columns": {"x": {"median": 1}}}))
    refuse("TypeError")
    write(tmp_path / ENCODER_FILE, "[]")
    refuse("TypeError")
    write(tmp_path / ENCODER_FILE, "{")
    refuse("JSONDecodeError")
