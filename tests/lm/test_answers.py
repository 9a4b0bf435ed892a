"""Likelihoods and written answers against transformers' own logits, one row at a time, without padding or a cache."""

from typing import Any

import pytest
import torch
from tests import tiny
from tests.lm.answering import tokenizer

from befit.lm.answers import Speaker

TEXTS = (
    ("The river", " is old"),
    ("A", " small green house under a stone"),
    ("One two three four", "."),
    ("", "Seven"),
)


def speaker(family: str, **more: Any) -> tuple[Any, Speaker]:
    """transformers' own model, and befit's of the same weights as a speaker."""
    sizes = {"vocab_size": len(tokenizer()), "eos_token_id": 0} | more
    row = tiny.parent(family, 4, **sizes)
    return tiny.original(family, 4, **sizes), Speaker(model=row, tokenizer=tokenizer(), batch=3)


@pytest.mark.parametrize("family", ["llama", "mistral", tiny.HYBRID])
def test_likelihoods_are_those_of_each_row_alone(family: str) -> None:
    plain, own = speaker(family)
    pairs = [own.pair(*text) for text in TEXTS]
    for (context, answer), found in zip(pairs, own.likelihoods(pairs), strict=True):
        with torch.no_grad():
            logs = plain(torch.tensor([[*context, *answer]]), use_cache=False).logits[0].log_softmax(-1)
        logs = logs[len(context) - 1 : -1]
        assert found.total == pytest.approx(float(logs[range(len(answer)), list(answer)].sum()), abs=1e-4)
        assert found.tokens == len(answer) and found.greedy == (logs.argmax(-1).tolist() == list(answer))
    assert own.likelihoods([]) == []


@pytest.mark.parametrize("family", ["llama", tiny.HYBRID])
def test_what_is_written_is_the_likeliest_token_each_time(family: str) -> None:
    plain, own = speaker(family)
    prompts, limits = ["The river", "One two three four", "A small house"], [6, 6, 3]
    texts = own.write(prompts, limits, [("\n",)] * 3)
    for prompt, limit, text in zip(prompts, limits, texts, strict=True):
        ids = torch.tensor([own.encode(prompt)])
        begin = ids.shape[1]
        with torch.no_grad():
            while ids.shape[1] < begin + limit and ids[0, -1] != 0:
                ids = torch.cat([ids, plain(ids, use_cache=False).logits[:, -1:].argmax(-1)], dim=1)
        told = tokenizer().decode(ids[0, begin:], skip_special_tokens=True)
        assert text == told.split("\n")[0]
    (stop,) = {texts[0][2]}
    assert own.write(prompts[:1], limits[:1], [(stop,)]) == [texts[0].split(stop)[0]]


def test_a_greedy_continuation_is_known_as_such() -> None:
    _, own = speaker("llama")
    context = own.encode("The river")
    with torch.no_grad():
        logits = own.model(torch.tensor([context])).logits[0, -1]
    best, worst = int(logits.argmax()), int(logits.argmin())
    assert [one.greedy for one in own.likelihoods([(context, (best,)), (context, (worst,))])] == [True, False]


def test_pairs_are_split_where_the_context_ends() -> None:
    _, own = speaker("llama")
    for context, answer in (("The river is", " old"), ("The river is ", "old")):
        before, after = own.pair(context, answer)
        assert before == own.encode("The river is") and (*before, *after) == own.encode("The river is old")
    before, after = own.pair("", "old")
    assert before == (0,) and after == own.encode("old")


def test_what_has_no_room_loses_its_oldest_tokens() -> None:
    _, own = speaker("llama", max_position_embeddings=8)
    assert own.room == 8
    ids = own.encode("One two three four five six seven eight nine ten eleven twelve")
    long, short = own.likelihoods([(ids[:-2], ids[-2:]), (ids[-9:-2], ids[-2:])])
    assert long == short and len(ids) > 10
    assert own.write([tokenizer().decode(ids)], [3], [()]) == own.write([tokenizer().decode(ids[-5:])], [3], [()])
