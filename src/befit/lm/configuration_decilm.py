"""The configuration of a `nemotron-nas` checkpoint (DeciLMForCausalLM), in which every layer says what it is.

This file stands alone (it imports transformers, nothing of befit and nothing beside it), so that it can travel with a
checkpoint and be read by `AutoConfig.from_pretrained(dir, trust_remote_code=True)`, and so by vLLM, on any machine.

`block_configs` has one entry for each layer, `{"attention": {…}, "ffn": {…}}`. Engines read their values as attributes, and
tell by an attribute that is absent that a value is not given; hence `Section`.
"""

from typing import Any

from transformers import LlamaConfig


class Section(dict[str, Any]):
    """A JSON object whose values are attributes too; one that is not there is an AttributeError."""

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError:
            raise AttributeError(name) from None


class DeciLMConfig(LlamaConfig):
    """A Llama's configuration with `block_configs`; `qkv_bias`, where given, stands before `attention_bias` on q, k and v."""

    model_type = "nemotron-nas"

    def __init__(self, block_configs: list[Any] | None = None, **values: Any) -> None:
        super().__init__(**values)
        self.block_configs = [
            Section({name: Section(half) for name, half in block.items()}) for block in block_configs or []
        ]

    def validate_architecture(self) -> None:
        """Heads may be wider or narrower than hidden / heads: `head_dim` is given."""
