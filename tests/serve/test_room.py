"""The room for keys and values: exact where the overhead is the same for all models."""

import pytest
from tests import tiny

from befit.arch.decoder import Attention, Block, DecoderArch, Ffn, NoOp
from befit.cost.count import count
from befit.cost.workload import Workload
from befit.errors import BadTable
from befit.lm.families import family_of
from befit.serve.room import Held, Room, fit_room, token_bytes

PLAIN = tiny.config("llama", 3)
SHAPE = family_of(PLAIN).describe(PLAIN)
WORK = Workload(batch=2, prompt=8, generate=4, weights="bf16", cache="bf16")
CHILD = DecoderArch(
    blocks=(
        Block(attention=Attention(kv_heads=1), ffn=Ffn(width=32)),
        Block(attention=NoOp(), ffn=Ffn(width=48)),
    )
)


def test_a_token_has_a_key_and_a_value_for_every_head() -> None:
    assert token_bytes(SHAPE, SHAPE.arch, WORK) == 3 * 2 * 2 * 8 * 2  # layers, key and value, heads, channels, bytes
    assert token_bytes(SHAPE, CHILD, WORK) == 1 * 2 * 1 * 8 * 2


def test_the_room_of_one_model_tells_that_of_another() -> None:
    true, held = Room(allowed_bytes=10**6, overhead_bytes=12_345), []
    for arch in (SHAPE.arch, CHILD):
        weights = count(SHAPE, arch, WORK).weight_bytes
        tokens = int((10**6 - 12_345 - weights) / token_bytes(SHAPE, arch, WORK))
        assert true.kv_tokens(SHAPE, arch, WORK) == tokens
        held.append(Held(arch=arch, kv_tokens=tokens, weight_bytes=weights))
    found = fit_room(SHAPE, WORK, 10**6, held[:1])
    assert found.kv_tokens(SHAPE, CHILD, WORK) == pytest.approx(held[1].kv_tokens, abs=10)


def test_nothing_fits_beside_weights_that_do_not() -> None:
    assert Room(allowed_bytes=100, overhead_bytes=10).kv_tokens(SHAPE, SHAPE.arch, WORK) == 0
    with pytest.raises(BadTable, match="there are none"):
        fit_room(SHAPE, WORK, 10**6, [])
