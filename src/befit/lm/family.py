"""What a family of language models must tell befit: how its configuration describes the network, and what its parts are called.

A family is one small file with one `Family` value (see `befit.lm.llama`), one line in `befit.lm.families` and one row of
classes in `befit.lm.modeling_befit.PARTS`. Listing it in `tests/laws/families.py` then tests everything befit does with it.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from befit.arch.decoder import Attention, Block, DecoderArch, DecoderShape, Ffn
from befit.errors import UnsupportedModel


@dataclass(frozen=True, kw_only=True)
class Family:
    """Where things are in the decoder models of one `model_type`. Names are relative to a decoder layer, but for two."""

    model_type: str
    """transformers' name of the family, as in config.json."""
    describe: Callable[[Any], DecoderShape]
    """The shape told by a transformers configuration; raises `UnsupportedModel` for a feature befit does not keep."""
    single: bool = False
    """Whether a layer is one mixer or one FFN, as in a hybrid, instead of one after the other."""
    embedding: str = "model.embed_tokens"
    """In the whole model."""
    final_norm: str = "model.norm"
    """In the whole model."""
    attention_norm: str = "input_layernorm"
    """Before the mixer."""
    ffn_norm: str = "post_attention_layernorm"
    query: str = "self_attn.q_proj"
    key: str = "self_attn.k_proj"
    value: str = "self_attn.v_proj"
    out: str = "self_attn.o_proj"
    mamba: str = "mixer"
    """The Mamba-2 mixer, in families that have one."""
    gate: str = "mlp.gate_proj"
    """In families whose FFN has a gate."""
    up: str = "mlp.up_proj"
    down: str = "mlp.down_proj"


def shape_of(config: Any, *, qkv_bias: bool, o_bias: bool, mlp_bias: bool, qk_norm: bool) -> DecoderShape:
    """The shape of a decoder whose configuration uses transformers' common names.

    `head_dim` may be given apart from hidden / heads; a sliding window counts where `layer_types` says so, or in every
    layer of a family that has no `layer_types`.
    """
    refuse_unkept(config)
    windows = [_window(config, i) for i in range(config.num_hidden_layers)]
    ffn = Ffn(width=config.intermediate_size)
    blocks = tuple(
        Block(attention=Attention(kv_heads=config.num_key_value_heads, window=window), ffn=ffn) for window in windows
    )
    return DecoderShape(
        family=config.model_type,
        vocab=config.vocab_size,
        hidden=config.hidden_size,
        heads=config.num_attention_heads,
        head_dim=getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads,
        tied=config.tie_word_embeddings,
        qkv_bias=qkv_bias,
        o_bias=o_bias,
        mlp_bias=mlp_bias,
        qk_norm=qk_norm,
        arch=DecoderArch(blocks=blocks),
    )


def refuse_unkept(config: Any) -> None:
    """Raise `UnsupportedModel` for what befit would lose in any family: quantised weights, per-layer overrides."""
    if getattr(config, "quantization_config", None) is not None:
        raise UnsupportedModel(
            "the parent is quantised; give befit the full-precision checkpoint and quantise the child"
        )
    if config.is_heterogeneous:
        raise UnsupportedModel("the parent already has per-layer overrides; load a befit child with befit.load instead")


def _window(config: Any, index: int) -> int | None:
    types = getattr(config, "layer_types", None)
    if types is not None and types[index] not in ("full_attention", "sliding_attention"):
        raise UnsupportedModel(
            f"layer {index} of the parent is {types[index]!r}; befit knows full_attention and sliding_attention"
        )
    if types is not None and types[index] == "full_attention":
        return None
    return getattr(config, "sliding_window", None)
