"""Members as values: which are legal, what network each is, which lie inside which."""

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from befit.arch.decoder import Attention, Block, DecoderArch, DecoderShape, Ffn, Mamba, MambaShape, NoOp
from befit.arch.member import Member, check, cut_shape, nested, whole
from befit.errors import IllegalArch

HYBRID = DecoderShape(
    family="nemotron_h",
    vocab=64,
    hidden=16,
    heads=6,
    head_dim=4,
    tied=False,
    gated=False,
    mamba=MambaShape(head_dim=4, groups=2, state=8),
    arch=DecoderArch(
        blocks=(
            Block(attention=Mamba(heads=8), ffn=NoOp()),
            Block(attention=NoOp(), ffn=Ffn(width=24)),
            Block(attention=Attention(kv_heads=2), ffn=NoOp()),
            Block(attention=NoOp(), ffn=Ffn(width=24)),
        )
    ),
)
DENSE = DecoderShape(
    family="mistral",
    vocab=64,
    hidden=16,
    heads=4,
    head_dim=4,
    tied=True,
    arch=DecoderArch(blocks=(Block(attention=Attention(kv_heads=2, window=5), ffn=Ffn(width=24)),) * 3),
)
WHOLE = whole(HYBRID)


def members_of(shape: DecoderShape) -> st.SearchStrategy[Member]:
    most = whole(shape)

    def some(width: int) -> st.SearchStrategy[int]:
        return st.integers(1, width) if width else st.just(0)

    layers = st.sets(st.sampled_from(most.layers), min_size=1).map(lambda kept: tuple(sorted(kept)))
    groups = shape.mamba.groups if shape.mamba else 1

    def with_layers(kept: tuple[int, ...]) -> st.SearchStrategy[Member]:
        return st.builds(
            Member,
            hidden=some(most.hidden),
            ffn=st.one_of(some(most.widest_ffn), st.tuples(*(some(most.widest_ffn) for _ in kept))),
            kv_heads=some(most.kv_heads),
            heads_per_kv=some(most.heads_per_kv),
            mamba_heads=some(most.mamba_heads // groups).map(lambda n: n * groups),
            mamba_head_dim=some(most.mamba_head_dim),
            state=some(most.state),
            layers=st.just(kept),
        )

    return layers.flatmap(with_layers)


any_member = st.one_of(members_of(HYBRID), members_of(DENSE))


def test_the_whole_is_the_parent() -> None:
    assert (
        Member(
            hidden=16,
            ffn=24,
            kv_heads=2,
            heads_per_kv=3,
            mamba_heads=8,
            mamba_head_dim=4,
            state=8,
            layers=(0, 1, 2, 3),
        )
        == WHOLE
    )
    assert cut_shape(HYBRID, WHOLE) == HYBRID
    assert cut_shape(DENSE, whole(DENSE)) == DENSE
    assert (whole(DENSE).mamba_heads, whole(DENSE).mamba_head_dim, whole(DENSE).state) == (0, 0, 0)
    assert WHOLE.depth == 4 and WHOLE.ffn_of(1) == WHOLE.widest_ffn == 24


def test_a_member_is_this_network() -> None:
    member = Member(
        hidden=10,
        ffn=(1, 7, 1, 9),
        kv_heads=1,
        heads_per_kv=2,
        mamba_heads=4,
        mamba_head_dim=3,
        state=5,
        layers=(0, 1, 2, 3),
    )
    own = cut_shape(HYBRID, member)
    assert (own.hidden, own.heads, own.head_dim, own.vocab) == (10, 2, 4, 64)
    assert own.mamba == MambaShape(head_dim=3, groups=2, state=5)
    assert [block.name for block in own.arch.blocks] == ["mamba4+noop", "noop+ffn7", "kv1+noop", "noop+ffn9"]
    assert member.widest_ffn == 9 and member.ffn_of(3) == 9
    shallow = cut_shape(HYBRID, replace(member, layers=(1, 3), ffn=(7, 9)))
    assert [block.name for block in shallow.arch.blocks] == ["noop+ffn7", "noop+ffn9"]
    windowed = cut_shape(DENSE, replace(whole(DENSE), kv_heads=1, layers=(2,)))
    assert windowed.arch.blocks == (Block(attention=Attention(kv_heads=1, window=5), ffn=Ffn(width=24)),)


@given(member=members_of(HYBRID))
def test_the_whole_of_a_member_s_network_is_the_member(member: Member) -> None:
    if isinstance(member.ffn, int):
        own = whole(cut_shape(HYBRID, member))
        kept = [HYBRID.arch.blocks[layer] for layer in member.layers]
        assert own.hidden == member.hidden and own.depth == member.depth
        assert own.kv_heads == (member.kv_heads if any(isinstance(b.attention, Attention) for b in kept) else 0)
        assert own.mamba_heads == (member.mamba_heads if any(isinstance(b.attention, Mamba) for b in kept) else 0)
        assert own.widest_ffn == (member.ffn if any(isinstance(b.ffn, Ffn) for b in kept) else 0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"hidden": 0}, "hidden = 0: the axis admits whole numbers from 1 to the parent's 16"),
        ({"hidden": 17}, "hidden = 17"),
        ({"hidden": 8.0}, "hidden = 8.0"),
        ({"hidden": True}, "hidden = True"),
        ({"ffn": 25}, "ffn = 25"),
        ({"ffn": (1, 25, 1, 1)}, "ffn = "),
        ({"ffn": (8, 8)}, "2 FFN widths were given for 4 layers"),
        ({"kv_heads": 3}, "kv_heads = 3"),
        ({"heads_per_kv": 4}, "heads_per_kv = 4"),
        ({"mamba_heads": 10}, "mamba_heads = 10"),
        ({"mamba_heads": 3}, "3 Mamba heads cannot share 2 SSM groups evenly; give a multiple of 2"),
        ({"mamba_head_dim": 5}, "mamba_head_dim = 5"),
        ({"state": 9}, "state = 9"),
        ({"layers": ()}, "at least one; got"),
        ({"layers": (1, 0)}, "ascending"),
        ({"layers": (1, 1)}, "ascending"),
        ({"layers": (-1, 2)}, "the parent has 0 to 3"),
        ({"layers": (2, 4)}, "the parent has 0 to 3"),
    ],
    ids=str,
)
def test_each_illegal_member_is_refused_with_its_reason(change: dict[str, Any], message: str) -> None:
    wrong = replace(WHOLE, **change)
    with pytest.raises(IllegalArch, match=message.replace("(", r"\(")):
        check(HYBRID, wrong)
    with pytest.raises(IllegalArch):
        cut_shape(HYBRID, wrong)


