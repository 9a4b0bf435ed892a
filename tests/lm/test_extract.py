"""Members as ordinary models: against befit's own forward of the slices, and against models built by lists of indices."""

import math
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests import members
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, LlamaForCausalLM, MistralForCausalLM

import tiny
from befit.arch.decoder import Ffn
from befit.arch.member import Member, cut_shape, whole
from befit.cost.count import count
from befit.cost.workload import Workload
from befit.errors import IllegalArch
from befit.lm.extract import member_config, member_model, member_weights, own_code, pad, padded
from befit.lm.network import logits
from befit.lm.prefix import prefix


def ours(parent: members.Parent, member: Member, tokens: Tensor) -> Tensor:
    """Logits of a member by befit's own forward of views."""
    net = replace(parent.net, shape=cut_shape(parent.net.shape, member))
    return logits(net, prefix(parent.weights, parent.net.shape, parent.net.family, member), tokens)


def per_layer(draw: Random, parent: members.Parent, member: Member) -> Member:
    """The member with a width of its own for every FFN."""
    return replace(member, ffn=tuple(draw.randint(1, member.widest_ffn or 1) for _ in member.layers))


@settings(max_examples=25)
@given(draw=st.randoms(use_true_random=False))
@torch.no_grad()
def test_a_member_is_an_ordinary_model(draw: Random) -> None:
    parent = members.parent_of(members.any_config(draw))
    member = members.member_of(draw, parent.net.shape)
    tokens = tiny.tokens(2, 9, parent.config.vocab_size)
    model = member_model(parent.config, parent.net, parent.weights, member)
    assert type(model) is type(parent.model)
    assert members.difference(model(tokens).logits, ours(parent, member, tokens)) < 1e-5
    truth = members.plain(parent.config, member, members.by_index(parent.config, member, parent.weights))
    assert members.difference(model(tokens).logits, truth(tokens).logits) < 1e-5
    shape = cut_shape(parent.net.shape, member)
    assert sum(weight.numel() for weight in model.parameters()) == count(shape, shape.arch, Workload()).params


@settings(max_examples=10)
@given(draw=st.randoms(use_true_random=False))
@torch.no_grad()
def test_different_widths_padded_with_zeros_change_nothing(draw: Random) -> None:
    parent = members.parent_of(members.any_config(draw))
    member = members.member_of(draw, parent.net.shape)
    if not member.widest_ffn:
        return
    member = per_layer(draw, parent, member)
    tokens = tiny.tokens(2, 9, parent.config.vocab_size)
    model = member_model(parent.config, parent.net, parent.weights, member)
    assert members.difference(model(tokens).logits, ours(parent, member, tokens)) < 1e-5
    shape = cut_shape(parent.net.shape, padded(member, parent.net.shape))
    assert sum(weight.numel() for weight in model.parameters()) == count(shape, shape.arch, Workload()).params


@pytest.mark.parametrize("family", sorted(tiny.CONFIGS))
def test_a_member_survives_saving_and_generates(family: str, tmp_path: Path) -> None:
    draw = Random(3)
    parent = members.parent_of(tiny.config(family, 6))
    member = members.member_of(draw, parent.net.shape)
    model = member_model(parent.config, parent.net, parent.weights, member)
    model.save_pretrained(tmp_path)
    loaded: Any = AutoModelForCausalLM.from_pretrained(tmp_path)
    tokens = tiny.tokens(1, 7)
    assert type(loaded) is type(parent.model)
    assert torch.equal(loaded(tokens).logits, model(tokens).logits)
    cached = loaded.generate(tokens, max_new_tokens=5, do_sample=False)
    assert torch.equal(cached, loaded.generate(tokens, max_new_tokens=5, do_sample=False, use_cache=False))
    assert cached.shape == (1, 12)


def test_the_whole_is_not_copied() -> None:
    parent = members.parent_of(tiny.config("nemotron_h"))
    model = member_model(parent.config, parent.net, weights := parent.weights, whole(parent.net.shape))
    assert all(tensor.data_ptr() == weights[name].data_ptr() for name, tensor in model.state_dict().items())


