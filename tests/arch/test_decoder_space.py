"""The space against the rules written a second time, and against counting everything."""

import random
from collections import Counter
from itertools import product
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from befit.arch.decoder import (
    Attention,
    Block,
    DecoderArch,
    DecoderShape,
    Ffn,
    Linear,
    Mamba,
    MambaShape,
    NoOp,
    Variant,
)
from befit.arch.decoder_space import ATTENTION, FFN, TARGETS, DecoderSpace
from befit.errors import IllegalArch


def shape(layers: int = 2, kv_heads: int = 4, width: int = 128, hidden: int = 64, windows: Any = ()) -> DecoderShape:
    blocks = tuple(
        Block(attention=Attention(kv_heads=kv_heads, window=dict(enumerate(windows)).get(i)), ffn=Ffn(width=width))
        for i in range(layers)
    )
    arch = DecoderArch(blocks=blocks)
    return DecoderShape(family="llama", vocab=64, hidden=hidden, heads=8, head_dim=8, tied=True, arch=arch)


def may_run(target: str, layer: int, own: Block, block: Block) -> bool:
    """The targets' rules, from what their loaders do with a layer."""
    a, f = block.attention, block.ffn
    linear = isinstance(a, Linear) or isinstance(f, Linear)
    new_window = isinstance(a, Attention) and isinstance(own.attention, Attention) and a.window != own.attention.window
    match target:
        case "hf":
            return True
        case "vllm":
            return not linear and not new_window and not (layer == 0 and isinstance(a, NoOp))
        case _:
            return not linear and not new_window and not (isinstance(f, NoOp) and not isinstance(a, NoOp))


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("windows", [(), (8, None)], ids=["full", "windowed"])
def test_the_space_is_every_legal_combination(target: str, windows: tuple[int | None, ...]) -> None:
    parent = shape(windows=windows, width=512)
    space = DecoderSpace(shape=parent, target=target, attention=("all", "/2", "window=4", "linear", "noop"))
    step = 256 if target == "vllm" else 32
    widths = {Ffn(width=min(512, max(step, round(512 * int(p) / 100 / step) * step))) for p in FFN if p.isdigit()}
    legal: list[set[Block]] = []
    for layer, own in enumerate(parent.arch.blocks):
        assert isinstance(own.attention, Attention)
        kept = own.attention.window
        attentions = {Attention(kv_heads=4, window=w) for w in (kept, 4)}
        attentions |= {Attention(kv_heads=2, window=kept)}
        every = product([*attentions, Linear(), NoOp()], [*widths, Linear(), NoOp()])
        blocks = (Block(attention=a, ffn=f) for a, f in every)
        legal.append({block for block in blocks if may_run(target, layer, own, block)})
        assert set(space.blocks(layer)) == legal[-1]
        assert len(space.blocks(layer)) == len(legal[-1]), "no block twice"
        assert space.blocks(layer)[0] == own
    counted = 0
    for pair in product(*legal):
        some = any(isinstance(block.attention, Attention) for block in pair)
        assert space.contains(DecoderArch(blocks=pair)) == some
        counted += some
    assert space.size == counted


@settings(max_examples=60)
@given(
    st.builds(
        DecoderSpace,
        shape=st.builds(
            shape,
            layers=st.integers(1, 4),
            kv_heads=st.sampled_from([1, 2, 4, 8]),
            width=st.integers(1, 700),
            hidden=st.sampled_from([64, 1024]),
            windows=st.lists(st.sampled_from([None, 8]), max_size=4).map(tuple),
        ),
        target=st.sampled_from(TARGETS),
        attention=st.lists(st.sampled_from([*ATTENTION, "3", "8", "window=5"]), unique=True).map(tuple),
        ffn=st.lists(st.sampled_from(FFN), unique=True).map(tuple),
    ),
    st.integers(0, 10**6),
)
def test_whatever_is_drawn_is_legal(space: DecoderSpace, seed: int) -> None:
    rng = random.Random(seed)
    assert space.contains(space.shape.arch)
    assert space.size >= 1
    for _ in range(5):
        arch = space.sample(rng)
        space.check(arch)
        assert any(isinstance(block.attention, Attention) for block in arch.blocks)
        for layer, (own, block) in enumerate(zip(space.shape.arch.blocks, arch.blocks, strict=True)):
            assert may_run(space.target, layer, own, block) or block == own
            a, f = block.attention, block.ffn
            assert isinstance(own.ffn, Ffn) and isinstance(own.attention, Attention)
            if isinstance(f, Ffn) and f != own.ffn:
                assert f.width % (256 if space.target == "vllm" or space.shape.hidden >= 1024 else 32) == 0
                assert f.width < own.ffn.width
            if isinstance(a, Attention):
                assert own.attention.kv_heads % a.kv_heads == 0
                assert own.attention.window is None or (a.window or 10**9) <= own.attention.window


def test_sampling_is_uniform() -> None:
    """Chi-squared over 12 architectures; 38 is the 99.99 % quantile for 11 degrees of freedom."""
    space = DecoderSpace(shape=shape(), attention=("all", "noop"), ffn=("100", "noop"))
    rng, draws = random.Random(0), 2400
    assert space.size == 12
    counts = Counter(space.sample(rng) for _ in range(draws))
    expected = draws / space.size
    assert len(counts) == space.size
    assert sum((n - expected) ** 2 / expected for n in counts.values()) < 38


