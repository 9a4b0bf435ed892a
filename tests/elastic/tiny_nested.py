"""A tiny nested model of a random parent, untrained."""

from collections.abc import Sequence
from random import Random
from typing import Any

import members
from befit.cost.workload import Workload
from befit.elastic.budgets import Target, price_of
from befit.elastic.gains import Gains
from befit.elastic.nested import Nested
from befit.elastic.router import Router
from befit.elastic.space import default_space

HYBRID: dict[str, Any] = {
    "vocab_size": 48,
    "hidden_size": 32,
    "layers_block_type": ["linear_attention", "mlp", "full_attention", "linear_attention", "mlp"],
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "intermediate_size": 64,
    "mlp_hidden_act": "relu2",
    "mamba_num_heads": 8,
    "mamba_head_dim": 8,
    "n_groups": 2,
    "ssm_state_size": 16,
    "conv_kernel": 4,
    "chunk_size": 16,
    "time_step_min": 1e-30,
    "layer_norm_epsilon": 1e-5,
}
DENSE: dict[str, Any] = {
    "vocab_size": 48,
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "intermediate_size": 64,
    "hidden_act": "silu",
    "rms_norm_eps": 1e-6,
    "tie_word_embeddings": True,
    "max_position_embeddings": 64,
}


def nested(
    kind: str = "hybrid", shares: Sequence[float] = (1.0, 0.75, 0.5), *, gains: bool = False, seed: int = 0
) -> Nested:
    """Parameters are the cost; the second-to-last layer goes first, then the first."""
    draw = Random(0)
    config = members.hybrid_config(draw, **HYBRID) if kind == "hybrid" else members.dense_config(draw, "qwen2", **DENSE)
    parent = members.parent_of(config, seed)
    shape, family = parent.net.shape, parent.net.family
    space = default_space(shape, (shape.layers - 2, 0))
    price = price_of(shape, "params", Workload())
    whole = price(space.whole)
    return Nested(
        net=parent.net,
        config=config,
        space=space,
        targets=tuple(Target(cost="params", share=share, limit=share * whole) for share in shares),
        workload=Workload(),
        router=Router(space, shares),
        gains=Gains(shape, family, shares) if gains else None,
        weights={name: weight.detach().clone() for name, weight in parent.weights.items()},
    )
