"""Sorting by any importance keeps the function, and puts in front what it should."""

import copy
from random import Random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import members
import tiny
from befit.lm.families import family_of
from befit.lm.network import logits
from befit.lm.rank import AxisRanking, Ranking, rank_axes
from befit.lm.sort import channels, head_order, mamba_order, neuron_order, sort, sort_weights


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
    assert channels(torch.tensor([2, 0]), 3, torch.tensor([1, 2, 0])).tolist() == [7, 8, 6, 1, 2, 0]


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


def shuffled(known: members.Parent, seed: int) -> AxisRanking:
    """An importance for everything, drawn at random."""
    found = rank_axes(known.net, known.weights, tiny.tokens(1, 2, known.config.vocab_size))
    generator = torch.Generator().manual_seed(seed)
    drawn = {name: torch.rand(tensor.shape, generator=generator) for name, tensor in found.tensors().items()}
    return AxisRanking.from_tensors(drawn)


def loaded(known: members.Parent, weights: dict[str, torch.Tensor]) -> members.Parent:
    """transformers' own class, strictly with other weights of the same names."""
    model, state = copy.deepcopy(known.model), dict(weights)
    if known.net.shape.tied:
        state["lm_head.weight"] = state["model.embed_tokens.weight"]
    model.load_state_dict(state, strict=True)
    return members.Parent(config=known.config, model=model, net=known.net)


@settings(max_examples=60)
@given(seed=st.integers(0, 10**6))
def test_a_sorted_parent_is_the_parent(seed: int) -> None:
    """Every axis at once in any order, every family, 1 to 8 SSM groups, by transformers' own class."""
    known = members.parent_of(members.any_config(Random(seed)), seed)
    tokens, ranking = tiny.tokens(2, 9, known.config.vocab_size, seed=seed), shuffled(known, seed)
    after = loaded(known, sort_weights(known.weights, known.net.shape, known.net.family, ranking))
    wide = {name: tensor.double() for name, tensor in known.weights.items()}
    moved = sort_weights(wide, known.net.shape, known.net.family, ranking)
    apart = members.difference(logits(known.net, moved, tokens), logits(known.net, wide, tokens))
    assert apart < 1e-9, "befit's own forward, in fp64"
    with torch.no_grad():
        before = known.model(tokens).logits
        rounding = members.difference(before.double(), copy.deepcopy(known.model).double()(tokens).logits)
        # Some of the networks drawn magnify the rounding of sums in another order.
        assert members.difference(after.model(tokens).logits, before) < 1e-5 + 4 * rounding


@settings(max_examples=20)
@given(seed=st.integers(0, 10**6))
def test_what_is_sorted_ranks_in_descending_order(seed: int) -> None:
    """The ranking of the sorted network is the ranking, sorted: each weight went where its importance said."""
    known = members.parent_of(members.any_config(Random(seed)), seed)
    tokens = tiny.tokens(2, 9, known.config.vocab_size, seed=seed)
    ranking = rank_axes(known.net, known.weights, tokens)
    after = loaded(known, sort_weights(known.weights, known.net.shape, known.net.family, ranking))
    again = rank_axes(after.net, after.weights, tokens)

    def check(found: torch.Tensor, before: torch.Tensor) -> None:
        expected = before.sort(dim=-1, descending=True).values
        torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4)

    check(again.hidden, ranking.hidden)
    for axis in ("ffn", "mamba_heads", "channels", "state", "kv"):
        for found, before in zip(getattr(again, axis), getattr(ranking, axis), strict=True):
            check(found, before)
    for found, before in zip(again.query, ranking.query, strict=True):
        if len(before):
            check(found, before[before.sum(1).sort(descending=True).indices])


def test_tensors_are_new_and_those_given_unchanged() -> None:
    known = members.parent_of(tiny.config("qwen3"))
    weights = known.weights
    first = {name: tensor.clone() for name, tensor in weights.items()}
    found = sort_weights(weights, known.net.shape, known.net.family, shuffled(known, 0))
    assert set(found) == set(weights)
    assert not {t.data_ptr() for t in found.values()} & {t.data_ptr() for t in weights.values()}
    assert all(torch.equal(weights[name], first[name]) for name in first)
    assert not torch.equal(found["model.norm.weight"], first["model.norm.weight"])
    norm = "model.layers.0.self_attn.q_norm.weight"
    assert torch.equal(found[norm], first[norm]), "the channels of an attention head stay where they are"
