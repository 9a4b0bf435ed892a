"""What a configuration says about its model, and what befit refuses."""

from typing import Any

import pytest
from transformers import AutoConfig, LlamaConfig, Qwen2Config

import tiny
from befit.arch.decoder import Attention, Block, DecoderArch, Ffn, Mamba, MambaShape, NoOp
from befit.errors import UnsupportedModel
from befit.lm.child import config_for
from befit.lm.families import family_of


def describe(config: Any) -> Any:
    return family_of(config).describe(config)


def test_llama_32_1b() -> None:
    """Sizes as in the published config.json."""
    shape = describe(
        LlamaConfig(
            vocab_size=128256,
            hidden_size=2048,
            intermediate_size=8192,
            num_hidden_layers=16,
            num_attention_heads=32,
            num_key_value_heads=8,
            head_dim=64,
            tie_word_embeddings=True,
        )
    )
    assert (shape.family, shape.vocab, shape.hidden, shape.heads, shape.head_dim) == ("llama", 128256, 2048, 32, 64)
    assert shape.tied and not (shape.qkv_bias or shape.o_bias or shape.mlp_bias or shape.qk_norm)
    assert shape.layers == 16
    assert set(shape.arch.blocks) == {shape.arch.blocks[0]}
    assert shape.arch.blocks[0].attention == Attention(kv_heads=8) and shape.arch.blocks[0].ffn == Ffn(width=8192)


def test_flags_of_the_families() -> None:
    both = {"attention_bias": True, "mlp_bias": True}
    shapes = {name: describe(tiny.config(name)) for name in tiny.FAMILIES}
    flags = {name: (s.qkv_bias, s.o_bias, s.mlp_bias, s.qk_norm) for name, s in shapes.items()}
    assert flags == {
        "llama": (False, False, False, False),
        "mistral": (False, False, False, False),
        "qwen2": (True, False, False, False),
        "qwen3": (False, False, False, True),
    }
    biased = describe(tiny.config("llama", **both))
    assert (biased.qkv_bias, biased.o_bias, biased.mlp_bias) == (True, True, True)
    biased = describe(tiny.config("qwen3", attention_bias=True))
    assert (biased.qkv_bias, biased.o_bias, biased.mlp_bias) == (True, True, False)
    assert describe(tiny.config("llama", head_dim=None)).head_dim == 8


def test_a_hybrid_is_told_layer_by_layer() -> None:
    plain = tiny.config(tiny.HYBRID, 5, use_bias=True, tie_word_embeddings=True, sliding_window=6)
    shape = describe(plain)
    mamba, ffn, attention = (Block(attention=Mamba(heads=4), ffn=NoOp()), Block(attention=NoOp(), ffn=Ffn(width=48)),
                             Block(attention=Attention(kv_heads=2), ffn=NoOp()))  # fmt: skip
    assert shape.arch.blocks == (mamba, ffn, attention, ffn, mamba)
    assert shape.mamba == MambaShape(head_dim=8, groups=2, state=8, kernel=4, conv_bias=True, bias=True)
    assert not shape.gated and not shape.tied, "its class neither ties nor windows, whatever the configuration says"


def test_experts_are_refused_by_their_layer() -> None:
    with pytest.raises(UnsupportedModel, match=r"layer 1 of the parent is 'moe'; of nemotron_h befit knows"):
        describe(tiny.config(tiny.HYBRID, layers_block_type=["full_attention", "moe"]))


def windows(config: Any) -> list[int | None]:
    return [block.attention.window for block in describe(config).arch.blocks]


def test_windows() -> None:
    assert windows(tiny.config("llama")) == [None] * 4
    assert windows(tiny.config("mistral")) == [6] * 4
    assert windows(tiny.config("mistral", sliding_window=None)) == [None] * 4
    assert windows(tiny.config("qwen2", sliding_window=6)) == [None] * 4, "set but not used"
    some = {"use_sliding_window": True, "sliding_window": 6, "max_window_layers": 3}
    assert windows(tiny.config("qwen2", **some)) == [None, None, None, 6]
    assert windows(tiny.config("qwen3", **some)) == [None, None, None, 6]


@pytest.mark.parametrize("name", ["gpt2", "mixtral", "gemma3_text", "qwen3_moe"])
def test_other_families_are_named(name: str) -> None:
    config = AutoConfig.for_model(name)
    config.architectures = ["SomeForCausalLM"]
    with pytest.raises(UnsupportedModel) as refused:
        family_of(config)
    assert f"family '{name}' (SomeForCausalLM)" in str(refused.value)
    assert "supported families: llama, mistral, nemotron_h, qwen2, qwen3" in str(refused.value)


def test_quantised_parent() -> None:
    config = tiny.config()
    config.quantization_config = {"quant_method": "gptq", "bits": 4}
    with pytest.raises(UnsupportedModel, match="the parent is quantised; give befit the full-precision checkpoint"):
        describe(config)


def test_unknown_layer_type() -> None:
    config = Qwen2Config(num_hidden_layers=2, layer_types=["full_attention", "chunked_attention"])
    with pytest.raises(UnsupportedModel, match="layer 1 of the parent is 'chunked_attention'; befit knows"):
        describe(config)


def test_a_child_is_no_parent() -> None:
    arch = describe(tiny.config()).arch
    empty = Block(attention=NoOp(), ffn=NoOp())
    child = config_for(tiny.config(), DecoderArch(blocks=(*arch.blocks[:3], empty)))
    with pytest.raises(UnsupportedModel, match=r"already has per-layer overrides; load a befit child with befit\.load"):
        describe(child)
