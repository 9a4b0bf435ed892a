"""Spaces: counted, enumerated, mutated and crossed as brute force does it over all assignments."""

import itertools
import json
import random
from collections import Counter
from collections.abc import Mapping
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from befit.arch.space import Arch, Choice, Space
from befit.errors import IllegalArch

SIMPLE = Space({"width": Choice(16, 32, 64), "act": Choice("relu", "silu")})
NESTED = Space(
    {
        "mixer": Choice("conv", "pool"),
        "kernel": Choice(3, 5, when={"mixer": "conv"}),
        "dilated": Choice(True, False, when={"kernel": 5}),
        "width": Choice(1, 2, 3),
    }
)
RULED = Space({"a": Choice(0, 1, 2), "b": Choice(0, 1, 2)}, legal=lambda arch: arch["a"] != arch["b"])
SPACES = {"simple": SIMPLE, "nested": NESTED, "ruled": RULED}


def brute(space: Space) -> set[Arch]:
    """Every combination of options or absence, kept if the conditions and the rule hold: no code of the space's own."""
    gone, found = object(), set[Arch]()
    for values in itertools.product(*[(*choice.options, gone) for choice in space.choices.values()]):
        told: dict[str, Any] = {
            name: value for name, value in zip(space.choices, values, strict=True) if value is not gone
        }
        right = all(
            (name in told) == all(other in told and told[other] in allowed for other, allowed in choice.when.items())
            for name, choice in space.choices.items()
        )
        arch = Arch(tuple(told.items()))
        if right and (space.legal is None or space.legal(arch)):
            found.add(arch)
    return found


@st.composite
def spaces(draw: st.DrawFn) -> Space:
    """Up to five choices, some under conditions on earlier ones, some with a rule."""
    choices = dict[str, Choice]()
    for place in range(draw(st.integers(1, 5))):
        options = draw(st.lists(st.integers(0, 9), min_size=1, max_size=3, unique=True))
        when = dict[str, tuple[Any, ...]]()
        if choices and draw(st.booleans()):
            other = draw(st.sampled_from(list(choices)))
            when[other] = tuple(draw(st.sets(st.sampled_from(choices[other].options), min_size=1)))
        choices[f"c{place}"] = Choice(*options, when=when)
    rule = (lambda arch: sum(map(hash, arch.values())) % 3 > 0) if draw(st.booleans()) else None
    return Space(choices, legal=rule)


@settings(deadline=None, max_examples=60)
@given(spaces(), st.integers(0, 9))
def test_any_space_agrees_with_brute_force(space: Space, seed: int) -> None:
    truth, rng = brute(space), random.Random(seed)
    listed = list(space.enumerate())
    assert len(listed) == len(set(listed)) == space.size == len(truth) and set(listed) == truth
    if not truth:
        return
    first, second = space.sample(rng), space.sample(rng)
    assert {first, second, space.mutate(first, rng)} <= truth
    for other in space.neighbours(first):
        assert other in truth and other != first
    assert space.cross(first, second, rng) in truth
    assert len(space.encode(first)) == sum(len(choice.options) for choice in space.choices.values())
    assert len({space.encode(arch) for arch in truth}) == len(truth)


@pytest.mark.parametrize("space", SPACES.values(), ids=SPACES)
def test_samples_reach_every_arch(space: Space) -> None:
    rng = random.Random(0)
    assert {space.sample(rng) for _ in range(40 * space.size)} == brute(space)


def test_samples_are_uniform_without_conditions() -> None:
    rng = random.Random(1)
    counts = Counter(SIMPLE.sample(rng) for _ in range(6000))
    chi = sum((count - 1000) ** 2 / 1000 for count in counts.values())
    assert len(counts) == 6 and chi < 20.5  # 5 degrees of freedom, alpha 0.001


def test_neighbours_differ_in_one_choice_and_are_complete() -> None:
    for arch in SIMPLE.enumerate():
        wanted = {other for other in brute(SIMPLE) if sum(arch[name] != other[name] for name in arch) == 1}
        assert set(SIMPLE.neighbours(arch)) == wanted


