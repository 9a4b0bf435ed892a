"""Random parents of every family, random members of them, and the plain transformers model that a member must equal.

Everything is drawn from a `random.Random`: hypothesis gives one that it can shrink, the benchmark one with a seed. The plain
model is built from transformers' own configuration with smaller numbers, and the weights are cut by lists of indices, axis
by axis as the tensors of transformers' classes are laid out: neither uses the code that is tested.
"""

import copy
import math
from collections.abc import Mapping
from dataclasses import dataclass
from random import Random
from typing import Any

import torch
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    LlamaConfig,
    MistralConfig,
    NemotronHConfig,
    Qwen2Config,
    Qwen3Config,
)

import tiny
from befit.arch.decoder import Attention, DecoderShape
from befit.arch.member import Member, whole
from befit.lm.families import family_of
from befit.lm.network import Gates, Network, network_of

GROUPS = (1, 2, 4, 8)
STEPS = (1e-30, 0.001, 0.5)
"""Smallest time steps: none, transformers' default, and one that many tokens meet (the class cannot be built with 0)."""
DENSE: dict[str, Any] = {"llama": LlamaConfig, "mistral": MistralConfig, "qwen2": Qwen2Config, "qwen3": Qwen3Config}
ROPES: tuple[dict[str, Any], ...] = (
    {"rope_type": "default", "rope_theta": 10000.0},
    {"rope_type": "linear", "rope_theta": 500.0, "factor": 2.0},
    {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 4.0},
    {"rope_type": "yarn", "rope_theta": 1000.0, "factor": 1.5, "original_max_position_embeddings": 8},
    {
        "rope_type": "llama3",
        "rope_theta": 10000.0,
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8,
    },
)
"""Ways of spreading the angles, which must matter within some twenty tokens."""


@dataclass(frozen=True, kw_only=True)
class Parent:
    """transformers' own model of a configuration, and befit's view of it."""

    config: Any
    model: Any
    net: Network

    @property
    def weights(self) -> dict[str, Tensor]:
        """Names as in memory; a tied head is not told twice."""
        state = self.model.state_dict()
        if self.net.shape.tied:
            del state["lm_head.weight"]
        return state


def parent_of(config: Any, seed: int = 0) -> Parent:
    model = AutoModelForCausalLM.from_config(config).eval()
    tiny.randomise(model, seed)
    return Parent(config=config, model=model, net=network_of(config, family_of(config)))


def hybrid_config(draw: Random, **overrides: Any) -> NemotronHConfig:
    """Mamba-2, attention and FFN layers in any order; time steps are often below a lower limit of 0.5.

    At least one layer is attention: without one, transformers' cache cannot tell its length, and its class not generate.
    """
    groups, kv_heads = draw.choice(GROUPS), draw.randint(1, 3)
    kinds = [draw.choice(["linear_attention", "linear_attention", "full_attention", "mlp"]) for _ in range(5)]
    kinds = ["full_attention", *kinds[: draw.randint(0, 4)]]
    draw.shuffle(kinds)
    common = {
        "vocab_size": draw.randint(11, 30),
        "hidden_size": draw.randint(2, 24),
        "layers_block_type": kinds,
        "num_attention_heads": kv_heads * draw.randint(1, 3),
        "num_key_value_heads": kv_heads,
        "head_dim": draw.randint(1, 6),
        "intermediate_size": draw.randint(1, 24),
        "mlp_hidden_act": draw.choice(["relu2", "relu2", "silu", "gelu"]),
        "mlp_bias": draw.random() < 0.5,
        "mamba_num_heads": groups * draw.randint(1, 4),
        "mamba_head_dim": draw.randint(1, 6),
        "n_groups": groups,
        "ssm_state_size": draw.randint(1, 8),
        "conv_kernel": draw.randint(2, 4),
        "chunk_size": draw.choice([2, 4, 16]),
        "use_conv_bias": draw.random() < 0.5,
        "use_bias": draw.random() < 0.5,
        "time_step_min": draw.choice(STEPS),
        "layer_norm_epsilon": draw.choice([1e-5, 1e-2]),
        "tie_word_embeddings": False,
        "pad_token_id": None,
    }
    return NemotronHConfig(**(common | overrides))


