"""Mistral 7B, Nemo, Small: Llama's form without biases, head_dim of its own, a sliding window in every layer if one is set."""

from typing import Any

from befit.arch.decoder import DecoderShape
from befit.lm.family import Family, shape_of


def describe(config: Any) -> DecoderShape:
    """No biases anywhere."""
    return shape_of(config, qkv_bias=False, o_bias=False, mlp_bias=False, qk_norm=False)


FAMILY = Family(model_type="mistral", describe=describe)
