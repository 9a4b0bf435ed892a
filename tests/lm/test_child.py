"""Building, saving and loading children; the families' laws are in `test_families.py`."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

import befit
import tiny
from befit.arch.decoder import Attention, Block, DecoderArch, Ffn, Linear, Mamba, NoOp
from befit.errors import IllegalArch, UnsupportedModel
from befit.lm.child import adopt, arch_of, build, config_for, from_parent, half, load, save

ARCH = DecoderArch(
    blocks=(
        Block(attention=NoOp(), ffn=Ffn(width=16)),
        Block(attention=Attention(kv_heads=1, window=4), ffn=Linear()),
    )
)


def test_a_config_is_a_copy() -> None:
    config = tiny.config()
    before = copy.deepcopy(config.to_dict())
    assert config_for(config, ARCH).num_hidden_layers == 2
    assert config.to_dict() == before


def test_building_on_meta_takes_no_memory_and_adopting_copies_nothing() -> None:
    model: Any = build(config_for(tiny.config(), ARCH))
    assert {p.device.type for p in model.parameters()} == {"meta"} and not model.training
    tensors = {name: torch.rand(p.shape) for name, p in model.state_dict().items()}
    adopt(model, tensors)
    assert all(p.data_ptr() == tensors[name].data_ptr() for name, p in model.named_parameters())
    assert not any(p.requires_grad for p in model.parameters())
    assert model.model.rotary_emb.inv_freq.device.type == "cpu"


def test_adopting_wants_every_tensor_and_no_other() -> None:
    model = build(config_for(tiny.config(), ARCH))
    tensors = {name: torch.rand(p.shape) for name, p in model.state_dict().items()}
    with pytest.raises(RuntimeError, match="Unexpected key"):
        adopt(model, tensors | {"model.layers.0.self_attn.q_proj.weight": torch.rand(32, 32)})
    del tensors["model.norm.weight"]
    with pytest.raises(RuntimeError, match="Missing key"):
        adopt(model, tensors)


def test_rotary_frequencies_stay_exact_in_bf16() -> None:
    config = config_for(tiny.config(), ARCH)
    exact: Any = build(config, device="cpu").model.rotary_emb
    half_precision: Any = build(config, device="cpu", dtype=torch.bfloat16)
    assert half_precision.dtype == torch.bfloat16
    assert {p.dtype for p in half_precision.parameters()} == {torch.bfloat16}
    assert torch.equal(half_precision.model.rotary_emb.inv_freq, exact.inv_freq)
    row: Any = from_parent(tiny.original().to(torch.bfloat16))
    assert row.dtype == torch.bfloat16 and row.model.rotary_emb.inv_freq.dtype == torch.float32


@pytest.mark.parametrize("family", tiny.ALL)
def test_two_halves_are_a_layer(family: str) -> None:
    parent = tiny.parent(family, 2)
    layer, x = parent.model.layers[1], torch.rand(2, 9, 32)
    context = parent.model.begin(x)
    block = arch_of(parent.config).blocks[1]
    attention, ffn = half(parent.config, 1, block.attention, "attention"), half(parent.config, 1, block.ffn, "ffn")
    for module in (attention, ffn):
        wanted = module.state_dict().keys()
        module.load_state_dict({n: t for n, t in layer.state_dict().items() if n in wanted}, assign=True)
    assert ffn.attend(x, context) is x and attention.feed(x) is x
    with torch.no_grad():
        torch.testing.assert_close(ffn(attention(x, context), context), layer(x, context), rtol=0, atol=0)


def test_a_variant_of_the_other_kind_is_refused() -> None:
    config = tiny.config()
    with pytest.raises(IllegalArch, match="ffn16 cannot stand in for the attention sub-block"):
        half(config, 0, Ffn(width=16), "attention")
    with pytest.raises(IllegalArch, match="kv1 cannot stand in for the ffn sub-block"):
        half(config, 0, Attention(kv_heads=1), "ffn")
    with pytest.raises(IllegalArch, match="mamba2 cannot stand in for the ffn sub-block"):
        half(tiny.config(tiny.HYBRID), 0, Mamba(heads=2), "ffn")


def test_a_layer_of_a_hybrid_has_one_sub_block() -> None:
    both = Block(attention=Mamba(heads=2), ffn=Ffn(width=16))
    with pytest.raises(IllegalArch, match=r"layer 1: mamba2\+ffn16 has two sub-blocks"):
        config_for(tiny.config(tiny.HYBRID), DecoderArch(blocks=(Block(attention=NoOp(), ffn=NoOp()), both)))


def test_save_and_load_keep_the_format_of_numbers(tmp_path: Path) -> None:
    child = build(config_for(tiny.config("qwen2", tie_word_embeddings=True), ARCH), device="cpu", dtype=torch.bfloat16)
    save(child, tmp_path)
    assert {path.name for path in tmp_path.iterdir()} >= {"config.json", "model.safetensors", "modeling_befit.py"}
    back = befit.load(tmp_path)
    assert back.dtype == torch.bfloat16 and not back.training
    assert all(torch.equal(tensor, child.state_dict()[name]) for name, tensor in back.state_dict().items())
    assert load(tmp_path, dtype=torch.float32).dtype == torch.float32


@pytest.mark.parametrize("family", ["llama", tiny.HYBRID])
def test_code_that_came_with_the_parent_does_not_go_with_the_child(family: str, tmp_path: Path) -> None:
    """Checkpoints older than their family in transformers name files of their own, which a child does not have."""
    original = tiny.original(family)
    original.config.auto_map = {"AutoConfig": "configuration_own.OwnConfig", "AutoModelForCausalLM": "own.Own"}
    save(from_parent(original), tmp_path)
    loader: Any = AutoModelForCausalLM
    again = loader.from_pretrained(tmp_path, trust_remote_code=True)
    with torch.no_grad():
        assert again(tiny.tokens()).logits.equal(original(tiny.tokens()).logits)


def test_what_is_no_child_is_refused(tmp_path: Path) -> None:
    tiny.original().save_pretrained(tmp_path)
    with pytest.raises(UnsupportedModel, match=r"holds \['LlamaForCausalLM'\], no befit child; load it with"):
        load(tmp_path)
    with pytest.raises(UnsupportedModel, match=r"has no config\.json"):
        load(tmp_path / "nowhere")


def test_a_child_with_missing_weights_is_refused(tmp_path: Path) -> None:
    """transformers would fill them with random numbers."""
    save(build(config_for(tiny.config(), ARCH), device="cpu"), tmp_path)
    other = build(config_for(tiny.config(), DecoderArch(blocks=(ARCH.blocks[1], ARCH.blocks[0]))), device="cpu")
    other.config.save_pretrained(tmp_path)
    with pytest.raises(UnsupportedModel, match=r"do not fit its config\.json"):
        load(tmp_path)
