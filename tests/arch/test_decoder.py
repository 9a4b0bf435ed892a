"""Architectures as values: what JSON they become, and what is refused."""

import json
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from befit.arch.decoder import Attention, Block, DecoderArch, DecoderShape, Ffn, Linear, NoOp
from befit.errors import IllegalArch

positive = st.integers(1, 10**6)
simple = st.sampled_from([Linear(), NoOp()])
attentions = simple | st.builds(Attention, kv_heads=positive, window=st.none() | positive)
blocks = st.builds(Block, attention=attentions, ffn=simple | st.builds(Ffn, width=positive))
arches = st.builds(DecoderArch, blocks=st.lists(blocks, min_size=1, max_size=6).map(tuple))

PLAIN = DecoderArch(blocks=(Block(attention=Attention(kv_heads=2), ffn=Ffn(width=32)),))
SHAPE = DecoderShape(family="llama", vocab=64, hidden=32, heads=4, head_dim=8, tied=True, arch=PLAIN)


@given(arches)
def test_json_there_and_back(arch: DecoderArch) -> None:
    read = DecoderArch.from_json(json.loads(json.dumps(arch.to_json())))
    assert read == arch and hash(read) == hash(arch)


@given(st.lists(arches, min_size=2, max_size=2, unique=True))
def test_different_architectures_have_different_json(pair: list[DecoderArch]) -> None:
    assert json.dumps(pair[0].to_json()) != json.dumps(pair[1].to_json())


def test_documented_form() -> None:
    arch = DecoderArch(
        blocks=(
            Block(attention=Attention(kv_heads=4), ffn=Ffn(width=512)),
            Block(attention=Attention(kv_heads=1, window=64), ffn=NoOp()),
            Block(attention=Linear(), ffn=Linear()),
            Block(attention=NoOp(), ffn=NoOp()),
        )
    )
    assert arch.to_json() == {
        "blocks": [
            {"attention": {"kv_heads": 4, "window": None}, "ffn": {"width": 512}},
            {"attention": {"kv_heads": 1, "window": 64}, "ffn": "noop"},
            {"attention": "linear", "ffn": "linear"},
            {"attention": "noop", "ffn": "noop"},
        ]
    }
    names = ["kv4+ffn512", "kv1w64+noop", "linear+linear", "noop+noop"]
    assert [block.name for block in arch.blocks] == names


def layer(**changes: Any) -> dict[str, Any]:
    return {"blocks": [{"attention": {"kv_heads": 2, "window": None}, "ffn": {"width": 32}} | changes]}


@pytest.mark.parametrize(
    ("data", "said"),
    [
        ([], "expected an object with the keys blocks"),
        ({}, r"missing keys \['blocks'\]"),
        ({"blocks": []}, "at least one layer"),
        ({"blocks": {}}, "'blocks' must be a list, got dict"),
        ({"blocks": ["noop"]}, "layer 0: expected an object with the keys attention, ffn, got 'noop'"),
        ({"blocks": [], "layers": 3}, r"unknown keys \['layers'\]"),
        (layer(norm="rms"), r"layer 0: unknown keys \['norm'\]"),
        ({"blocks": [{"ffn": {"width": 3}}]}, r"missing keys \['attention'\]"),
        (layer(attention={"kv_heads": 2}), r"layer 0, attention: .* missing keys \['window'\]"),
        (layer(attention={"kv_heads": 2, "window": None, "sink": 4}), r"unknown keys \['sink'\]"),
        (layer(attention="none"), "attention must be an object, 'linear' or 'noop', got 'none'"),
        (layer(attention=2), "layer 0, attention: expected an object"),
        (layer(ffn="skip"), "ffn must be an object, 'linear' or 'noop', got 'skip'"),
        (layer(ffn={"width": 32, "gate": False}), r"unknown keys \['gate'\]"),
        (layer(ffn={"kv_heads": 2, "window": None}), r"missing keys \['width'\]"),
        (layer(ffn=None), "layer 0, ffn: expected an object"),
        (layer(attention={"kv_heads": 0, "window": None}), "kv_heads must be a whole number of at least 1, got 0"),
        (layer(attention={"kv_heads": True, "window": None}), "kv_heads must be a whole number"),
        (layer(attention={"kv_heads": 2, "window": 0}), "window must be a whole number"),
        (layer(ffn={"width": 32.0}), "width must be a whole number of at least 1, got 32.0"),
        (layer(ffn={"width": "32"}), "width must be a whole number"),
    ],
)
def test_what_is_no_architecture_is_refused(data: Any, said: str) -> None:
    with pytest.raises(IllegalArch, match=said):
        DecoderArch.from_json(data)


def test_shapes_are_checked() -> None:
    assert SHAPE.layers == 1
    with pytest.raises(IllegalArch, match="hidden must be a whole number of at least 1, got 0"):
        replace(SHAPE, hidden=0)
    odd = DecoderArch(blocks=(Block(attention=Attention(kv_heads=3), ffn=NoOp()),))
    with pytest.raises(IllegalArch, match="4 query heads cannot share 3 KV heads evenly"):
        replace(SHAPE, arch=odd)