@torch.no_grad()
def test_a_llama_that_its_configuration_refuses_is_written_as_a_mistral(tmp_path: Path) -> None:
    parent = members.parent_of(tiny.config("llama", rope_parameters=dict(members.ROPES[4])))
    member = replace(members.member_of(Random(1), parent.net.shape), hidden=29, kv_heads=2, heads_per_kv=2)
    model = member_model(parent.config, parent.net, parent.weights, member)
    model.save_pretrained(tmp_path)
    loaded: Any = AutoModelForCausalLM.from_pretrained(tmp_path)
    tokens = tiny.tokens(2, 9)
    assert isinstance(loaded, MistralForCausalLM) and loaded.config.hidden_size == 29
    assert members.difference(loaded(tokens).logits, ours(parent, member, tokens)) < 1e-5
    even = member_model(parent.config, parent.net, parent.weights, replace(member, hidden=28))
    assert isinstance(even, LlamaForCausalLM)


def test_a_llama_with_biases_needs_a_width_that_its_heads_divide() -> None:
    parent = members.parent_of(tiny.config("llama", attention_bias=True))
    member = replace(members.member_of(Random(1), parent.net.shape), hidden=29, kv_heads=2, heads_per_kv=2)
    with pytest.raises(IllegalArch, match="multiple of the number of query heads"):
        member_config(parent.config, parent.net.shape, member)


def test_a_hybrid_keeps_an_attention_layer() -> None:
    parent = members.parent_of(tiny.config("nemotron_h"))
    member = members.member_of(Random(1), parent.net.shape)
    with pytest.raises(IllegalArch, match="at least one"):
        member_config(parent.config, parent.net.shape, replace(member, layers=(0, 1)))


def test_windows_stay_with_their_layers() -> None:
    settings = {"use_sliding_window": True, "sliding_window": 5, "max_window_layers": 2}
    parent = members.parent_of(tiny.config("qwen2", 5, **settings))
    member = members.member_of(Random(1), parent.net.shape)
    config = member_config(parent.config, parent.net.shape, replace(member, layers=(1, 2, 4)))
    assert config.layer_types == ["full_attention", "sliding_attention", "sliding_attention"]
    assert (config.max_window_layers, config.num_hidden_layers, config.sliding_window) == (1, 3, 5)
    config = member_config(parent.config, parent.net.shape, replace(member, layers=(0, 1)))
    assert config.max_window_layers == 2


def test_code_of_the_parents_is_not_named() -> None:
    parent = members.parent_of(tiny.config("nemotron_h"))
    parent.config.auto_map = {"AutoConfig": "configuration_nemotron_h.NemotronHConfig"}
    config = member_config(parent.config, parent.net.shape, members.member_of(Random(1), parent.net.shape))
    assert "auto_map" not in config.to_dict() and config.architectures == ["NemotronHForCausalLM"]
    assert "auto_map" in parent.config.to_dict(), "the parent's own configuration must not change"


@pytest.mark.parametrize("family", ["qwen3", "nemotron_h"])
def test_widths_that_differ_can_be_kept_with_own_code(family: str, tmp_path: Path) -> None:
    draw = Random(5)
    parent = members.parent_of(tiny.config(family, 6))
    member = per_layer(draw, parent, replace(members.member_of(draw, parent.net.shape), layers=(0, 1, 2, 3, 5)))
    shape = cut_shape(parent.net.shape, member)
    assert len({block.ffn.width for block in shape.arch.blocks if isinstance(block.ffn, Ffn)}) > 1
    config = own_code(member_config(parent.config, parent.net.shape, member), shape.arch, tmp_path)
    config.save_pretrained(tmp_path)
    assert (tmp_path / "modeling_befit.py").is_file()
    assert "AutoModelForCausalLM" in AutoConfig.from_pretrained(tmp_path).auto_map


def test_padding_fills_the_end_with_zeros() -> None:
    tensor = torch.arange(6.0).view(2, 3)
    assert pad(tensor, (2, 3)) is tensor
    filled = pad(tensor, (4, 5))
    assert filled.shape == (4, 5) and torch.equal(filled[:2, :3], tensor)
    assert filled.sum() == tensor.sum()


def test_homogeneous_weights_are_not_touched() -> None:
    parent = members.parent_of(tiny.config("qwen2"))
    member = members.member_of(Random(2), parent.net.shape)
    found = member_weights(parent.weights, parent.net.shape, parent.net.family, member)
    assert math.prod(found["model.norm.weight"].shape) == member.hidden
