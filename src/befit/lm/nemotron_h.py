"""Nemotron-H: Mamba-2, attention and FFN layers in any order, each layer one of the three; no rotary embedding, no gate."""

from typing import Any

from befit.arch.decoder import Attention, Block, DecoderArch, DecoderShape, Ffn, Mamba, MambaShape, NoOp
from befit.errors import UnsupportedModel
from befit.lm.family import Family, refuse_unkept


def describe(config: Any) -> DecoderShape:
    """Raises `UnsupportedModel` for a layer that is a mixture of experts, and for what every family refuses."""
    refuse_unkept(config)
    return DecoderShape(
        family=config.model_type,
        vocab=config.vocab_size,
        hidden=config.hidden_size,
        heads=config.num_attention_heads,
        head_dim=config.head_dim,
        tied=False,  # the family's class never ties, whatever its configuration says
        mlp_bias=config.mlp_bias,
        gated=False,
        mamba=MambaShape(
            head_dim=config.mamba_head_dim,
            groups=config.n_groups,
            state=config.ssm_state_size,
            kernel=config.conv_kernel,
            conv_bias=config.use_conv_bias,
            bias=config.use_bias,
        ),
        arch=DecoderArch(blocks=tuple(_block(config, i, kind) for i, kind in enumerate(config.layers_block_type))),
    )


def _block(config: Any, index: int, kind: str) -> Block:
    match kind:
        case "linear_attention" | "mamba":
            return Block(attention=Mamba(heads=config.mamba_num_heads), ffn=NoOp())
        case "full_attention" | "attention":
            return Block(attention=Attention(kv_heads=config.num_key_value_heads), ffn=NoOp())
        case "mlp":
            return Block(attention=NoOp(), ffn=Ffn(width=config.intermediate_size))
    raise UnsupportedModel(
        f"layer {index} of the parent is {kind!r}; of nemotron_h befit knows Mamba-2, attention and mlp layers"
    )


FAMILY = Family(
    model_type="nemotron_h",
    describe=describe,
    single=True,
    embedding="model.embeddings",
    final_norm="model.norm_f",
    attention_norm="norm",
    ffn_norm="norm",
    query="mixer.q_proj",
    key="mixer.k_proj",
    value="mixer.v_proj",
    out="mixer.o_proj",
    up="mixer.up_proj",
    down="mixer.down_proj",
)
