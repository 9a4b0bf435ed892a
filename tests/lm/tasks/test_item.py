"""What holds for the items of every task: the same everywhere, all different, and the answer is not in the question."""

import hashlib
import json
import math
from dataclasses import asdict

import pytest
import torch
from tests import tiny
from tests.lm.answering import constant, oracle, tokenizer

from befit.errors import BadData
from befit.lm.answers import Speaker
from befit.lm.asking import ask
from befit.lm.tasks.item import Item, Task, cut, golden, items
from befit.lm.tasks.named import BUILT_IN

EVERY = pytest.mark.parametrize("task", BUILT_IN.values(), ids=BUILT_IN)
PUBLISHED = {
    "needle": "99410b3876a68f1c",
    "tool_call": "2d2e17d50f920dc8",
    "arithmetic": "c66637c67656b233",
}
"""sha256 of the first items, made on Linux under Python 3.11: any other place must agree."""


def words(text: str) -> int:
    return len(text.split())


@EVERY
def test_items_are_the_published_ones(task: Task) -> None:
    drawn = items(task, seed=0, count=12, tokens=words)
    text = json.dumps([asdict(item) for item in drawn], sort_keys=True)
    assert hashlib.sha256(text.encode()).hexdigest()[:16] == PUBLISHED[task.name]
    assert items(task, seed=0, count=5, tokens=words) == drawn[:5]
    assert not {item.prompt for item in drawn} & {item.prompt for item in items(task, seed=1, count=12, tokens=words)}


@EVERY
def test_items_are_different_and_the_answer_does_not_leak(task: Task) -> None:
    drawn = items(task, seed=3, count=150, tokens=words)
    assert len({item.prompt for item in drawn}) == 150
    for item in drawn:
        told = item.answer.strip()
        assert item.prompt.count(told) == (1 if task.name == "needle" else 0)
        assert told not in item.without
        assert task.correct(item, item.answer) and task.correct(item, f"{item.answer} ")
        assert not any(task.correct(item, text) for text in (*item.options, "") if text != item.answer)
        assert all(option.startswith(" ") for option in item.options) and item.prompt == item.prompt.rstrip()
    places = [item.right for item in drawn]
    assert min(places.count(place) for place in range(4)) > 20  # the right option stands nowhere in particular


@EVERY
def test_an_oracle_is_always_right_and_who_has_no_opinion_is_at_chance(task: Task) -> None:
    drawn = items(task, seed=0, count=8, tokens=constant().count, levels=task.levels[:1])
    best = ask(task, drawn, oracle(drawn))
    assert set(best["choice"].values) == set(best["exact"].values) == {1.0}
    assert max(best["nats"].values) < 1e-6 and max(best["doubt"].values) < 1e-6
    none = ask(task, drawn, constant())
    assert set(none["exact"].values) == {0.0} and none["choice"].chance == 0.25
    assert none["nats"].values == pytest.approx([math.log(len(tokenizer()))] * 8)
    lengths = [[len(constant().pair(item.prompt, option)[1]) for option in item.options] for item in drawn]
    for value, doubt, own in zip(none["choice"].values, none["doubt"].values, lengths, strict=True):
        assert value in (0, 1 / own.count(min(own)))
        assert len(set(own)) > 1 or doubt == pytest.approx(math.log(4), rel=1e-5)


@EVERY
def test_the_length_of_options_does_not_give_the_right_one_away(task: Task) -> None:
    """To whom all tokens are alike, the shortest option is the likeliest."""
    speaker, right = constant(), 0.0
    for item in items(task, seed=0, count=400, tokens=speaker.count, levels=task.levels[:1]):
        lengths = [speaker.count(option) for option in item.options]
        right += (lengths[item.right] == min(lengths)) / lengths.count(min(lengths))
    assert abs(right / 400 - 0.25) < 3 * math.sqrt(0.25 * 0.75 / 400)


@EVERY
def test_a_model_that_learns_the_task_improves(task: Task) -> None:
    levels = (160,) if task.name == "needle" else task.levels[:1]
    model = tiny.parent("llama", 2, vocab_size=len(tokenizer()), max_position_embeddings=512, eos_token_id=0)
    speaker = Speaker(model=model, tokenizer=tokenizer())
    drawn = items(task, seed=0, count=8, tokens=speaker.count, levels=levels)
    before = ask(task, drawn, speaker, write=False)
    lessons = items(task, seed=1, count=16, tokens=speaker.count, levels=levels)
    pairs = [speaker.pair(item.prompt, item.answer) for item in lessons]
    weights = list(model.requires_grad_(True).parameters())
    adam = torch.optim.Adam(weights, lr=5e-3)
    for step in range(48):
        context, answer = pairs[step % len(pairs)]
        logits = model(torch.tensor([[*context, *answer][:-1]])).logits[0, -len(answer) :]
        loss = torch.nn.functional.cross_entropy(logits, torch.tensor(answer))
        adam.zero_grad()
        loss.backward()
        adam.step()
    after = ask(task, drawn, speaker, write=False)
    assert sum(after["nats"].values) < 0.5 * sum(before["nats"].values)
    assert sum(after["doubt"].values) < sum(before["doubt"].values)


def test_small_places_run_out_of_items() -> None:
    same = Item(prompt="1 + 1 =", options=(" 2", " 3"), right=0)
    task = Task(name="one", about="", unit="", levels=(1,), draw=lambda *_: same, correct=lambda *_: True)
    assert items(task, seed=0, count=1, tokens=len) == (same,)
    with pytest.raises(BadData, match="no more than 1 different items"):
        items(task, seed=0, count=2, tokens=len)
    for count, levels in ((0, (1,)), (1, (0,))):
        with pytest.raises(BadData, match="at least one item"):
            items(task, seed=0, count=count, tokens=len, levels=levels)
    with pytest.raises(ValueError, match="different options"):
        Item(prompt="", options=(" 2", " 2"), right=0)


def test_places_are_spread_and_answers_end() -> None:
    places = [golden(turn) for turn in range(8)]
    quarters = [int(4 * place) for place in places]
    assert all(quarters.count(quarter) >= 1 for quarter in range(4)) and max(map(quarters.count, range(4))) <= 3
    assert cut("yes\nno. more", (". ", "\n")) == "yes" and cut("yes", ("\n",)) == "yes"
