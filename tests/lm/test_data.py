"""Text to token blocks: sources, bad input, and rows that hold exactly the documents they should."""

import gzip
import json
import lzma
from itertools import groupby
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerFast

from befit.errors import BadData
from befit.lm.corpus import train_tokenizer
from befit.lm.data import Texts, digest, load_blocks, load_texts, pack

ARTICLES = tuple(f"Article {i}: " + f"the number {i} is written here. " * 8 for i in range(300))


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    return train_tokenizer(ARTICLES, 280)


@pytest.fixture
def texts() -> Texts:
    return Texts(source="articles", documents=ARTICLES)


def _jsonl(path: Path, entries: list[object]) -> str:
    path.write_text("".join(json.dumps(entry, ensure_ascii=False) + "\n" for entry in entries))
    return str(path)


def test_jsonl(tmp_path: Path) -> None:
    source = _jsonl(tmp_path / "a.jsonl", [{"text": "one"}, {"text": " "}, {"text": "two\u2028lines", "id": 3}])
    assert load_texts(source).documents == ("one", "two\u2028lines")
    source = _jsonl(tmp_path / "b.jsonl", [{"body": "three"}])
    assert load_texts(source, field="body").documents == ("three",)


@pytest.mark.parametrize(("suffix", "opener"), [("", Path.open), (".xz", lzma.open), (".gz", gzip.open)])
def test_text_is_cut_at_blank_lines_and_nothing_is_lost(tmp_path: Path, suffix: str, opener) -> None:
    text = "\n\n".join(ARTICLES)
    path = tmp_path / f"a.txt{suffix}"
    with opener(path, "wb") as file:
        file.write(text.encode())
    pieces = load_texts(str(path)).documents
    assert len(pieces) > 20 and "\n\n".join(pieces) == text
    assert all(len(piece) >= 2000 for piece in pieces[:-1])


@given(st.text(alphabet="ab\n", min_size=1).map(lambda text: text * 700))
def test_cutting_keeps_every_letter(text: str) -> None:
    from befit.lm.data import _pieces

    assert "".join(_pieces(text)).replace("\n", "") == text.replace("\n", "")


