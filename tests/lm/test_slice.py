"""First weights of variants, one tensor at a time, by loops; `laws.families` compares whole models."""

import pytest
import torch
from torch import Tensor

import tiny
from befit.arch.decoder import Attention, Ffn, Linear, Mamba, NoOp, Variant
from befit.lm.child import half
from befit.lm.families import family_of
from befit.lm.slice import initial, own_half, pool_heads

VARIANTS: list[tuple[str, Variant]] = [
    ("attention", Attention(kv_heads=2)),
    ("attention", Attention(kv_heads=1, window=4)),
    ("attention", Linear()),
    ("attention", NoOp()),
    ("ffn", Ffn(width=16)),
    ("ffn", Linear()),
    ("ffn", NoOp()),
]


@pytest.mark.parametrize("family", tiny.FAMILIES)
@pytest.mark.parametrize(("kind", "variant"), VARIANTS, ids=lambda value: getattr(value, "name", value))
def test_tensors_are_those_that_the_module_wants(family: str, kind: str, variant: Variant) -> None:
    model = tiny.parent(family, 1)
    known = family_of(model.config)
    layer = dict(model.model.layers[0].state_dict())
    before = {name: tensor.clone() for name, tensor in layer.items()}
    shape = known.describe(tiny.config(family, 1))
    tensors = initial(layer, variant, kind, shape, known)
    half(model.config, 0, variant, kind).load_state_dict(tensors, strict=True, assign=True)
    for tensor in tensors.values():
        tensor.zero_()
    assert all(torch.equal(tensor, before[name]) for name, tensor in layer.items()), "copies, not views"


@pytest.mark.parametrize(
    ("layer", "kind", "variant"),
    [(0, "attention", v) for v in (Mamba(heads=2), Linear(), NoOp())]
    + [(1, "ffn", v) for v in (Ffn(width=16), Linear(), NoOp())]
    + [(2, "attention", v) for v in (Attention(kv_heads=1, window=4), Linear(), NoOp())],
    ids=lambda value: getattr(value, "name", value),
)
def test_tensors_of_a_hybrid_are_those_that_the_module_wants(layer: int, kind: str, variant: Variant) -> None:
    model = tiny.parent(tiny.HYBRID, 3)
    plain = tiny.config(tiny.HYBRID, 3)
    known = family_of(plain)
    own = dict(model.model.layers[layer].state_dict())
    before = {name: tensor.clone() for name, tensor in own.items()}
    tensors = initial(own, variant, kind, known.describe(plain), known)
    half(model.config, layer, variant, kind).load_state_dict(tensors, strict=True, assign=True)
    for tensor in tensors.values():
        tensor.zero_()
    assert all(torch.equal(tensor, before[name]) for name, tensor in own.items()), "copies, not views"


def test_mean_of_neighbours() -> None:
    weight = torch.arange(24.0).view(8, 3)  # four heads of two channels
    pooled = pool_heads(weight, 2, 2)
    assert torch.equal(pooled[:2], (weight[0:2] + weight[2:4]) / 2)
    assert torch.equal(pooled[2:], (weight[4:6] + weight[6:8]) / 2)
    assert torch.equal(pool_heads(weight[:, 0], 4, 2), weight[:, 0])
    assert pool_heads(weight.bfloat16(), 1, 2).dtype == torch.bfloat16


def test_products_by_loops() -> None:
    model = tiny.parent("llama", 1)
    known = family_of(model.config)
    layer: dict[str, Tensor] = dict(model.model.layers[0].state_dict())
    shape = known.describe(tiny.config("llama", 1))
    out, value = layer["self_attn.o_proj.weight"], layer["self_attn.v_proj.weight"]
    product = torch.zeros(32, 32)
    for head in range(4):
        rows = slice(8 * (head // 2), 8 * (head // 2) + 8)
        product += out[:, 8 * head : 8 * head + 8] @ value[rows]
    linear = initial(layer, Linear(), "attention", shape, known)
    torch.testing.assert_close(linear.pop("self_attn.linear_attn.weight"), product)
    assert linear.keys() == {"input_layernorm.weight"}
    linear = initial(layer, Linear(), "ffn", shape, known)
    product = layer["mlp.down_proj.weight"] @ layer["mlp.up_proj.weight"]
    torch.testing.assert_close(linear.pop("mlp.linear_mlp.weight"), product)
    assert linear.keys() == {"post_attention_layernorm.weight"}


def test_the_parents_own_half_is_copied_whole() -> None:
    model = tiny.parent("qwen3", 1)
    known = family_of(model.config)
    layer: dict[str, Tensor] = dict(model.model.layers[0].state_dict())
    shape = known.describe(tiny.config("qwen3", 1))
    halves = own_half(layer, "attention", known) | own_half(layer, "ffn", known)
    assert halves.keys() == layer.keys()
    own = initial(layer, Attention(kv_heads=2), "attention", shape, known)
    assert all(torch.equal(tensor, layer[name]) for name, tensor in own.items())
    assert {"self_attn.q_norm.weight", "self_attn.k_norm.weight"} <= own.keys()