def dense_config(draw: Random, family: str | None = None, **overrides: Any) -> Any:
    """Any of the four dense families with its biases, windows, tied heads and rotary embeddings."""
    family = family or draw.choice(sorted(DENSE))
    kv_heads, layers = draw.randint(1, 3), draw.randint(1, 4)
    common: dict[str, Any] = {
        "vocab_size": draw.randint(11, 30),
        "hidden_size": draw.randint(2, 24),
        "intermediate_size": draw.randint(1, 24),
        "num_hidden_layers": layers,
        "num_attention_heads": kv_heads * draw.randint(1, 3),
        "num_key_value_heads": kv_heads,
        "head_dim": 2 * draw.randint(2, 5),
        "hidden_act": draw.choice(["silu", "silu", "gelu"]),
        "rms_norm_eps": draw.choice([1e-6, 1e-2]),
        "rope_parameters": dict(draw.choice(ROPES)),
        "max_position_embeddings": 12,
        "tie_word_embeddings": draw.random() < 0.5,
        "bos_token_id": None,
        "eos_token_id": None,
        "pad_token_id": None,
    }
    if family in ("llama", "qwen3"):
        common["attention_bias"] = draw.random() < 0.5
    if family == "llama":
        common["mlp_bias"] = draw.random() < 0.5
    if family == "mistral":
        common["sliding_window"] = draw.choice([None, 2, 5])
    if family in ("qwen2", "qwen3"):
        common |= {"use_sliding_window": draw.random() < 0.5, "sliding_window": draw.randint(2, 6)}
        common["max_window_layers"] = draw.randint(0, layers)
    if family == "llama":  # its configuration refuses anything else
        common["hidden_size"] = common["num_attention_heads"] * draw.randint(1, 4)
    return DENSE[family](**(common | overrides))


def any_config(draw: Random) -> Any:
    return hybrid_config(draw) if draw.random() < 0.6 else dense_config(draw)


