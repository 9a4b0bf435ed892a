"""Qwen 3 (dense): RMSNorm on queries and keys over head_dim, which is not hidden / heads; optional attention biases."""

from typing import Any

from befit.arch.decoder import DecoderShape
from befit.lm.family import Family, shape_of


def describe(config: Any) -> DecoderShape:
    """One flag for all four attention biases; q_norm and k_norm always."""
    bias = config.attention_bias
    return shape_of(config, qkv_bias=bias, o_bias=bias, mlp_bias=False, qk_norm=True)


FAMILY = Family(model_type="qwen3", describe=describe)
