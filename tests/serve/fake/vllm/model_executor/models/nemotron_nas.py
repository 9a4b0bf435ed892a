"""Models."""


class DeciLMForCausalLM:
    pass
