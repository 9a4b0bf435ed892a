"""The decoder as a function of its weights, against transformers' own classes: whole parents, members, decoding, gates."""

from dataclasses import replace
from random import Random
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import members
import tiny
from befit.arch.member import Member, cut_shape, whole
from befit.errors import UnsupportedModel
from befit.lm import network
from befit.lm.families import family_of
from befit.lm.network import Gates, Memory, Network, hidden_states, logits, network_of
from befit.lm.prefix import plan, prefix

randoms = st.randoms(use_true_random=False)


def tokens_of(draw: Random, config: Any, least: int = 1) -> Tensor:
    return tiny.tokens(2, draw.randint(least, 20), config.vocab_size, seed=draw.randint(0, 99))


def cut(parent: members.Parent, member: Member) -> tuple[Network, dict[str, Tensor]]:
    shape = parent.net.shape
    return replace(parent.net, shape=cut_shape(shape, member)), prefix(parent.weights, shape, parent.net.family, member)


def decode(draw: Random, tokens: Tensor, net: Network, weights: Any, model: Any) -> tuple[Tensor, Tensor]:
    """Our logits and the class's, of the tokens given a few at a time, each with its memory of those before."""
    memory, cache, start, ours, theirs = Memory(), None, 0, list[Tensor](), list[Tensor]()
    while start < tokens.shape[1]:
        part = tokens[:, start : start + draw.choice([1, 1, 1, 4])]
        start += part.shape[1]
        told = model(part, use_cache=True, past_key_values=cache)
        cache = told.past_key_values
        ours.append(logits(net, weights, part, memory=memory))
        theirs.append(told.logits)
    assert memory.seen == tokens.shape[1]
    return torch.cat(ours, 1), torch.cat(theirs, 1)


@pytest.mark.parametrize("groups", members.GROUPS)
@settings(max_examples=15)
@given(draw=randoms)
@torch.inference_mode()
def test_a_hybrid_equals_its_class(draw: Random, groups: int) -> None:
    per_group = draw.randint(1, 4)
    config = members.hybrid_config(draw, n_groups=groups, mamba_num_heads=groups * per_group)
    parent, tokens = members.parent_of(config), tokens_of(draw, config)
    wanted = parent.model(tokens, use_cache=False).logits
    assert members.difference(logits(parent.net, parent.weights, tokens), wanted) < 2e-5


@pytest.mark.parametrize("family", sorted(members.DENSE))
@settings(max_examples=15)
@given(draw=randoms)
@torch.inference_mode()
def test_a_dense_network_equals_its_class(draw: Random, family: str) -> None:
    config = members.dense_config(draw, family)
    parent, tokens = members.parent_of(config), tokens_of(draw, config)
    wanted = parent.model(tokens, use_cache=False).logits
    assert members.difference(logits(parent.net, parent.weights, tokens), wanted) < 2e-5


@pytest.mark.parametrize("rope", members.ROPES, ids=lambda rope: rope["rope_type"])
@torch.inference_mode()
def test_every_way_of_turning_positions_into_angles(rope: dict[str, Any]) -> None:
    config = members.dense_config(Random(3), "llama", rope_parameters=dict(rope), num_hidden_layers=2, hidden_size=36)
    plain = members.dense_config(Random(3), "llama", num_hidden_layers=2, hidden_size=36, rope_parameters=None)
    parent, tokens = members.parent_of(config), tiny.tokens(2, 20, config.vocab_size)
    wanted = parent.model(tokens, use_cache=False).logits
    assert members.difference(logits(parent.net, parent.weights, tokens), wanted) < 2e-5
    ours, theirs = decode(Random(1), tokens, parent.net, parent.weights, parent.model)
    assert members.difference(ours, theirs) < 2e-5
    if rope["rope_type"] != "default":  # else the test would prove nothing
        usual = network_of(plain, family_of(plain))
        assert members.difference(logits(usual, parent.weights, tokens), wanted) > 1e-3


@settings(max_examples=60)
@given(draw=randoms)
@torch.inference_mode()
def test_a_member_on_views_equals_the_plain_class_with_its_weights(draw: Random) -> None:
    config = members.any_config(draw)
    parent, tokens = members.parent_of(config), tokens_of(draw, config)
    member = members.member_of(draw, parent.net.shape)
    net, weights = cut(parent, member)
    model = members.plain(config, member, members.by_index(config, member, parent.weights))
    wanted = model(tokens, use_cache=False).logits
    assert members.difference(logits(net, weights, tokens), wanted) < 2e-5
    ours, theirs = decode(draw, tokens, net, weights, model)
    assert members.difference(ours, theirs) < 2e-5


