"""Sizes of the embedded parents, and models of these sizes with random weights: a Llama and a hybrid Nemotron-H."""

import math
from dataclasses import dataclass
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM, NemotronHConfig, NemotronHForCausalLM

from befit.lm.corpus import END_ID


@dataclass(frozen=True, kw_only=True)
class ModelShape:
    """Sizes of a Llama-architecture model; the defaults are the embedded parent's (3.84 million parameters)."""

    hidden: int = 192
    """Width of the residual stream."""
    layers: int = 8
    """Decoder layers."""
    heads: int = 8
    """Query heads; head_dim is hidden / heads."""
    kv_heads: int = 4
    """Key/value heads; divides heads."""
    ffn: int = 512
    """Intermediate neurons of each FFN."""
    positions: int = 2048
    """Longest context the configuration admits."""

    def __post_init__(self) -> None:
        """Refuse sizes that do not divide."""
        if self.hidden % self.heads or self.heads % self.kv_heads:
            raise ValueError(f"hidden must divide by heads, heads by kv_heads; got {self}")


@dataclass(frozen=True, kw_only=True)
class HybridShape:
    """Sizes of a NemotronH-architecture model; the defaults are the embedded hybrid parent's (3.57 million parameters)."""

    pattern: str = "M-M-*M-M-M*-M-M-"
    """One letter a layer: M is Mamba-2, * attention, - an FFN."""
    hidden: int = 160
    """Width of the residual stream."""
    heads: int = 8
    """Query heads."""
    kv_heads: int = 4
    """Key/value heads; divides heads."""
    head_dim: int = 16
    """Channels of an attention head."""
    ffn: int = 640
    """Neurons of each FFN."""
    mamba_heads: int = 8
    """Heads of each Mamba-2 mixer; a multiple of groups."""
    mamba_head_dim: int = 32
    """Channels of a Mamba head."""
    groups: int = 2
    """SSM groups."""
    state: int = 32
    """SSM state of a channel."""
    positions: int = 2048
    """Longest context the configuration admits."""

    def __post_init__(self) -> None:
        """Refuse sizes that do not divide and letters that say nothing."""
        if self.heads % self.kv_heads or self.mamba_heads % self.groups or not set(self.pattern) <= set("M*-"):
            raise ValueError(
                f"heads must divide by kv_heads, mamba_heads by groups, and pattern consist of M, * and -; got {self}"
            )


def build(shape: ModelShape | HybridShape, vocab: int) -> Any:
    """A model with random weights in fp32: normal of standard deviation 0.02, projections back into the residual
    stream scaled down by the square root of how many there are (GPT-2, Radford et al. 2019, section 2.3); the numbers
    of each Mamba head as transformers' class draws them.
    """
    if isinstance(shape, HybridShape):
        model: Any = NemotronHForCausalLM(_hybrid_config(shape, vocab))
        # Decoding has no lower limit in any engine; from here on the scan has none that matters either.
        model.config.time_step_min = 1e-6
        ends, additions = ("o_proj.weight", "down_proj.weight"), len(shape.pattern)  # the class scales out_proj itself
    else:
        model = LlamaForCausalLM(_dense_config(shape, vocab))
        ends, additions = ("o_proj.weight", "down_proj.weight"), 2 * shape.layers
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if name.endswith(ends):
                weight.div_(math.sqrt(additions))
    return model


def _dense_config(shape: ModelShape, vocab: int) -> LlamaConfig:
    return LlamaConfig(
        vocab_size=vocab,
        hidden_size=shape.hidden,
        intermediate_size=shape.ffn,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.kv_heads,
        head_dim=shape.hidden // shape.heads,
        max_position_embeddings=shape.positions,
        rms_norm_eps=1e-5,
        rope_parameters={"rope_type": "default", "rope_theta": 10_000.0},
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=END_ID,
        pad_token_id=END_ID,
    )


def _hybrid_config(shape: HybridShape, vocab: int) -> NemotronHConfig:
    kinds = {"M": "linear_attention", "*": "full_attention", "-": "mlp"}
    return NemotronHConfig(
        vocab_size=vocab,
        hidden_size=shape.hidden,
        layers_block_type=[kinds[letter] for letter in shape.pattern],
        intermediate_size=shape.ffn,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.kv_heads,
        head_dim=shape.head_dim,
        mamba_num_heads=shape.mamba_heads,
        mamba_head_dim=shape.mamba_head_dim,
        n_groups=shape.groups,
        ssm_state_size=shape.state,
        chunk_size=64,
        max_position_embeddings=shape.positions,
        bos_token_id=None,
        eos_token_id=END_ID,
        pad_token_id=END_ID,
    )
