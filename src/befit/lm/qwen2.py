"""Qwen 2 and 2.5: biases on queries, keys and values only; sliding windows in the layers that `layer_types` names."""

from typing import Any

from befit.arch.decoder import DecoderShape
from befit.lm.family import Family, shape_of


def describe(config: Any) -> DecoderShape:
    """The q, k and v biases are part of the architecture, not of the configuration."""
    return shape_of(config, qkv_bias=True, o_bias=False, mlp_bias=False, qk_norm=False)


FAMILY = Family(model_type="qwen2", describe=describe)