@settings(max_examples=15)
@given(draw=randoms)
@torch.inference_mode()
def test_decoding_equals_prefill(draw: Random) -> None:
    config = members.any_config(draw)
    if config.model_type == "nemotron_h":  # the class ignores a lower limit of time steps when it decodes, and so do we
        config.time_step_min = members.STEPS[0]
    elif config.rope_parameters["rope_type"] == "dynamic":  # keys keep the angles that they had when they were made
        config.rope_parameters = dict(members.ROPES[0])
    parent, tokens = members.parent_of(config), tokens_of(draw, config, least=2)
    ours, theirs = decode(draw, tokens, parent.net, parent.weights, parent.model)
    assert members.difference(ours, theirs) < 2e-5
    assert members.difference(ours, logits(parent.net, parent.weights, tokens)) < 2e-5


@torch.inference_mode()
def test_greedy_generation_is_the_class_s() -> None:
    config = members.hybrid_config(Random(4), time_step_min=0.001)
    parent, tokens = members.parent_of(config), tiny.tokens(1, 7, config.vocab_size)
    wanted = parent.model.generate(tokens, max_new_tokens=12, do_sample=False, eos_token_id=None, pad_token_id=0)
    memory, told = Memory(), [tokens]
    for _ in range(12):
        told.append(logits(parent.net, parent.weights, told[-1], memory=memory)[:, -1:].argmax(-1))
    assert torch.cat(told, 1).equal(wanted)


@settings(max_examples=40)
@given(draw=randoms)
@torch.inference_mode()
def test_gates_over_full_width_equal_the_slice(draw: Random) -> None:
    """In fp64, where the law is not blurred: sums in another order differ by 1e-6 in fp32."""
    config = members.any_config(draw)
    parent, tokens = members.parent_of(config), tokens_of(draw, config)
    member = members.member_of(draw, parent.net.shape)
    net, weights = cut(parent, member)
    gated = hidden_states(parent.net, doubled(parent.weights), tokens, gates=members.gates_of(parent.net, member))
    assert members.difference(gated[..., : member.hidden], hidden_states(net, doubled(weights), tokens)) < 1e-11
    assert not gated[..., member.hidden :].any()


def doubled(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: weight.double() for name, weight in weights.items()}


HYBRID = {
    "layers_block_type": ["linear_attention", "mlp", "full_attention", "linear_attention"],
    "hidden_size": 16,
    "intermediate_size": 24,
    "mamba_num_heads": 16,
    "mamba_head_dim": 4,
    "n_groups": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 4,
    "ssm_state_size": 6,
    "time_step_min": 0.001,
}


def hybrid(**overrides: Any) -> members.Parent:
    return members.parent_of(members.hybrid_config(Random(0), **(HYBRID | overrides)))


HALF = {"hidden": 8, "ffn": 12, "kv_heads": 1, "heads_per_kv": 1, "mamba_heads": 8, "mamba_head_dim": 2, "state": 3}


@pytest.mark.parametrize("axis", ["hidden", "mamba_heads", "mamba_head_dim"])
@torch.inference_mode()
def test_without_the_width_correction_of_norms_gates_are_wrong(axis: str, monkeypatch: pytest.MonkeyPatch) -> None:
    parent, tokens = hybrid(), tiny.tokens(2, 12, 11)
    member = replace(whole(parent.net.shape), **{axis: HALF[axis]})
    net, weights = cut(parent, member)
    gates, wanted = members.gates_of(parent.net, member), hidden_states(net, weights, tokens)
    right = network._rms_norm
    kept = slice(0, member.hidden)
    assert members.difference(hidden_states(parent.net, parent.weights, tokens, gates=gates)[..., kept], wanted) < 1e-5
    monkeypatch.setattr(network, "_rms_norm", lambda x, weight, eps, gate=None: right(x, weight, eps))
    assert members.difference(hidden_states(parent.net, parent.weights, tokens, gates=gates)[..., kept], wanted) > 0.01


@torch.inference_mode()
def test_heads_are_kept_in_every_group_and_not_the_first_of_all() -> None:
    """A mask over the first half of all heads silences whole groups: another network, whatever the norm divides by."""
    parent, tokens = hybrid(layer_norm_epsilon=1e-12), tiny.tokens(2, 12, 11)
    net, weights = cut(parent, replace(whole(parent.net.shape), mamba_heads=8))
    wanted = hidden_states(net, weights, tokens)

    def masked(kept: Tensor) -> dict[str, Tensor]:
        """The parent's weights, zeros where z of a lost head was, and gated norms corrected by the share that is kept."""
        found = {name: weight.clone() for name, weight in parent.weights.items()}
        for name, weight in found.items():
            if ".in_proj." in name:
                weight[: 16 * 4][~kept.repeat_interleave(4)] = 0
            elif name.endswith("mixer.norm.weight"):
                weight.mul_(0.5**0.5)
        return found

    heads = torch.arange(16)
    by_group = hidden_states(parent.net, masked(heads % 4 < 2), tokens)
    assert members.difference(by_group, wanted) < 1e-5
    first_of_all = hidden_states(parent.net, masked(heads < 8), tokens)
    assert members.difference(first_of_all, wanted) > 0.1


