"""Tiny random parents of every family, in which every part matters: norms differ from one, biases from zero.

Each family shows what is its own: Mistral a sliding window, Qwen2 biases and a tied head, Qwen3 heads wider than
hidden / heads, Nemotron-H layers of three kinds. Keyword arguments override any value of the transformers configuration.
"""

from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, LlamaConfig, MistralConfig, NemotronHConfig, Qwen2Config, Qwen3Config

from befit.lm.child import from_parent
from befit.lm.modeling_befit import BefitForCausalLM

FAMILIES = ("llama", "mistral", "qwen2", "qwen3")
"""The dense families that befit supports, by transformers' model_type: every layer has attention and an FFN."""

HYBRID = "nemotron_h"
"""The family whose layers are one mixer or one FFN each."""

ALL = (*FAMILIES, HYBRID)

CONFIGS: dict[str, Any] = {
    "llama": LlamaConfig,
    "mistral": MistralConfig,
    "nemotron_h": NemotronHConfig,
    "qwen2": Qwen2Config,
    "qwen3": Qwen3Config,
}

KINDS = {"M": "linear_attention", "*": "full_attention", "-": "mlp"}
"""Layers of a hybrid: Mamba-2, attention, FFN."""

OWN: dict[str, dict[str, Any]] = {
    "llama": {"head_dim": 8},
    "mistral": {"head_dim": 8, "sliding_window": 6},
    "nemotron_h": {
        "head_dim": 8,
        "mamba_num_heads": 4,
        "mamba_head_dim": 8,
        "n_groups": 2,
        "ssm_state_size": 8,
        "chunk_size": 8,
        "time_step_min": 1e-6,  # the family's scan keeps every step above it, its single step does not
    },
    "qwen2": {"tie_word_embeddings": True},
    "qwen3": {"head_dim": 12},
}


def config(family: str = "llama", layers: int = 4, **overrides: Any) -> Any:
    """A transformers configuration: hidden 32, 4 query heads, 2 KV heads, FFN 48, vocabulary 64, untied.

    A hybrid's layers are Mamba-2, FFN, attention, FFN and so on.
    """
    common = {
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": layers,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "vocab_size": 64,
        "max_position_embeddings": 128,
        "tie_word_embeddings": False,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": None,
    }
    if family == HYBRID:
        del common["num_hidden_layers"]
        common["layers_block_type"] = kinds(("M-*-" * layers)[:layers])
    return CONFIGS[family](**(common | OWN[family] | overrides))


def kinds(pattern: str) -> list[str]:
    """`layers_block_type` for a pattern such as M-*-, one letter a layer."""
    return [KINDS[letter] for letter in pattern]


def original(family: str = "llama", layers: int = 4, *, seed: int = 0, **overrides: Any) -> Any:
    """The family's own transformers model with random weights, fp32, in evaluation mode."""
    model = AutoModelForCausalLM.from_config(config(family, layers, **overrides)).eval()
    randomise(model, seed)
    return model


def parent(family: str = "llama", layers: int = 4, *, seed: int = 0, **overrides: Any) -> BefitForCausalLM:
    """The same model as a row of blocks."""
    return from_parent(original(family, layers, seed=seed, **overrides))


def tokens(n: int = 4, t: int = 16, vocab: int = 64, *, seed: int = 0) -> Tensor:
    """Random token numbers (n, t) below `vocab`."""
    return torch.randint(vocab, (n, t), generator=torch.Generator().manual_seed(seed))


def randomise(model: nn.Module, seed: int = 0) -> None:
    """New random weights: matrices that keep the size of their input, norms in 0.5 to 1.5, biases of about 0.1."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            noise = torch.randn(weight.shape, generator=generator)
            if "norm" in name:
                weight.copy_(0.5 + torch.rand(weight.shape, generator=generator))
            elif weight.ndim == 1:
                weight.copy_(0.1 * noise)
            elif "embed" in name:
                weight.copy_(0.4 * noise)
            else:
                weight.copy_(noise / weight.shape[1] ** 0.5)
