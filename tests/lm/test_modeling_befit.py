"""What the module promises beyond the families' laws: inputs it refuses, outputs others read, standing alone."""

import ast
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from transformers import DynamicCache, StaticCache

import tiny
from befit.arch.decoder import Attention, Block, DecoderArch, Ffn, Linear, NoOp
from befit.lm import modeling_befit, modeling_befit_hybrid
from befit.lm.child import build, config_for
from befit.lm.modeling_befit import BefitForCausalLM, cache_numbers

ARCH = DecoderArch(
    blocks=(
        Block(attention=Linear(), ffn=Ffn(width=16)),
        Block(attention=Attention(kv_heads=1, window=4), ffn=NoOp()),
        Block(attention=NoOp(), ffn=Linear()),
        Block(attention=Attention(kv_heads=2), ffn=Ffn(width=48)),
    )
)


@pytest.fixture
def child() -> BefitForCausalLM:
    model = build(config_for(tiny.config(), ARCH), device="cpu")
    tiny.randomise(model)
    return model.requires_grad_(False)


@pytest.mark.parametrize(("module", "beside"), [(modeling_befit, set()), (modeling_befit_hybrid, {"modeling_befit"})])
def test_the_files_stand_alone(module: ModuleType, beside: set[str]) -> None:
    """Nothing but torch and transformers; the hybrid's file needs the other, which travels with it."""
    imported: set[str] = set()
    for node in ast.walk(ast.parse(Path(module.__file__ or "").read_text())):
        if isinstance(node, ast.Import):
            imported |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert (node.module in beside) == bool(node.level)
            imported.add((node.module or "").partition(".")[0])
    assert imported <= {"collections", "dataclasses", "typing", "torch", "transformers", *beside}


def test_absent_parts_have_no_tensors(child: BefitForCausalLM) -> None:
    names = {name.removeprefix("model.layers.") for name in child.state_dict() if "layers" in name}
    assert {name for name in names if name.startswith("2.")} == {
        "2.post_attention_layernorm.weight",
        "2.mlp.linear_mlp.weight",
    }
    assert {name for name in names if name.startswith("0.") and "mlp" not in name} == {
        "0.input_layernorm.weight",
        "0.self_attn.linear_attn.weight",
        "0.post_attention_layernorm.weight",
    }
    assert not [name for name in names if name.startswith(("1.mlp", "1.post"))]


def test_caches_are_numbered_without_gaps(child: BefitForCausalLM) -> None:
    assert cache_numbers(child.config) == [0, 0, 1, 1]
    for cache in (DynamicCache(config=child.config), StaticCache(child.config, max_cache_len=16), DynamicCache()):
        child(tiny.tokens(1, 9), past_key_values=cache)
        assert cache.get_seq_length() == 9
        layers: list[Any] = cache.layers
        assert [layer.is_sliding for layer in layers] == [True, False]


def test_outputs_others_read(child: BefitForCausalLM) -> None:
    tokens = tiny.tokens(2, 9)
    out = child(tokens, labels=tokens, output_hidden_states=True)
    assert out.hidden_states is not None and len(out.hidden_states) == 5
    assert torch.equal(out.hidden_states[0], child.get_input_embeddings()(tokens))
    assert torch.equal(child.get_output_embeddings()(out.hidden_states[-1]), out.logits)
    wanted = torch.nn.functional.cross_entropy(out.logits[:, :-1].flatten(0, 1), tokens[:, 1:].flatten())
    torch.testing.assert_close(out.loss, wanted)
    torch.testing.assert_close(child(tokens, logits_to_keep=2).logits, out.logits[:, -2:])
    torch.testing.assert_close(child(tokens, logits_to_keep=torch.tensor([3])).logits, out.logits[:, 3:4])
    embedded = child(inputs_embeds=child.model.embed_tokens(tokens))
    torch.testing.assert_close(embedded.logits, out.logits)


def test_inputs_that_make_no_sense(child: BefitForCausalLM) -> None:
    tokens = tiny.tokens(2, 9)
    with pytest.raises(ValueError, match="either input_ids or inputs_embeds"):
        child()
    with pytest.raises(ValueError, match="either input_ids or inputs_embeds"):
        child(tokens, inputs_embeds=child.model.embed_tokens(tokens))
    with pytest.raises(ValueError, match=r"attention_mask must have the shape \(B, K\), got \(2, 1, 9, 9\)"):
        child(tokens, attention_mask=torch.ones(2, 1, 9, 9))
    with pytest.raises(ValueError, match=r"flash_attention_2|Flash Attention"):
        BefitForCausalLM._from_config(child.config, attn_implementation="flash_attention_2")


def test_every_query_may_look_somewhere(child: BefitForCausalLM) -> None:
    """Left padding has queries with nothing to see; a softmax over nothing is not a number on some devices."""
    mask = torch.ones(2, 9, dtype=torch.long)
    mask[1, :4] = 0
    masks = child.model.begin(torch.zeros(2, 9, 32), attention_mask=mask).masks
    assert masks.keys() == {4, None}
    for seen in masks.values():
        assert seen is not None and seen.any(-1).all()
        assert not seen[1, 0, 4:, :4].any() and not seen[0, 0].triu(1).any()


def test_positions_may_be_given(child: BefitForCausalLM) -> None:
    """Packed sequences give their own; rotary embedding is relative, so a shift changes nothing."""
    tokens = tiny.tokens(1, 9)
    shifted = child(tokens, position_ids=torch.arange(9)[None] + 20).logits
    torch.testing.assert_close(shifted, child(tokens).logits, rtol=0, atol=1e-4)
    stretched = child(tokens, position_ids=torch.arange(9)[None] * 3).logits
    assert not torch.allclose(stretched, child(tokens).logits, atol=1e-3)