@pytest.mark.parametrize(("axis", "layer"), [("ffn", 1), ("kv", 2), ("query", 2), ("layers", 0), ("layers", 2)])
@torch.inference_mode()
def test_a_gate_multiplies_once(axis: str, layer: int) -> None:
    """What a layer adds lies on the line between a closed and an open gate: half a gate adds half, not a quarter."""
    parent, tokens = hybrid(mlp_bias=True), tiny.tokens(2, 12, 11)
    width = {"ffn": 24, "kv": 2, "query": 2, "layers": 4}[axis]
    added = []
    for value in (0.0, 0.5, 1.0):
        seen = dict[int, Tensor]()
        gates = Gates(**{axis: torch.where(torch.arange(width) == layer, value, 1.0)})
        if axis != "layers":
            gates = Gates(**{axis: torch.full((width,), value)})

        def tap(name: str, index: int, x: Tensor, seen: dict[int, Tensor] = seen) -> None:
            seen |= {index: x} if name == "output" else {}

        hidden_states(parent.net, parent.weights, tokens, gates=gates, tap=tap)
        added.append(seen[layer])
    assert members.difference(added[1], (added[0] + added[2]) / 2) < 1e-6
    assert members.difference(added[0], added[2]) > 0.01


def test_gates_tell_what_each_channel_is_worth() -> None:
    """The gradient by a gate equals a finite difference, on every axis."""
    parent, tokens = hybrid(), tiny.tokens(2, 8, 11)
    weights = doubled(parent.weights)
    member = replace(whole(parent.net.shape), **HALF)
    base = {name: gate.double() for name, gate in vars(members.gates_of(parent.net, member)).items()}

    def loss(gates: dict[str, Tensor]) -> Tensor:
        states = hidden_states(parent.net, weights, tokens, gates=Gates(**gates))
        return (states * torch.linspace(-1, 1, states.shape[-1], dtype=states.dtype)).pow(2).sum()

    for name, gate in base.items():
        leaf = gate.clone().requires_grad_()
        loss(base | {name: leaf}).backward()
        place, step = len(gate) // 2 - 1, torch.zeros_like(gate)
        step[place] = 1e-6
        with torch.no_grad():
            numeric = (loss(base | {name: gate + step}) - loss(base | {name: gate - step})) / 2e-6
        assert leaf.grad is not None
        assert float(leaf.grad[place]) == pytest.approx(float(numeric), rel=1e-5, abs=1e-7), name


@settings(max_examples=20)
@given(draw=randoms)
def test_gradients_reach_the_prefix_and_nothing_else(draw: Random) -> None:
    config = members.any_config(draw)
    parent, tokens = members.parent_of(config), tokens_of(draw, config, least=3)
    member = members.member_of(draw, parent.net.shape)
    leaves = {name: weight.clone().requires_grad_() for name, weight in parent.weights.items()}
    net = replace(parent.net, shape=cut_shape(parent.net.shape, member))
    logits(net, prefix(leaves, parent.net.shape, net.family, member), tokens).square().sum().backward()
    places = {name: torch.arange(weight.numel()).view(weight.shape) for name, weight in leaves.items()}
    used = members.by_index(config, member, places)
    kept = {long: used[short].flatten() for short, (long, _) in plan(parent.net.shape, net.family, member).items()}
    model = members.plain(config, member, members.by_index(config, member, parent.weights))
    model(tokens, use_cache=False).logits.square().sum().backward()
    wanted = dict(model.named_parameters())
    long_names = {long: short for short, (long, _) in plan(parent.net.shape, net.family, member).items()}
    for name, leaf in leaves.items():
        if leaf.grad is None:
            assert name not in kept
            continue
        flat = leaf.grad.flatten()
        outside = torch.ones_like(flat, dtype=torch.bool)
        outside[kept[name]] = False
        assert not flat[outside].any()
        same = wanted[long_names[name]].grad
        assert same is not None
        assert members.difference(flat[kept[name]], same.flatten()) < 1e-4
    assert all(leaves[name].grad is not None for name in kept)


@settings(max_examples=6)
@given(draw=randoms)
def test_recomputing_changes_neither_loss_nor_gradients(draw: Random) -> None:
    config = members.any_config(draw)
    parent, tokens = members.parent_of(config), tokens_of(draw, config)
    member, found = members.member_of(draw, parent.net.shape), []
    net = replace(parent.net, shape=cut_shape(parent.net.shape, member))
    gates = Gates(layers=torch.ones(member.depth, requires_grad=True))
    assert gates.layers is not None
    for recompute in (False, True):
        leaves = {name: weight.clone().requires_grad_() for name, weight in parent.weights.items()}
        views = prefix(leaves, parent.net.shape, net.family, member)
        loss = hidden_states(net, views, tokens, gates=gates, recompute=recompute).square().sum()
        loss.backward()
        assert gates.layers.grad is not None
        found.append(
            [loss.detach(), gates.layers.grad, *(leaf.grad for leaf in leaves.values() if leaf.grad is not None)]
        )
        gates.layers.grad = None
    for plain, recomputed in zip(*found, strict=True):
        torch.testing.assert_close(plain, recomputed)


