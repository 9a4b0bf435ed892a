"""The slicing recipe, against index lists, against the tensors of transformers' classes, and against itself."""

import itertools
from random import Random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import members
import tiny
from befit.arch.member import WIDTHS, Member, cut_shape, nested, whole
from befit.errors import IllegalArch
from befit.lm.families import FAMILIES
from befit.lm.prefix import Dimension, Segment, dimension, layout, plan, prefix, ranges, take

randoms = st.randoms(use_true_random=False)

sizes = st.lists(st.integers(1, 4), min_size=1, max_size=3).flatmap(
    lambda shape: st.tuples(*(st.tuples(st.just(n), st.integers(1, n)) for n in shape))
)
segments = sizes.map(lambda pairs: Segment(shape=tuple(n for n, _ in pairs), keep=tuple(k for _, k in pairs)))
dimensions = st.lists(segments, min_size=1, max_size=4).map(tuple)


def kept(parts: Dimension) -> list[int]:
    """The places that a dimension keeps, counted out one by one."""
    found, place = list[int](), 0
    for segment in parts:
        for where in itertools.product(*(range(n) for n in segment.shape)):
            if all(at < most for at, most in zip(where, segment.keep, strict=True)):
                found.append(place)
            place += 1
    return found


@settings(max_examples=200)
@given(parts=dimensions)
def test_ranges_are_the_kept_places_joined(parts: Dimension) -> None:
    stretches = list(ranges(parts))
    assert [place for start, stop in stretches for place in range(start, stop)] == kept(parts)
    # Neighbours are joined: a reader of a file asks as few times as possible.
    assert all(stop < start for (_, stop), (start, _) in itertools.pairwise(stretches))


@settings(max_examples=100)
@given(first=dimensions, second=dimensions)
def test_taking_is_picking_by_index(first: Dimension, second: Dimension) -> None:
    height, width = (sum(segment.size for segment in parts) for parts in (first, second))
    tensor = torch.arange(height * width).view(height, width)
    taken = take(tensor, (first, second))
    assert taken.equal(tensor[kept(first)][:, kept(second)])
    if is_view(first) and is_view(second):
        assert shares(taken, tensor)


def is_view(parts: Dimension) -> bool:
    """Whether what is kept is all there is, or one stretch of a single segment."""
    return all(segment.all for segment in parts) or (len(parts) == 1 and len(list(ranges(parts))) == 1)


@settings(max_examples=60)
@given(draw=randoms)
def test_names_and_shapes_are_those_of_the_class(draw: Random) -> None:
    config = members.any_config(draw)
    parent = members.parent_of(config)
    shape, family = parent.net.shape, parent.net.family
    everything = plan(shape, family, whole(shape))
    assert set(layout(shape, family)) == set(parent.weights)
    assert {name for name, _ in everything.values()} == set(everything)
    for name, weight in parent.weights.items():
        parts = everything[name][1]
        assert tuple(sum(segment.size for segment in own) for own in parts) == weight.shape, name
        assert take(weight, parts) is weight


@settings(max_examples=60)
@given(draw=randoms)
def test_a_member_s_weights_are_those_picked_by_index_and_fit_its_class(draw: Random) -> None:
    config = members.any_config(draw)
    parent = members.parent_of(config)
    member = members.member_of(draw, parent.net.shape)
    found = prefix(parent.weights, parent.net.shape, parent.net.family, member)
    wanted = members.by_index(config, member, parent.weights)
    assert set(found) == set(wanted)
    assert all(found[name].equal(weight) for name, weight in wanted.items())
    state = members.plain(config, member, found).state_dict()
    own = layout(cut_shape(parent.net.shape, member), parent.net.family)
    assert set(own) | {"lm_head.weight"} == set(state) | {"lm_head.weight"}


@settings(max_examples=60)
@given(draw=randoms)
def test_a_smaller_member_is_a_prefix_of_a_larger_one(draw: Random) -> None:
    config = members.any_config(draw)
    parent = members.parent_of(config)
    shape, family = parent.net.shape, parent.net.family
    large = members.member_of(draw, shape)
    inside = members.member_of(draw, cut_shape(shape, large))
    # An axis of which `large` keeps no layer has any width.
    widths = {axis: getattr(inside, axis) or getattr(large, axis) for axis in WIDTHS}
    small = Member(**widths, layers=tuple(large.layers[layer] for layer in inside.layers))
    assert nested(small, large)
    wide = prefix(parent.weights, shape, family, large)
    narrow = prefix(parent.weights, shape, family, small)
    again = prefix(wide, cut_shape(shape, large), family, inside)
    assert list(again) == list(narrow)
    assert all(again[name].equal(weight) for name, weight in narrow.items())


