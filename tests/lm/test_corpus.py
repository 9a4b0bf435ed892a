"""The training corpus: tokenizer, packed rows, and the file they travel in."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file
from transformers import AutoTokenizer

from befit.errors import BadData
from befit.lm.corpus import (
    END_ID,
    Corpus,
    CorpusConfig,
    collect,
    load_corpus,
    prepare,
    token_bytes,
    train_tokenizer,
)

SMALL = CorpusConfig(packages=("python",), limit_characters=100_000, vocab=400, context=32)


@pytest.fixture(scope="module")
def corpus() -> Corpus:
    return collect(SMALL)


def test_a_prepared_file_gives_back_the_corpus(corpus: Corpus, tmp_path: Path) -> None:
    path = prepare(SMALL, tmp_path / "deep" / "tokens.safetensors")
    again = load_corpus(CorpusConfig(tokens=path))
    assert torch.equal(again.train, corpus.train) and torch.equal(again.held_out, corpus.held_out)
    assert again.packages == corpus.packages and again.tokenizer.get_vocab() == corpus.tokenizer.get_vocab()
    assert path.stat().st_size < 2 * (corpus.train.numel() + corpus.held_out.numel()) + 1000


def test_the_vocabulary_has_the_size_asked_for_and_the_end_token_first(corpus: Corpus) -> None:
    assert len(corpus.tokenizer) == SMALL.vocab
    assert corpus.tokenizer.eos_token_id == corpus.tokenizer.pad_token_id == END_ID
    assert corpus.train.shape[1] == SMALL.context and len(corpus.train) > 5 * len(corpus.held_out) > 0


def test_too_little_text_for_the_vocabulary() -> None:
    with pytest.raises(BadData, match=r"gives only \d+ of 3072 tokens"):
        train_tokenizer(["a b c d"] * 10, 3072)


@given(text=st.text())
def test_every_text_survives_the_tokenizer(corpus: Corpus, text: str) -> None:
    ids = corpus.tokenizer(text, add_special_tokens=False)["input_ids"]
    assert corpus.tokenizer.decode(ids, clean_up_tokenization_spaces=False) == text
    first = corpus.tokenizer.convert_tokens_to_ids("x")  # predicted by nothing, so not counted
    rows = torch.tensor([[first, *ids, END_ID]])  # type: ignore[misc]
    assert token_bytes(corpus.tokenizer, rows) == len(text.encode())


def test_the_saved_tokenizer_loads_as_any_other(corpus: Corpus, tmp_path: Path) -> None:
    corpus.tokenizer.save_pretrained(tmp_path)
    again = AutoTokenizer.from_pretrained(tmp_path)
    text = "def f(x):\n    return x  # naïve"
    assert again(text)["input_ids"] == corpus.tokenizer(text)["input_ids"]
    assert again.eos_token_id == END_ID


def test_other_files_are_refused(corpus: Corpus, tmp_path: Path) -> None:
    corpus.tokenizer.save_pretrained(tmp_path / "tokenizer")
    path = tmp_path / "tokens.safetensors"
    with pytest.raises(BadData, match="expected a token file at"):
        load_corpus(CorpusConfig(tokens=path))
    save_file({"weight": torch.zeros(2)}, path)
    with pytest.raises(BadData, match=r"holds \['weight'\], not token rows"):
        load_corpus(CorpusConfig(tokens=path))
    path.write_text("text")
    with pytest.raises(BadData, match="is not a safetensors file"):
        load_corpus(CorpusConfig(tokens=path))
    with pytest.raises(BadData, match="a tokenizer in"):
        load_corpus(CorpusConfig(tokens=path, tokenizer=tmp_path / "missing"))


def test_impossible_sizes_are_refused() -> None:
    for wrong in ({"vocab": 256}, {"vocab": 65_537}, {"context": 1}):
        with pytest.raises(ValueError, match="vocab must be 257"):
            replace(SMALL, **wrong)