def test_recomputing_keeps_fewer_numbers_for_the_backward_pass() -> None:
    parent, tokens, kept = hybrid(), tiny.tokens(2, 20, 11), []
    leaves = {name: weight.clone().requires_grad_() for name, weight in parent.weights.items()}
    for recompute in (False, True):
        sizes = list[int]()

        def pack(x: Tensor, sizes: list[int] = sizes) -> Tensor:
            sizes.append(x.numel())
            return x

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
            hidden_states(parent.net, leaves, tokens, recompute=recompute)
        kept.append(sum(sizes))
    assert kept[1] < kept[0] / 3


@torch.inference_mode()
def test_taps_see_what_the_class_s_modules_see() -> None:
    parent, tokens = hybrid(mlp_hidden_act="relu2"), tiny.tokens(2, 9, 11)
    ours, theirs = dict[tuple[str, int], Tensor](), dict[tuple[str, int], Tensor]()
    hidden_states(parent.net, parent.weights, tokens, tap=lambda name, i, x: ours.__setitem__((name, i), x))
    for i, layer in enumerate(parent.model.model.layers):
        layer.register_forward_pre_hook(lambda _, args, i=i: theirs.__setitem__(("input", i), args[0]))
        layer.norm.register_forward_hook(lambda *a, i=i: theirs.__setitem__(("norm", i), a[2]))
        layer.mixer.register_forward_hook(
            lambda *a, i=i: theirs.__setitem__(("output", i), a[2][0] if isinstance(a[2], tuple) else a[2])
        )
    mlp, attention, mamba = (parent.model.model.layers[i].mixer for i in (1, 2, 0))
    mlp.up_proj.register_forward_hook(lambda *a: theirs.__setitem__(("ffn", 1), a[2]))
    attention.o_proj.register_forward_pre_hook(lambda _, a: theirs.__setitem__(("heads", 2), a[0]))
    mamba.in_proj.register_forward_hook(lambda *a: theirs.__setitem__(("mamba", 0), a[2][..., 64:128]))
    parent.model(tokens, use_cache=False)
    for key, value in theirs.items():
        assert members.difference(ours[key].flatten(2), value) < 1e-5, key
    assert ours["heads", 2].shape == (2, 9, 2, 2, 4)
    assert ours["mamba", 0].shape == (2, 9, 4, 4, 4)
    assert ours["state", 0].shape == (2, 9, 4, 6)
    assert {name for name, _ in ours} == {"input", "norm", "ffn", "heads", "mamba", "state", "output"}


@settings(max_examples=8)
@given(draw=randoms)
@torch.inference_mode()
def test_ffn_widths_of_each_layer_equal_the_class_filled_up_with_zeros(draw: Random) -> None:
    config = members.any_config(draw)
    parent, tokens = members.parent_of(config), tokens_of(draw, config)
    same = members.member_of(draw, parent.net.shape)
    member = replace(same, ffn=tuple(draw.randint(min(1, same.widest_ffn), same.widest_ffn) for _ in same.layers))
    net, weights = cut(parent, member)
    full = members.by_index(config, same, parent.weights)
    for place, layer in enumerate(same.layers):
        for name in full:
            if name.startswith(f"model.layers.{place}.") and ("down_proj.weight" in name):
                full[name] = full[name].clone()
                full[name][:, member.ffn_of(layer) :] = 0
    wanted = members.plain(config, same, full)(tokens, use_cache=False).logits
    assert members.difference(logits(net, weights, tokens), wanted) < 2e-5


@torch.inference_mode()
def test_half_precision_is_near_the_class_s() -> None:
    parent, tokens = hybrid(), tiny.tokens(2, 12, 11)
    exact = logits(parent.net, parent.weights, tokens)
    model = parent.model.to(torch.bfloat16)
    ours = logits(parent.net, model.state_dict(), tokens)
    assert ours.dtype == torch.bfloat16
    theirs = members.difference(model(tokens, use_cache=False).logits.float(), exact)
    assert members.difference(ours.float(), exact) < 2 * theirs


def test_an_activation_that_is_not_known_is_refused() -> None:
    config = members.hybrid_config(Random(0), mlp_hidden_act="mish")
    with pytest.raises(UnsupportedModel, match="mish"):
        network_of(config, family_of(config))