def member_of(draw: Random, shape: DecoderShape) -> Member:
    """Any legal member of `shape`: every axis and the layers at once."""

    def some(most: int) -> int:
        return draw.randint(1, most) if most else 0

    largest, groups = whole(shape), shape.mamba.groups if shape.mamba else 1
    attention = [i for i, block in enumerate(shape.arch.blocks) if isinstance(block.attention, Attention)]
    kept = {draw.choice(attention), *draw.sample(largest.layers, draw.randint(1, largest.depth))}
    kv_heads, heads_per_kv = some(largest.kv_heads), some(largest.heads_per_kv)
    even = kv_heads * heads_per_kv if shape.family == "llama" else 1  # its configuration refuses anything else
    return Member(
        hidden=even * some(largest.hidden // even),
        ffn=some(largest.widest_ffn),
        kv_heads=kv_heads,
        heads_per_kv=heads_per_kv,
        mamba_heads=groups * some(largest.mamba_heads // groups),
        mamba_head_dim=some(largest.mamba_head_dim),
        state=some(largest.state),
        layers=tuple(sorted(kept)),
    )


def plain_config(config: Any, member: Member) -> Any:
    """transformers' configuration of a member whose layers are equally wide."""
    small = copy.deepcopy(config)
    small.hidden_size = member.hidden
    if member.kv_heads:
        head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        small.num_key_value_heads, small.head_dim = member.kv_heads, head_dim
        small.num_attention_heads = member.kv_heads * member.heads_per_kv
    if member.widest_ffn:
        small.intermediate_size = member.widest_ffn
    if config.model_type == "nemotron_h":
        small.layers_block_type = [config.layers_block_type[layer] for layer in member.layers]
        if member.mamba_heads:
            small.mamba_num_heads, small.mamba_head_dim = member.mamba_heads, member.mamba_head_dim
            small.ssm_state_size = member.state
        return small
    small.num_hidden_layers = member.depth
    if getattr(config, "layer_types", None):
        small.layer_types = [config.layer_types[layer] for layer in member.layers]
    return small


def plain(config: Any, member: Member, weights: Mapping[str, Tensor]) -> Any:
    """The member as transformers' own model, loaded strictly with `weights`."""
    model = AutoModelForCausalLM.from_config(plain_config(config, member)).eval()
    state = dict(weights)
    if config.tie_word_embeddings and config.model_type != "nemotron_h":
        state["lm_head.weight"] = state["model.embed_tokens.weight"]
    model.load_state_dict(state, strict=True)
    return model


def by_index(config: Any, member: Member, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The member's weights, picked from the parent's by lists of indices."""
    axes, found = _indices(config, member), dict[str, Tensor]()
    for name, weight in weights.items():
        parts = name.split(".")
        if parts[1] == "layers":
            if int(parts[2]) not in member.layers:
                continue
            parts[2] = str(member.layers.index(int(parts[2])))
        kept = weight
        for place, axis in enumerate(_axes_of(*("", *parts)[-3:])):
            if axis in axes:
                kept = kept.index_select(place, torch.tensor(axes[axis]))
        found[".".join(parts)] = kept
    return found


def _indices(config: Any, member: Member) -> dict[str, list[int]]:
    d = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    per_kv = config.num_attention_heads // config.num_key_value_heads
    query = [g * per_kv + r for g in range(member.kv_heads) for r in range(member.heads_per_kv)]
    axes = {
        "hidden": list(range(member.hidden)),
        "ffn": list(range(member.widest_ffn)),
        "query": [h * d + c for h in query for c in range(d)],
        "kv": list(range(member.kv_heads * d)),
    }
    if not member.mamba_heads:
        return axes
    H, P, G, N = config.mamba_num_heads, config.mamba_head_dim, config.n_groups, config.ssm_state_size
    W = H * P
    heads = [g * (H // G) + i for g in range(G) for i in range(member.mamba_heads // G)]
    inner = [h * P + c for h in heads for c in range(member.mamba_head_dim)]
    state = [g * N + n for g in range(G) for n in range(member.state)]
    convolved = inner + [W + s for s in state] + [W + G * N + s for s in state]
    dt = [2 * W + 2 * G * N + h for h in heads]
    return axes | {
        "heads": heads,
        "inner": inner,
        "convolved": convolved,
        "projected": inner + [W + c for c in convolved] + dt,
    }


def _axes_of(owner: str, module: str, kind: str) -> tuple[str, ...]:
    if kind in ("A_log", "D", "dt_bias"):
        return ("heads",)
    if module == "norm" and owner == "mixer":
        return ("inner",)
    if module in ("norm", "norm_f", "input_layernorm", "post_attention_layernorm"):
        return ("hidden",)
    rows, columns = {
        "embeddings": ("vocab", "hidden"),
        "embed_tokens": ("vocab", "hidden"),
        "lm_head": ("vocab", "hidden"),
        "q_proj": ("query", "hidden"),
        "k_proj": ("kv", "hidden"),
        "v_proj": ("kv", "hidden"),
        "o_proj": ("hidden", "query"),
        "gate_proj": ("ffn", "hidden"),
        "up_proj": ("ffn", "hidden"),
        "down_proj": ("hidden", "ffn"),
        "in_proj": ("projected", "hidden"),
        "out_proj": ("hidden", "inner"),
        "conv1d": ("convolved", "one"),
    }.get(module, ("", ""))
    return (rows, columns) if kind == "weight" and rows else (rows,)


def gates_of(net: Network, member: Member) -> Gates:
    """Zeros and ones that say over the parent's full width what `member` keeps."""
    most, groups = whole(net.shape), net.shape.mamba.groups if net.shape.mamba else 1

    def ones(kept: int, width: int) -> Tensor | None:
        return (torch.arange(width) < kept).float() if width else None

    return Gates(
        hidden=ones(member.hidden, most.hidden),
        ffn=ones(member.widest_ffn, most.widest_ffn),
        kv=ones(member.kv_heads, most.kv_heads),
        query=ones(member.heads_per_kv, most.heads_per_kv),
        mamba_heads=ones(member.mamba_heads // groups, most.mamba_heads // groups),
        channels=ones(member.mamba_head_dim, most.mamba_head_dim),
        state=ones(member.state, most.state),
        layers=torch.tensor([float(layer in member.layers) for layer in range(most.depth)]),
    )


def difference(ours: Tensor, theirs: Tensor) -> float:
    """The largest absolute difference, relative to the largest absolute value where that is above 1."""
    assert ours.shape == theirs.shape
    scale = max(1.0, float(theirs.abs().max()))
    apart = float((ours - theirs).abs().max()) / scale
    return apart if math.isfinite(apart) else math.inf
