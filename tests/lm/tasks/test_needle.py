"""A needle's text: its length, what stands in it, and where."""

import re
from dataclasses import replace

import pytest
from tests.lm.answering import constant

from befit.errors import BadData
from befit.lm.tasks.item import items
from befit.lm.tasks.needle import NEEDLE, PLACES


def test_texts_have_their_length_and_the_needle_its_depth() -> None:
    speaker = constant()
    drawn = items(NEEDLE, seed=0, count=32, tokens=speaker.count, levels=(256, 512))
    depths = set()
    for item in drawn:
        level = int(item.labels["tokens"])
        longest = max(len(speaker.encode(item.prompt + option)) for option in item.options)
        assert level - 40 < longest <= level
        facts = re.findall(r"The number of the (\w+ \w+) is (\d+)\.", item.prompt)
        asked = re.findall(r"What is the number of the (\w+ \w+)\?", item.prompt)
        assert len(facts) == len(dict(facts)) == PLACES and [dict(facts)[asked[0]]] == [item.answer.strip()]
        assert {f" {number}" for _, number in facts} == set(item.options)
        place = item.prompt.index(item.answer) / item.prompt.index("\n\nQuestion")
        assert abs(place - float(item.labels["depth"][:-1]) / 100) < 0.2
        depths.add(item.labels["depth"])
        assert item.without.count(" is ") == PLACES - 1 + 1  # the other facts, and the question
        assert abs(speaker.count(item.without) - speaker.count(item.prompt)) < 15
    assert len(depths) == 4


def test_only_the_number_that_was_asked_for_is_right() -> None:
    item = replace(items(NEEDLE, seed=0, count=1, tokens=len, levels=(2000,))[0], options=(" 1234", " 5678"), right=0)
    assert NEEDLE.correct(item, " 1234.") and NEEDLE.correct(item, " number 1234, I think")
    assert (
        not NEEDLE.correct(item, " 5678 or 1234")
        and not NEEDLE.correct(item, " 12345")
        and not NEEDLE.correct(item, "")
    )


def test_a_text_that_is_too_short_is_refused() -> None:
    with pytest.raises(BadData, match="does not fit in 40 tokens"):
        items(NEEDLE, seed=0, count=1, tokens=len, levels=(40,))
