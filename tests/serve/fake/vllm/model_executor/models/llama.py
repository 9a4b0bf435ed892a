"""Models."""


class LlamaForCausalLM:
    pass
