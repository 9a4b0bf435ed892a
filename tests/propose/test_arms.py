"""Arms: ranges, combinations, alternatives; types as the settings have them."""

import pytest

from befit.errors import BadData
from befit.propose.arms import arms_of
from befit.propose.config import ProposeConfig


def names(text: str) -> list[str]:
    return [arm.name for arm in arms_of(ProposeConfig(arms=text))]


def test_one_arm_without_a_name_where_nothing_is_compared() -> None:
    [arm] = arms_of(ProposeConfig())
    assert arm.name == "" and arm.config == ProposeConfig()


def test_ranges_lists_products_and_alternatives() -> None:
    assert names("shots=0..3") == ["shots=0", "shots=1", "shots=2", "shots=3"]
    assert names("form=network,search-replace") == ["form=network", "form=search-replace"]
    both = ["form=network, shots=1", "form=network, shots=3", "form=unified, shots=1", "form=unified, shots=3"]
    assert names("form=network,unified; shots=1,3") == names("form=network, unified, shots=1, 3") == both
    assert names("llm=grammar | llm=learn, temperature=1") == ["llm=grammar", "llm=learn, temperature=1"]


def test_settings_have_their_types() -> None:
    [arm] = arms_of(ProposeConfig(arms="llm=http://a/v1, model=7b, temperature=1, chain-of-thought=True, shots=2"))
    told = arm.config
    assert (told.llm, told.model, told.temperature, told.shots) == ("http://a/v1", "7b", 1.0, 2)
    assert told.chain_of_thought is True and type(told.temperature) is float


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("0..6", "expected name=values, such as shots=0..6; got '0..6'"),
        ("shots=0..9", "shots must be 0 .. 6"),
        ("shots=two", "shots must be a whole number, got 'two'"),
        ("shots=true", "shots must be a whole number, got 'true'"),
        ("chain_of_thought=1", "must be true or false"),
        ("temperature=warm", "must be a number"),
        ("budget=1M", "'budget' cannot be compared; arms may set llm, model, shots"),
        ("shots=1 | shots=1", "'shots=1' is there twice"),
        ("shots=1; shots=2", "shots is set twice"),
        ("shots=0..6; notes=0..9", "makes 70 arms, at most 64"),
        ("shots=1 |", "expected name=values"),
    ],
)
def test_what_cannot_be_read_is_said(text: str, message: str) -> None:
    with pytest.raises(BadData, match=message):
        arms_of(ProposeConfig(arms=text))