def test_views_share_the_parent_s_storage_and_only_interleaved_rows_are_copied() -> None:
    config = members.hybrid_config(
        Random(0),
        layers_block_type=["linear_attention", "mlp", "full_attention"],
        hidden_size=16,
        intermediate_size=24,
        n_groups=2,
        mamba_num_heads=8,
        mamba_head_dim=4,
        num_attention_heads=4,
        num_key_value_heads=2,
    )
    parent = members.parent_of(config)
    shape, most = parent.net.shape, whole(parent.net.shape)
    half = Member.from_json(most.to_json() | {"hidden": 8, "ffn": 12, "kv_heads": 1, "mamba_heads": 4})
    found = prefix(parent.weights, shape, parent.net.family, half)
    copied = {name for name, weight in found.items() if all(not shares(weight, own) for own in parent.weights.values())}
    interleaved = ("in_proj.weight", "conv1d.weight", "mixer.norm.weight", "A_log", "D", "dt_bias", "out_proj.weight")
    assert copied == {
        name
        for name in found
        if name.startswith("model.layers.0.")
        and (name.endswith(interleaved) or (name.endswith(("in_proj.bias", "conv1d.bias"))))
    }
    with torch.no_grad():
        parent.weights["model.layers.1.mixer.up_proj.weight"].fill_(7.0)
    assert found["model.layers.1.mixer.up_proj.weight"].eq(7.0).all()


def shares(one: torch.Tensor, other: torch.Tensor) -> bool:
    return one.untyped_storage().data_ptr() == other.untyped_storage().data_ptr()


def test_heads_are_kept_in_every_ssm_group() -> None:
    """Nemotron-H 8B's sizes: 128 heads in 8 groups, cut to 96, keep 12 of the 16 heads of each group, not the first 96."""
    kinds = ["linear_attention", "full_attention"]
    config = members.hybrid_config(Random(0), layers_block_type=kinds, n_groups=8, mamba_num_heads=128)
    shape = FAMILIES["nemotron_h"].describe(config)
    member = Member.from_json(whole(shape).to_json() | {"mamba_heads": 96})
    stretches = list(ranges(dimension("mamba_heads", shape, member, 0)))
    assert stretches == [(16 * group, 16 * group + 12) for group in range(8)]


def test_layers_are_numbered_anew() -> None:
    config = tiny.config("llama", 5)
    family = FAMILIES["llama"]
    shape = family.describe(config)
    member = Member.from_json(whole(shape).to_json() | {"layers": [1, 4]})
    found = plan(shape, family, member)
    assert found["model.layers.0.mlp.up_proj.weight"][0] == "model.layers.1.mlp.up_proj.weight"
    assert found["model.layers.1.mlp.up_proj.weight"][0] == "model.layers.4.mlp.up_proj.weight"
    assert not any(name.startswith("model.layers.2.") for name in found)


def test_ffn_widths_of_each_layer_are_cut_where_they_belong() -> None:
    parent = members.parent_of(tiny.config("qwen2", 3))
    shape = parent.net.shape
    member = Member.from_json(whole(shape).to_json() | {"layers": [0, 2], "ffn": [5, 48]})
    found = prefix(parent.weights, shape, parent.net.family, member)
    assert found["model.layers.0.mlp.up_proj.weight"].shape == (5, 32)
    assert found["model.layers.1.mlp.down_proj.weight"].shape == (32, 48)


def test_what_is_not_there_is_refused() -> None:
    family = FAMILIES["llama"]
    shape = family.describe(tiny.config("llama"))
    with pytest.raises(IllegalArch, match="no axis 'experts'"):
        dimension("experts", shape, whole(shape), 0)
    with pytest.raises(IllegalArch, match="no Mamba-2 mixer"):
        dimension("inner", shape, whole(shape), 0)
    with pytest.raises(IllegalArch, match="hidden = 33"):
        plan(shape, family, Member.from_json(whole(shape).to_json() | {"hidden": 33}))