def test_an_axis_that_the_parent_lacks_must_be_zero() -> None:
    with pytest.raises(IllegalArch, match="state = 4: the axis admits only 0: the parent has no such axis"):
        check(DENSE, replace(whole(DENSE), state=4))


def test_a_parent_of_unequal_layers_is_refused() -> None:
    narrow = Block(attention=Attention(kv_heads=1), ffn=Ffn(width=24))
    uneven = replace(DENSE, arch=DecoderArch(blocks=(*DENSE.arch.blocks, narrow)))
    with pytest.raises(IllegalArch, match=r"its layers have \[1, 2\] KV heads"):
        whole(uneven)


@given(member=any_member)
def test_json_round_trip(member: Member) -> None:
    assert Member.from_json(member.to_json()) == member


@pytest.mark.parametrize("change", [{"experts": 4}, {"hidden": None}])
def test_json_with_another_key_is_refused(change: dict[str, Any]) -> None:
    told = WHOLE.to_json() | change
    if None in change.values():
        del told["hidden"]
    with pytest.raises(IllegalArch, match="expected exactly"):
        Member.from_json(told)


@given(small=members_of(HYBRID), large=members_of(HYBRID))
def test_nested_means_every_width_and_every_layer(small: Member, large: Member) -> None:
    assert nested(small, WHOLE) and nested(small, small)
    widths = ("hidden", "kv_heads", "heads_per_kv", "mamba_heads", "mamba_head_dim", "state")
    inside = all(vars(small)[axis] <= vars(large)[axis] for axis in widths)
    inside &= all(layer in large.layers and small.ffn_of(layer) <= large.ffn_of(layer) for layer in small.layers)
    assert nested(small, large) == inside


@pytest.mark.parametrize(
    "axis", ["hidden", "ffn", "kv_heads", "heads_per_kv", "mamba_heads", "mamba_head_dim", "state"]
)
def test_one_wider_axis_ends_nesting(axis: str) -> None:
    small = replace(WHOLE, **{axis: 2 if axis == "mamba_heads" else 1})
    assert nested(small, WHOLE) and not nested(WHOLE, small)
