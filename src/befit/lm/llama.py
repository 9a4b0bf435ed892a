"""Llama 2, 3, 3.1, 3.2 and everything that uses their form: GQA, gated SiLU FFN, optional biases."""

from typing import Any

from befit.arch.decoder import DecoderShape
from befit.lm.family import Family, shape_of


def describe(config: Any) -> DecoderShape:
    """One flag for all four attention biases, one for the three of the FFN."""
    bias = config.attention_bias
    return shape_of(config, qkv_bias=bias, o_bias=bias, mlp_bias=config.mlp_bias, qk_norm=False)


FAMILY = Family(model_type="llama", describe=describe)
