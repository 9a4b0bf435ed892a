"""The space of a nested model: every choice is legal, widths are what was asked for, JSON is strict."""

import random
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.elastic.shapes import DENSE, HYBRID, WITHOUT_FFN, hybrid

from befit.arch.decoder import DecoderShape
from befit.arch.member import WIDTHS, check, cut_shape, nested, whole
from befit.elastic.space import NestedSpace, default_space
from befit.errors import IllegalArch


def space_of(shape: DecoderShape, *, ffn_per_layer: bool = False) -> NestedSpace:
    removal = list(range(1, shape.layers))
    random.Random(1).shuffle(removal)
    return default_space(shape, tuple(removal), ffn_per_layer=ffn_per_layer)


def choices(space: NestedSpace) -> st.SearchStrategy[dict[str, int]]:
    return st.fixed_dictionaries({axis: st.integers(0, len(options) - 1) for axis, options in space.axes.items()})


SPACES = [space_of(HYBRID), space_of(DENSE), space_of(WITHOUT_FFN), space_of(HYBRID, ffn_per_layer=True)]


@given(st.data(), st.sampled_from(SPACES))
def test_every_choice_is_a_legal_member_between_the_smallest_and_the_parent(
    data: st.DataObject, space: NestedSpace
) -> None:
    choice = data.draw(choices(space))
    member = space.member(choice)
    check(space.shape, member)
    cut = cut_shape(space.shape, member)
    assert cut.hidden == member.hidden and cut.layers == member.depth
    assert nested(member, space.whole) and nested(space.smallest, member)
    for axis, index in choice.items():
        layer = int(axis.removeprefix("ffn.")) if axis.startswith("ffn.") else None
        if layer is None:
            assert getattr(member, axis) == space.axes[axis][index]
        elif layer in member.layers:
            assert member.ffn_of(layer) == space.axes[axis][index]


@given(st.data(), st.sampled_from(SPACES))
def test_narrower_choices_are_nested_in_wider_ones(data: st.DataObject, space: NestedSpace) -> None:
    wide = data.draw(choices(space))
    narrow = {axis: data.draw(st.integers(index, len(space.axes[axis]) - 1)) for axis, index in wide.items()}
    assert nested(space.member(narrow), space.member(wide))


@pytest.mark.parametrize("space", SPACES)
def test_the_choice_of_nothing_is_the_parent(space: NestedSpace) -> None:
    assert space.member({}) == space.whole == whole(space.shape)


def test_layers_go_in_the_order_given() -> None:
    space = replace(space_of(HYBRID), removal=(3, 0, 11), depth=(12, 11, 9))
    assert space.kept(11) == (0, 1, 2, 4, 5, 6, 7, 8, 9, 10, 11)
    assert space.member({"depth": 2}).layers == (1, 2, 4, 5, 6, 7, 8, 9, 10)


def test_axes_are_those_with_a_choice() -> None:
    assert set(space_of(HYBRID).axes) == {*WIDTHS, "depth"}
    assert set(space_of(WITHOUT_FFN).axes) == {*WIDTHS, "depth"} - {"ffn"}
    assert set(space_of(DENSE).axes) == {"hidden", "ffn", "kv_heads", "heads_per_kv", "depth"}
    layers = [f"ffn.{i}" for i in (1, 4, 6, 8, 11)]
    assert [axis for axis in space_of(HYBRID, ffn_per_layer=True).axes if axis.startswith("ffn")] == layers
    assert not default_space(HYBRID, (), least=1.0).axes


@given(st.integers(1, 300).map(lambda n: n * 4), st.integers(8, 5000), st.sampled_from([1, 2, 4, 8]), st.floats(0.2, 1))
def test_default_widths_are_aligned_and_reach_the_least_share(hidden: int, ffn: int, groups: int, least: float) -> None:
    space = default_space(hybrid("M-*", hidden=hidden, ffn=ffn, groups=groups), (0, 1, 2), least=least)
    assert all(heads % groups == 0 for heads in space.mamba_heads)
    for axis, step in (("hidden", 64 if hidden >= 1024 else 8), ("ffn", 128 if hidden >= 1024 else 8)):
        options = getattr(space, axis)
        assert len(options) <= 9 and options[-1] >= least * options[0]
        if options[0] >= 4 * step:
            assert all(width % step == 0 for width in options[1:])
            assert options[-1] < least * options[0] + step
    assert space.depth[-1] == max(1, round(3 * least))


def test_ffn_widths_that_agree_are_one_number() -> None:
    space = space_of(HYBRID, ffn_per_layer=True)
    same = space.member({axis: 2 for axis in space.axes if axis.startswith("ffn.")})
    assert same.ffn == space.ffn[2]
    other = space.member({"ffn.1": 3})
    assert other.ffn == tuple(space.ffn[3] if layer == 1 else space.ffn[0] for layer in range(12))


@pytest.mark.parametrize("space", SPACES)
def test_json_is_inverse_and_strict(space: NestedSpace) -> None:
    told = space.to_json()
    assert NestedSpace.from_json(told, space.shape) == space
    for wrong in (
        {**told, "extra": 1},
        {k: v for k, v in told.items() if k != "depth"},
        {**told, "hidden": "160"},
        {**told, "hidden": [160.0]},
        {**told, "ffn_per_layer": 1},
        {**told, "hidden": [80]},
    ):
        with pytest.raises(IllegalArch):
            NestedSpace.from_json(wrong, space.shape)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"hidden": (80, 160)}, "first the parent's 160"),
        ({"hidden": ()}, "first the parent's 160"),
        ({"ffn": (480, 240, 240)}, "descending"),
        ({"mamba_heads": (12, 7)}, "multiple of 2"),
        ({"state": (16, 0)}, "whole numbers from 1"),
        ({"removal": (1, 1, 2)}, "once"),
        ({"removal": (12,)}, "0 to 11"),
        ({"removal": (1,), "depth": (12, 10)}, "1 of 12 layers may go"),
        ({"removal": tuple(range(12)), "depth": (12, 0)}, "one must stay"),
    ],
)
def test_illegal_spaces_are_refused(change: dict[str, tuple[int, ...]], message: str) -> None:
    with pytest.raises(IllegalArch, match=message):
        replace(space_of(HYBRID), **change)


def test_unknown_choices_are_refused() -> None:
    for choice in ({"width": 0}, {"hidden": 99}, {"hidden": -1}):
        with pytest.raises(IllegalArch, match="hidden"):
            space_of(HYBRID).member(choice)
    with pytest.raises(IllegalArch, match="least share"):
        default_space(HYBRID, (), least=0.0)
