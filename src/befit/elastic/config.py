"""Everything one run of `befit elastic` is asked to do. The run directory keeps it as JSON; `resume` reads it back.

The numbers that come as defaults suit the embedded hybrid parent on a laptop's CPU; for a real model raise the token counts
(Nemotron Elastic trained on 110 billion tokens, contexts of 8,192 and then 49,152).
"""

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from befit.elastic.curriculum import ElasticTraining, parse_stages
from befit.errors import BadData
from befit.lm.depth import Method
from befit.lm.timing import Effort
from befit.rundir import rebuilt


@dataclass(frozen=True, kw_only=True)
class ElasticConfig:
    """Train one nested model from which any size is cut with no further training."""

    parent: str = "befit:hybrid"
    """Checkpoint folder or hub name of a NemotronH, Llama, Mistral, Qwen2 or Qwen3 model; befit:hybrid and befit:dense ship
    with befit."""
    budgets: str = "100%, 75%, 50%"
    """Budgets to train for, all of one cost: shares of the parent's parameters, or "memory=100%, memory=8GiB", or latency."""
    data: str | None = None
    """Text to distil and judge on: .txt, .jsonl, a folder, or a hub dataset; none takes installed documentation."""
    out: Path = Path("runs/elastic")
    """Run directory."""
    workload: str = ""
    """Such as "batch=8,prompt=2048,generate=256", at which memory and latency count."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where to compute and to measure."""
    dtype: Literal["auto", "fp32", "bf16"] = "auto"
    """Format of the nested checkpoint and its cuts; auto is the parent's own. Training keeps fp32 weights."""
    least: float = 0.5
    """The narrowest share of every axis, 0 to 1; budgets far below half need less."""
    ffn_per_layer: bool = False
    """Whether FFN widths may differ from layer to layer; such cuts are no plain checkpoints, `befit cut` says what they are."""
    rank_tokens: int = 16_384
    """Tokens to rank channels, neurons and heads on."""
    depth: Method = "iterative"
    """How layers are ranked; the other measures are computed for comparison."""
    depth_tokens: int = 1_024
    """Tokens to rank layers on, and to score single axes on."""
    held_out: int = 64
    """Held-out sequences, of the longest stage's length, to judge members on."""
    start: Literal["uniform", "greedy", "additive"] = "greedy"
    """The choice that the router sets out from: one ratio of all axes, or by what narrowing each axis alone loses."""
    stages: str | None = None
    """Stages of training, "TOKENS@SEQUENCExBATCH:WEIGHTS, …"; none takes "450k@128x16, 150k@256x8:0.5/0.3/0.2"."""
    train: ElasticTraining = field(default_factory=ElasticTraining)
    """The distillation."""
    measure: Effort = field(default_factory=Effort)
    """How much to measure, for budgets of latency."""
    between: int = 3
    """Budgets that were not trained for, evenly spread between those that were, to judge as well."""
    baselines: bool = False
    """Also train, with the same tokens each, a nested model of uniform ratios, and the smallest size on its own."""
    seed: int = 0
    """Of the order of the text and of the random baseline; training has a seed of its own."""

    def __post_init__(self) -> None:
        for name in ("rank_tokens", "depth_tokens", "held_out"):
            if getattr(self, name) < 1:
                raise BadData(f"{name} must be at least 1, got {getattr(self, name)}")
        if not 0 < self.least <= 1:
            raise BadData(f"least must be a share, above 0 and at most 1, got {self.least}")
        if self.between < 0:
            raise BadData(f"between must be 0 or more, got {self.between}")

        self.training.check(1)

    @property
    def training(self) -> ElasticTraining:
        """The distillation with its stages."""
        return self.train if self.stages is None else replace(self.train, stages=parse_stages(self.stages))

    def to_json(self) -> dict[str, Any]:
        """Plain values, for config.json; `verb` tells the run from those of other verbs."""
        told = {"verb": "elastic", **dataclasses.asdict(self), "out": str(self.out)}
        return json.loads(json.dumps(told))  # lists for tuples, as a file gives them back

    @staticmethod
    def from_json(data: Mapping[str, Any]) -> "ElasticConfig":
        """Read what `to_json` wrote. Raises `RunConflict` for a key this version does not know."""
        return rebuilt(ElasticConfig, {name: value for name, value in data.items() if name != "verb"})
