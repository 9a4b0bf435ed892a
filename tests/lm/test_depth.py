"""The order of removal against brute force: transformers' own class, built without the layers."""

import math
from dataclasses import replace
from random import Random
from typing import Any

import pytest
import torch
from torch import Tensor

import members
import tiny
from befit.arch.decoder import Attention, Mamba
from befit.arch.member import whole
from befit.errors import BadData, UnsupportedModel
from befit.lm.depth import METHODS, Method, compare_methods, droppable, removal_order

M, A, F = "linear_attention", "full_attention", "mlp"
MIXED = [M, F, A, M, F, A, F]


def parent(kinds: list[str] | None = None, *, seed: int = 0) -> members.Parent:
    """A hybrid with layers of the given kinds, or else a dense network of five layers."""
    if kinds is None:
        return members.parent_of(members.dense_config(Random(seed), "llama", num_hidden_layers=5), seed)
    return members.parent_of(members.hybrid_config(Random(seed), layers_block_type=kinds), seed)


def without(known: members.Parent, gone: set[int]) -> Any:
    """transformers' own model of what is left."""
    kept = tuple(i for i in range(known.net.shape.layers) if i not in gone)
    member = replace(whole(known.net.shape), layers=kept)
    return members.plain(known.config, member, members.by_index(known.config, member, known.weights))


@torch.no_grad()
def error(known: members.Parent, tokens: Tensor, gone: set[int]) -> float:
    full, rest = known.model(tokens).logits.double(), without(known, gone)(tokens).logits.double()
    return float((full - rest).square().sum() / full.square().sum())


@torch.no_grad()
def rise(known: members.Parent, tokens: Tensor, gone: set[int]) -> float:
    return float(without(known, gone)(tokens, labels=tokens).loss - known.model(tokens, labels=tokens).loss)


def influence(known: members.Parent, tokens: Tensor, layer: int) -> float:
    seen: list[tuple[Tensor, Tensor]] = []
    handle = known.model.model.layers[layer].register_forward_hook(lambda _, args, out: seen.append((args[0], out)))
    with torch.no_grad():
        known.model(tokens)
    handle.remove()
    (x, y), *_ = [(a.double(), b.double()) for a, b in seen]
    return float(1 - ((x * y).sum(-1) / x.norm(dim=-1) / y.norm(dim=-1)).mean())


def last_of_its_kind(known: members.Parent, kept: list[int], layer: int) -> bool:
    """Said once more: among the layers that are left, is this the only one that mixes tokens as it does?"""
    kinds = getattr(known.config, "layers_block_type", None) or ["decoder"] * known.net.shape.layers
    return kinds[layer] in (M, A) and [kinds[i] for i in kept].count(kinds[layer]) == 1


@pytest.mark.parametrize("kinds", [MIXED, None])
def test_iterative_is_greedy_with_every_error_taken_anew(kinds: list[str] | None) -> None:
    known = parent(kinds, seed=1)
    tokens = tiny.tokens(3, 8, known.config.vocab_size)
    found = removal_order(known.net, known.weights, tokens, batch=2)
    gone, steps = list[int](), list[float]()
    while len(gone) < known.net.shape.layers - 1:
        kept = [i for i in range(known.net.shape.layers) if i not in gone]
        errors = {i: error(known, tokens, {*gone, i}) for i in kept if not last_of_its_kind(known, kept, i)}
        if not errors:
            break
        gone.append(min(errors, key=lambda i: errors[i]))
        steps.append(errors[gone[-1]])
    assert found.removal == tuple(gone)
    assert len(gone) == (5 if kinds else 4)
    assert found.steps == pytest.approx(steps, rel=1e-3)


@pytest.mark.parametrize("kinds", [MIXED, None])
def test_alone(kinds: list[str] | None) -> None:
    known = parent(kinds, seed=2)
    tokens = tiny.tokens(3, 8, known.config.vocab_size)
    every = range(known.net.shape.layers)
    truth: dict[Method, list[float]] = {
        "single": [error(known, tokens, {i}) for i in every],
        "cosine": [influence(known, tokens, i) for i in every],
        "perplexity": [rise(known, tokens, {i}) for i in every],
    }
    truth["iterative"] = truth["single"]
    found = compare_methods(known.net, known.weights, tokens, batch=2)
    assert tuple(found) == METHODS
    for method, expected in truth.items():
        assert found[method].alone == pytest.approx(expected, rel=1e-3, abs=1e-5), method
        if method != "iterative":
            assert list(found[method].steps) == [found[method].alone[i] for i in found[method].removal]


def test_a_large_vocabulary_is_taken_in_parts() -> None:
    config = members.hybrid_config(Random(4), layers_block_type=[F, A, M], vocab_size=60_000, hidden_size=20)
    known = members.parent_of(config, 4)
    tokens = tiny.tokens(2, 4, 60_000)
    found = removal_order(known.net, known.weights, tokens, method="single")
    assert found.alone[0] == pytest.approx(error(known, tokens, {0}), rel=1e-3)
    found = removal_order(known.net, known.weights, tokens, method="perplexity")
    assert found.alone[0] == pytest.approx(rise(known, tokens, {0}), rel=1e-3, abs=1e-5)


@pytest.mark.parametrize("method", METHODS)
def test_one_layer_of_each_kind_of_mixer_stays(method: Method) -> None:
    """Of the two attention and two Mamba-2 layers one each is never in the order, whichever it is."""
    for seed in range(3):
        known = parent(MIXED, seed=seed)
        tokens = tiny.tokens(2, 6, known.config.vocab_size)
        found = removal_order(known.net, known.weights, tokens, method=method)
        left = sorted(set(range(7)) - set(found.removal))
        assert len(found.removal) == 5
        assert sorted(MIXED[i] for i in left) == [A, M]


def test_droppable_by_hand() -> None:
    shape = parent(MIXED).net.shape
    assert droppable(shape, range(7)) == tuple(range(7))
    assert droppable(shape, (1, 2, 3, 6)) == (1, 6)
    assert droppable(shape, (2, 5)) == (2, 5)
    assert droppable(shape, (4,)) == ()
    assert {type(shape.arch.blocks[i].attention) for i in (0, 2)} == {Mamba, Attention}


def test_stops_in_time() -> None:
    known = parent(MIXED)
    tokens = tiny.tokens(2, 6, known.config.vocab_size)
    whole_order = removal_order(known.net, known.weights, tokens)
    short = removal_order(known.net, known.weights, tokens, keep_at_least=5)
    assert short.removal == whole_order.removal[:2]
    assert removal_order(known.net, known.weights, tokens, keep_at_least=9).removal == ()


def test_bad_input_is_told() -> None:
    known = parent(MIXED)
    with pytest.raises(BadData, match="got \\(4,\\)"):
        removal_order(known.net, known.weights, torch.arange(4))
    broken = {name: tensor * math.nan if "layers.1" in name else tensor for name, tensor in known.weights.items()}
    with pytest.raises(UnsupportedModel, match="not finite"):
        removal_order(known.net, broken, tiny.tokens(2, 6, known.config.vocab_size))
