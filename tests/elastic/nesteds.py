"""Tiny nested models with random weights and a router that prefers something, as they are after training."""

from pathlib import Path
from typing import Any

import torch
from tests import members
from transformers import AutoTokenizer

import tiny
from befit.arch.member import Member, cut_shape, whole
from befit.cost.count import Cost, count
from befit.cost.workload import Workload
from befit.elastic.budgets import Price, parse_targets
from befit.elastic.gains import Gains
from befit.elastic.nested import Nested, write_nested
from befit.elastic.router import Router
from befit.elastic.space import NestedSpace, default_space
from befit.lm.parent import EMBEDDED

WORKLOAD = Workload(batch=2, prompt=16, generate=8, weights="fp32", cache="fp32")


def space_of(family: str, parent: members.Parent, *, ffn_per_layer: bool = False) -> NestedSpace:
    """All axes and depth; a hybrid's attention layers never go."""
    kinds = getattr(parent.config, "layer_types", None) if family == "nemotron_h" else None
    removal = [i for i in (4, 0, 1, 5) if kinds is None or kinds[i] != "full_attention"]
    return default_space(parent.net.shape, tuple(removal), least=0.4, options=4, ffn_per_layer=ffn_per_layer)


def nested_of(
    family: str = "nemotron_h",
    budgets: str = "100%, 75%, 50%",
    *,
    gains: bool = False,
    ffn_per_layer: bool = False,
    price: Price | None = None,
    **overrides: Any,
) -> Nested:
    """A parent of six layers and everything that belongs to a nested model of it."""
    parent = members.parent_of(tiny.config(family, 6, **overrides))
    shape, net = parent.net.shape, parent.net
    space = space_of(family, parent, ffn_per_layer=ffn_per_layer)
    own = count(shape, shape.arch, WORKLOAD)
    costs: dict[str, float] = {"params": own.params, "memory_bytes": own.memory_bytes}
    if price is not None:
        costs["latency_ms"] = price(whole(shape))
    targets = parse_targets(budgets, costs)
    shares = [target.share for target in targets]
    router = Router(space, shares, width=8, price=price)
    generator = torch.Generator().manual_seed(1)
    tuned = Gains(shape, net.family, shares) if gains else None
    with torch.no_grad():
        for parameter in router.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator))
        if tuned is not None:
            tuned.values.mul_(0.7 + 0.6 * torch.rand(tuned.values.shape, generator=generator))
    return Nested(
        net=net,
        config=parent.config,
        space=space,
        targets=targets,
        workload=WORKLOAD,
        router=router,
        gains=tuned,
        weights=parent.weights,
        price=price,
    )


def tokenizer() -> Any:
    return AutoTokenizer.from_pretrained(EMBEDDED)


def written(folder: Path, nested: Nested) -> Path:
    """A run directory with the nested checkpoint inside."""
    write_nested(folder / "run" / "nested", nested, tokenizer())
    return folder / "run"


def costs(nested: Nested, member: Member, workload: Workload = WORKLOAD) -> Cost:
    """Counted from the member's own shape."""
    shape = cut_shape(nested.net.shape, member)
    return count(shape, shape.arch, workload)