def test_widths_of_a_real_model() -> None:
    """Llama 3.1 8B: nearest multiples of 256 to the percentages of 14336."""
    space = DecoderSpace(shape=shape(width=14336, hidden=4096))
    widths = [variant.width for variant in space.ffn_variants(0) if isinstance(variant, Ffn)]
    assert widths == [14336, 12544, 10752, 8960, 7168, 5376, 3584, 1792]
    assert space.ffn_variants(0)[-2:] == (Linear(), NoOp())


def test_names_of_attention_variants() -> None:
    def found(name: str, **more: Any) -> tuple[Variant, ...]:
        return DecoderSpace(shape=shape(**more), attention=(name,)).attention_variants(0)[1:]

    assert found("all") == found("/1") == found("4") == ()
    assert found("/2") == found("2") == (Attention(kv_heads=2),)
    assert found("1") == (Attention(kv_heads=1),)
    assert found("/3") == found("3") == found("8") == found("/8") == (), "heads that do not divide are left out"
    assert found("window") == (Attention(kv_heads=4, window=64),)
    assert found("window=7") == (Attention(kv_heads=4, window=7),)
    assert found("window", windows=(32,)) == (), "a window is never widened"
    assert found("window=7", windows=(32,)) == (Attention(kv_heads=4, window=7),)
    assert found("/2", windows=(32,)) == (Attention(kv_heads=2, window=32),), "the parent's window stays"
    assert found("linear") == (Linear(),)
    assert found("noop") == (NoOp(),)


@pytest.mark.parametrize(
    "name", ["/0", "0", "-1", "half", "window=", "window=x", "window=0", "/", "", "no-op", "kv2", "²"]
)
def test_bad_attention_names(name: str) -> None:
    with pytest.raises(IllegalArch, match=f"unknown attention variant '{name}'"):
        DecoderSpace(shape=shape(), attention=(name,))


@pytest.mark.parametrize("name", ["0", "101", "-5", "50%", "", "half", "12.5", "²"])
def test_bad_ffn_names(name: str) -> None:
    with pytest.raises(IllegalArch, match=f"unknown FFN variant '{name}'; expected a percentage"):
        DecoderSpace(shape=shape(), ffn=(name,))


def test_unknown_target() -> None:
    with pytest.raises(IllegalArch, match=r"unknown target 'tensorrt'; expected one of hf, vllm, llama\.cpp"):
        DecoderSpace(shape=shape(), target="tensorrt")


def test_refusals_say_where_and_why() -> None:
    space = DecoderSpace(shape=shape(), target="vllm")
    own = space.shape.arch.blocks
    noop = Block(attention=NoOp(), ffn=own[0].ffn)
    with pytest.raises(IllegalArch, match=r"layer 0: noop\+ffn128 is not among the options for target vllm"):
        space.check(DecoderArch(blocks=(noop, own[1])))
    space.check(DecoderArch(blocks=(own[0], noop)))
    with pytest.raises(IllegalArch, match="the parent has 2 layers, the architecture 1"):
        space.check(DecoderArch(blocks=own[:1]))
    with pytest.raises(IllegalArch, match="no layer has attention"):
        DecoderSpace(shape=shape()).check(DecoderArch(blocks=(noop, noop)))


def hybrid(pattern: str = "M-*", mamba_heads: int = 8, groups: int = 2) -> DecoderShape:
    letters = {
        "M": Block(attention=Mamba(heads=mamba_heads), ffn=NoOp()),
        "*": Block(attention=Attention(kv_heads=4), ffn=NoOp()),
        "-": Block(attention=NoOp(), ffn=Ffn(width=128)),
    }
    arch = DecoderArch(blocks=tuple(letters[letter] for letter in pattern))
    sizes: Any = {"vocab": 64, "hidden": 64, "heads": 8, "head_dim": 8, "tied": False, "gated": False}
    mamba = MambaShape(head_dim=8, groups=groups, state=8)
    return DecoderShape(family="nemotron_h", mamba=mamba, arch=arch, **sizes)


@pytest.mark.parametrize(("groups", "kept"), [(1, {4, 2}), (2, {4, 2}), (4, {4}), (8, set[int]())])
def test_a_hybrids_layer_has_variants_of_what_it_is(groups: int, kept: set[int]) -> None:
    """Every SSM group keeps the same share of its heads, at least one; what a layer lacks stays absent."""
    space = DecoderSpace(shape=hybrid(groups=groups), window=16, ffn=("100", "50", "noop"))
    scan, ffn, attention = ({(b.attention, b.ffn) for b in space.blocks(i)} for i in range(3))
    assert scan == {(a, NoOp()) for a in (Mamba(heads=8), *(Mamba(heads=h) for h in kept), Linear(), NoOp())}
    assert ffn == {(NoOp(), f) for f in (Ffn(width=128), Ffn(width=64), NoOp())}
    heads = {Attention(kv_heads=h) for h in (4, 2, 1)} | {Attention(kv_heads=4, window=16)}
    assert attention == {(a, NoOp()) for a in (*heads, Linear(), NoOp())}
    assert space.size == len(scan) * len(ffn) * len(heads), "attention must stay"
    assert all(space.contains(space.sample(random.Random(seed))) for seed in range(20))


def test_hybrids_that_no_child_can_be_made_of() -> None:
    for target in ("vllm", "llama.cpp"):
        with pytest.raises(IllegalArch, match=f"{target} cannot run children of a hybrid"):
            DecoderSpace(shape=hybrid(), target=target)
    with pytest.raises(IllegalArch, match="no attention layer"):
        DecoderSpace(shape=hybrid("M-M-"))
    with pytest.raises(IllegalArch, match="unknown attention variant 'half'"):
        DecoderSpace(shape=hybrid(), attention=("half",))