def test_a_mutation_changes_one_choice_and_draws_what_it_opens() -> None:
    rng, pool = random.Random(0), NESTED.arch({"mixer": "pool", "width": 2})
    seen = {NESTED.mutate(pool, rng) for _ in range(200)}
    assert seen == {
        *(NESTED.arch({"mixer": "pool", "width": width}) for width in (1, 3)),
        *(
            NESTED.arch({"mixer": "conv", "kernel": kernel, **more, "width": 2})
            for kernel, more in ((3, {}), (5, {"dilated": True}), (5, {"dilated": False}))
        ),
    }


def test_crossing_takes_from_both_parents_only() -> None:
    rng = random.Random(0)
    first, second = SIMPLE.arch({"width": 16, "act": "relu"}), SIMPLE.arch({"width": 64, "act": "silu"})
    assert {tuple(SIMPLE.cross(first, second, rng).values()) for _ in range(100)} == {
        (16, "relu"),
        (16, "silu"),
        (64, "relu"),
        (64, "silu"),
    }


def test_an_arch_is_a_hashable_mapping_with_a_strict_json_form() -> None:
    arch = NESTED.arch({"width": 3, "kernel": 5, "dilated": True, "mixer": "conv"})  # any order in, the space's out
    assert list(arch) == ["mixer", "kernel", "dilated", "width"] and len(arch) == 4 and arch["kernel"] == 5
    again = NESTED.arch(json.loads(json.dumps(arch.to_json())))
    assert again == arch and hash(again) == hash(arch) and repr(arch).startswith("Arch({'mixer'")
    with pytest.raises(KeyError):
        arch["depth"]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"mixer": "pool"}, r"choice 'width' is missing; expected one of \[1, 2, 3\]"),
        ({"mixer": "pool", "width": 4}, r"width=4 is no option"),
        ({"mixer": "pool", "width": True}, r"width=True is no option"),
        ({"mixer": "pool", "width": 1, "kernel": 3}, r"'kernel' given, but no choice of that name is open here"),
        ({"mixer": "pool", "width": 1, "depth": 3}, r"'depth' given"),
    ],
)
def test_wrong_archs_are_refused(values: Mapping[str, Any], message: str) -> None:
    with pytest.raises(IllegalArch, match=message):
        NESTED.arch(values)
    assert not NESTED.contains(values)


def test_the_rule_refuses() -> None:
    assert RULED.contains({"a": 0, "b": 1}) and not RULED.contains({"a": 1, "b": 1})
    with pytest.raises(IllegalArch, match="the space's rule refuses"):
        RULED.arch({"a": 1, "b": 1})
    nothing = Space({"a": Choice(0)}, legal=lambda arch: False)
    with pytest.raises(IllegalArch, match="refused 10,000 draws in a row"):
        nothing.sample(random.Random(0))
    assert nothing.size == 0


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (Choice, "distinct options, at least one"),
        (lambda: Choice(1, 1), "distinct options"),
        (lambda: Choice([3]), "name it, and look the name up"),  # pyright: ignore[reportArgumentType]
        (lambda: Space({}), "at least one choice"),
        (lambda: Space({"a": Choice(1, when={"b": 2}), "b": Choice(2)}), "names 'b', which is no earlier choice"),
        (lambda: Space({"b": Choice(2), "a": Choice(1, when={"b": 3})}), "wants b=3, no option there"),
    ],
)
def test_wrong_spaces_are_refused(make: Any, message: str) -> None:
    with pytest.raises(IllegalArch, match=message):
        make()


def test_true_is_not_one_but_numbers_from_json_are_themselves() -> None:
    space = Space({"x": Choice(1, True, 2.0)})
    assert space.size == 3
    assert type(space.arch({"x": 2})["x"]) is float and space.arch({"x": True})["x"] is True


def test_size_of_a_large_conditional_space_is_counted_without_listing() -> None:
    layers = {f"kind{i}": Choice("a", "b", "c") for i in range(20)}
    kernels = {f"kernel{i}": Choice(3, 5, when={f"kind{i}": "a"}) for i in range(20)}
    pairs = [item for pair in zip(layers.items(), kernels.items(), strict=True) for item in pair]
    assert Space(dict(pairs)).size == 4**20
    assert Space({f"c{i}": Choice(*range(7)) for i in range(30)}).size == 7**30


def test_keys_and_features_are_what_was_given() -> None:
    arch = SIMPLE.sample(random.Random(0))
    assert SIMPLE.key(arch) == arch
    keyed = Space(SIMPLE.choices, same=lambda arch: arch["width"])
    assert {keyed.key(arch) for arch in keyed.enumerate()} == {16, 32, 64}
