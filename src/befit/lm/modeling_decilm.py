"""A `nemotron-nas` checkpoint as a transformers model: beside `modeling_befit`, what befit's exports of that form carry.

Engines that serve the form (vLLM, SGLang, TensorRT-LLM) bring their own model and read only the configuration; this is for
transformers, so that the same folder gives the same logits there.
"""

from typing import Any

from torch import nn
from transformers import LlamaConfig, MistralConfig, PreTrainedModel, Qwen2Config

from .configuration_decilm import DeciLMConfig
from .modeling_befit import BefitForCausalLM, BefitModel

FAMILIES: dict[str, Any] = {"llama": LlamaConfig, "mistral": MistralConfig, "qwen2": Qwen2Config}
"""Whose attention and FFN the layers are, by `parent_family`."""

OWN = ("block_configs", "parent_family", "model_type", "architectures", "auto_map", "per_layer_config", "qkv_bias")
"""Keys that mean nothing to the parent's family."""


def layered(config: Any) -> Any:
    """The same network as the parent family's configuration with transformers' `per_layer_config`."""
    told = {name: value for name, value in config.to_dict().items() if name not in OWN}
    found = FAMILIES[config.parent_family](**told | {"sliding_window": None, "linear": []})
    found.per_layer_config = {i: _layer(config, block) for i, block in enumerate(config.block_configs)}
    found._attn_implementation = config._attn_implementation
    return found


def _layer(config: Any, block: Any) -> dict[str, Any]:
    skip = [name for name, half in (("attention", block.attention), ("mlp", block.ffn)) if half.no_op]
    own: dict[str, Any] = {"linear": [], "num_key_value_heads": 0, "intermediate_size": 0}
    if not block.attention.no_op:
        own["num_key_value_heads"] = config.num_attention_heads // block.attention.n_heads_in_group
    if not block.ffn.no_op:
        own["intermediate_size"] = block.ffn.intermediate_size
    return own | ({"skip": skip} if skip else {})


class DeciLMForCausalLM(BefitForCausalLM):
    """A causal language model as `config.block_configs` says."""

    config_class = DeciLMConfig

    def __init__(self, config: Any) -> None:
        PreTrainedModel.__init__(self, config)
        self.model = BefitModel(layered(config))
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()
