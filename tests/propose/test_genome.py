import json
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from befit.arch.cell import cell_space
from befit.arch.space import Choice, Space
from befit.errors import BadProposal
from befit.propose.genome import describe, read, shown

CELL = cell_space()
SMALL = Space(
    {
        "width": Choice(16, 32, 64),
        "mixer": Choice("conv", "pool"),
        "kernel": Choice(3, 5, when={"mixer": "conv", "width": (32, 64)}),
        "bias": Choice(True, False),
        "depth": Choice(2),
    },
    legal=lambda arch: not (arch["width"] == 64 and arch["bias"] is True),
)


def refused(*texts: str) -> tuple[str, str]:
    with pytest.raises(BadProposal) as caught:
        read(SMALL, texts)
    assert "\n" not in str(caught.value)
    return caught.value.reason, str(caught.value)


def test_the_prompt_shows_every_choice_option_and_condition() -> None:
    assert describe(SMALL).splitlines() == [
        '"width": one of 16, 32, 64',
        '"mixer": one of "conv", "pool"',
        '"kernel": one of 3, 5; only if "mixer" is "conv" and "width" is one of 32, 64',
        '"bias": one of true, false',
        '"depth": 2',
        "Some combinations are refused by a rule; the message then says which.",
    ]
    told = describe(CELL)
    for name, choice in CELL.choices.items():
        assert name in told and all(json.dumps(option) in told for option in choice.options)


def test_every_arch_that_is_shown_is_read_back() -> None:
    rng = random.Random(0)
    for space in (SMALL, CELL):
        for _ in range(20):
            arch = space.sample(rng)
            assert read(space, [f"I choose {shown(arch)}, because {{it}} is good."]) == arch


def test_the_last_object_counts() -> None:
    first = '{"width": 16, "mixer": "pool", "bias": true, "depth": 2}'
    last = '{"width": 32, "mixer": "pool", "bias": true, "depth": 2}'
    assert read(SMALL, [first + " no: " + last])["width"] == 32
    assert read(SMALL, [first, last])["width"] == 32
    assert read(SMALL, [last, "no object {here}"])["width"] == 32


@pytest.mark.parametrize(
    ("text", "reason", "said"),
    [
        ("a wide one", "no-genome", "JSON object"),
        ("{width: 16}", "no-genome", "JSON object"),
        ("[16, 32]", "no-genome", "JSON object"),
        ("{}", "bad-genome", "'width' is missing"),
        ('{"width": 17}', "bad-genome", "width=17"),
        ('{"width": "16", "mixer": "pool", "bias": true, "depth": 2}', "bad-genome", "width='16'"),
        ('{"width": 16, "mixer": "pool", "bias": 1, "depth": 2}', "bad-genome", "bias=1"),
        ('{"width": 16, "mixer": "pool", "bias": true, "depth": 2, "head": 1}', "bad-genome", "'head'"),
        ('{"width": 16, "mixer": "conv", "kernel": 3, "bias": true, "depth": 2}', "bad-genome", "'kernel'"),
        ('{"width": 64, "mixer": "pool", "bias": true, "depth": 2}', "bad-genome", "rule"),
        ('{"width": 16, "width": 32, "mixer": "pool", "bias": true, "depth": 2}', "bad-genome", "twice"),
        ('{"width": NaN, "mixer": "pool", "bias": true, "depth": 2}', "bad-genome", "NaN"),
        ('{"width": [16], "mixer": {"a": 1}, "bias": null, "depth": 2}', "bad-genome", "width=[16]"),
        ('{"width": ' + "9" * 5000 + "}", "bad-genome", ""),
        ('{"a":' * 5000, "no-genome", ""),
    ],
)
def test_what_is_no_arch_is_refused_in_the_words_of_the_space(text: str, reason: str, said: str) -> None:
    why, message = refused(text)
    assert why == reason and said in message


@given(st.lists(st.text(st.sampled_from('{}[]":, \nwidthNaN1.e-') | st.characters()), max_size=3))
def test_no_text_raises_anything_else(texts: list[str]) -> None:
    reason = ""
    try:
        read(SMALL, texts)
    except BadProposal as error:
        reason = error.reason
    assert reason in ("no-genome", "bad-genome")


@given(
    st.dictionaries(st.sampled_from([*SMALL.choices, "other"]), st.sampled_from([16, 32, 64, 2, 3, "conv", True, None]))
)
def test_read_agrees_with_the_space(values: dict[str, object]) -> None:
    accepted = True
    try:
        assert read(SMALL, [json.dumps(values)]) == SMALL.arch(values)
    except BadProposal:
        accepted = False
    assert accepted == SMALL.contains(values)