def test_a_folder_is_read_in_the_order_of_names(tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    (tmp_path / "b.txt").write_text("second")
    _jsonl(tmp_path / "a.jsonl", [{"text": "first"}])
    (tmp_path / "deep" / "c.txt.gz").write_bytes(gzip.compress(b"third"))
    (tmp_path / "image.png").write_bytes(b"\x89PNG")
    assert load_texts(str(tmp_path)).documents == ("first", "second", "third")


def test_no_source_is_the_documentation() -> None:
    texts = load_texts(None, limit_characters=50_000)
    assert len(texts.documents) > 20 and 40_000 < sum(map(len, texts.documents)) <= 50_000


def test_a_limit_ends_reading(tmp_path: Path) -> None:
    source = _jsonl(tmp_path / "a.jsonl", [{"text": "x" * 100}] * 10)
    assert len(load_texts(source, limit_characters=250).documents) == 3


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", b'{"text": "x"}\n{"body": "y", "id": 1}\n', r"line 2 has no 'text', its keys are \['body', 'id'\]"),
        ("a.jsonl", b'{"text": 5}\n', r"line 1 has a int under 'text'"),
        ("a.jsonl", b'["text"]\n', r"line 1 holds a list; expected one JSON object a line"),
        ("a.jsonl", b'\n{"text": "x"\n', r"line 2 is not JSON"),
        ("a.txt", b"\x80\x81 binary", r"a.txt is not UTF-8 text \(byte 0"),
        ("a.txt", b"zero \0 byte", r"holds zero bytes, so it is binary"),
        ("a.txt", b" \n\n ", r"holds no text"),
        ("a.txt", b"", r"holds no text"),
        ("a.txt.gz", b"not gzip", r"a.txt.gz cannot be read"),
        ("a.jsonl.xz", b"not xz", r"a.jsonl.xz cannot be read"),
        ("a.parquet", b"PAR1", r"a.parquet is neither .txt nor .jsonl; expected"),
    ],
)
def test_bad_files_are_named_and_explained(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(BadData, match=message):
        load_texts(str(path))


def test_a_folder_without_text_and_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(BadData, match=r"holds no .txt or .jsonl file"):
        load_texts(str(tmp_path))
    with pytest.raises(BadData, match=r"there is no file or folder '.*missing.txt'"):
        load_texts(str(tmp_path / "missing.txt"))


def test_a_hub_name_without_network_says_what_it_could_be() -> None:
    with pytest.raises(BadData, match=r"no file or folder 'nobody/nothing', and the hub dataset"):
        load_texts("nobody/nothing")


def test_rows_are_the_documents_in_a_shuffled_order(texts: Texts, tokenizer: PreTrainedTokenizerFast) -> None:
    rows = pack(texts, tokenizer, 32, seed=3)
    ids = rows.flatten().tolist()
    end = tokenizer.eos_token_id
    documents = [tokenizer.decode(list(g)) for is_end, g in groupby(ids, lambda i: i == end) if not is_end]
    complete = documents[:-1]  # the last one is cut where the last row ends
    assert len(complete) >= len(ARTICLES) - 2
    assert set(complete) <= set(ARTICLES) and len(set(complete)) == len(complete)
    assert complete != list(ARTICLES[: len(complete)])


def test_packing_is_a_function_of_its_seed_and_stops_at_the_limit(
    texts: Texts, tokenizer: PreTrainedTokenizerFast
) -> None:
    rows = pack(texts, tokenizer, 32, 1000, seed=3)
    assert rows.shape == (31, 32) and rows.dtype == torch.long
    assert digest(rows) == digest(pack(texts, tokenizer, 32, 1000, seed=3))
    assert digest(rows) != digest(pack(texts, tokenizer, 32, 1000, seed=4))
    assert torch.equal(pack(texts, tokenizer, 32, seed=3)[:31], rows)


def test_the_digest_sees_values_and_shapes() -> None:
    rows = torch.arange(12).view(3, 4)
    changed = rows.clone()
    changed[2, 3] += 1
    assert len({digest(rows), digest(changed), digest(rows.view(4, 3)), digest(rows, rows)}) == 4


def test_too_little_text_says_how_much(texts: Texts, tokenizer: PreTrainedTokenizerFast) -> None:
    few = Texts(source="few", documents=("word",))
    found = len(tokenizer("word")["input_ids"]) + 1  # type: ignore[arg-type]
    with pytest.raises(BadData, match=rf"few gives {found} tokens, but 256 are needed \(4 rows of 64\)"):
        pack(few, tokenizer, 64, at_least=4)


def test_a_tokenizer_without_an_end_token_is_refused(texts: Texts, tokenizer: PreTrainedTokenizerFast) -> None:
    bare = PreTrainedTokenizerFast(tokenizer_object=tokenizer.backend_tokenizer)
    with pytest.raises(BadData, match="no end-of-text token"):
        pack(texts, bare, 32)


def test_train_and_held_out_share_no_document(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    source = _jsonl(tmp_path / "a.jsonl", [{"text": text} for text in ARTICLES])
    train, held_out = load_texts(source).split(0.2)
    assert not set(train.documents) & set(held_out.documents)
    assert set(train.documents) | set(held_out.documents) == set(ARTICLES)
    assert 30 < len(held_out.documents) < 90  # 60 expected, standard deviation 7
    blocks = load_blocks(source, tokenizer, length=32, train_rows=50, held_out_rows=8)
    assert blocks.train.shape == (50, 32) and blocks.held_out.shape == (8, 32)
    assert blocks.digest == digest(blocks.train, blocks.held_out)
    with pytest.raises(BadData, match="held-out part gives"):
        load_blocks(source, tokenizer, length=32, train_rows=50, held_out_rows=800)
