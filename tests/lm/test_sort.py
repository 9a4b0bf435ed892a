"""Sorting by any importance keeps the function, and puts in front what it should."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import tiny
from befit.lm.families import family_of
from befit.lm.rank import Ranking
from befit.lm.sort import channels, head_order, mamba_order, neuron_order, sort


def ranking(layers: int, neurons: int, heads: int, seed: int) -> Ranking:
    generator = torch.Generator().manual_seed(seed)
    return Ranking(
        neurons=tuple(torch.rand(neurons, generator=generator) for _ in range(layers)),
        heads=tuple(torch.rand(heads, generator=generator) for _ in range(layers)),
        influence=(0.0,) * layers,
    )


@settings(max_examples=12)
@given(family=st.sampled_from(tiny.FAMILIES), kv_heads=st.sampled_from([1, 2, 4]), seed=st.integers(0, 99))
def test_any_order_gives_the_same_logits(family: str, kv_heads: int, seed: int) -> None:
    model = tiny.parent(family, 2, num_key_value_heads=kv_heads)
    known = family_of(model.config)
    shape = known.describe(tiny.config(family, 2, num_key_value_heads=kv_heads))
    tokens = tiny.tokens(2, 12)
    with torch.no_grad():
        before = model(tokens).logits
        first = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        wanted = ranking(2, 48, 4, seed)
        sort(model, shape, known, wanted)
        torch.testing.assert_close(model(tokens).logits, before, rtol=0, atol=1e-4)
    for i in range(2):
        name = f"model.layers.{i}.mlp.down_proj.weight"
        best = int(wanted.neurons[i].argmax())
        assert torch.equal(model.state_dict()[name][:, 0], first[name][:, best])


def test_orders_by_hand() -> None:
    """KV groups (0, 1), (2, 3), (4, 5) weigh 5, 9, 7: a group goes with its heads, SSM groups stay; heads are sorted inside."""
    heads = torch.tensor([3.0, 2.0, 4.0, 5.0, 1.0, 6.0])
    assert neuron_order(torch.tensor([0.5, 2.0, 1.0, 2.0])).tolist() == [1, 3, 2, 0], "equal neurons keep their order"
    groups, inside = head_order(heads, kv_heads=3)
    assert groups.tolist() == [1, 2, 0]
    assert inside.tolist() == [3, 2, 5, 4, 0, 1]
    assert mamba_order(heads, groups=2).tolist() == [2, 0, 1, 5, 3, 4]


def test_channels_of_heads() -> None:
    assert channels(torch.tensor([2, 0]), 3).tolist() == [6, 7, 8, 0, 1, 2]


@pytest.mark.parametrize("kv_heads", [1, 4])
def test_heads_of_a_group_stay_with_it(kv_heads: int) -> None:
    model = tiny.parent("llama", 1, num_key_value_heads=kv_heads)
    known = family_of(model.config)
    attention = model.model.layers[0].self_attn
    query, key = (
        weight.detach().clone().unflatten(0, (-1, 8)) for weight in (attention.q_proj.weight, attention.k_proj.weight)
    )
    sort(model, known.describe(tiny.config("llama", 1, num_key_value_heads=kv_heads)), known, ranking(1, 48, 4, 3))
    per_group = 4 // kv_heads
    for head, rows in enumerate(attention.q_proj.weight.unflatten(0, (-1, 8))):
        was = [torch.equal(rows, old) for old in query].index(True)
        group = attention.k_proj.weight.unflatten(0, (-1, 8))[head // per_group]
        assert torch.equal(group, key[was // per_group])
