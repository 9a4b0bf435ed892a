"""Everything one run of `befit puzzle` is asked to do. The run directory keeps it as JSON; `resume` reads it back.

The numbers that come as defaults suit the embedded parent on a laptop's CPU; for a real model raise the token counts
(Puzzle used up to 10^9 tokens for blockwise distillation and more for healing).
"""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from befit.errors import BadData
from befit.lm.timing import Effort
from befit.puzzle.heal import HealConfig
from befit.puzzle.local import LocalConfig
from befit.puzzle.polish import PolishConfig
from befit.puzzle.score import ScoreConfig
from befit.rundir import rebuilt


@dataclass(frozen=True, kw_only=True)
class PuzzleConfig:
    """Fit a trained language model to a budget, block by block."""

    parent: str | None = None
    """Checkpoint folder or hub name of a Llama, Mistral, Qwen2, Qwen3 or Nemotron-H model; none takes the embedded parent."""
    budget: str = "latency=60%, memory=70%"
    """Bounds, absolute or relative to the parent, such as "memory=8GiB, decode_ms<=12"."""
    data: str | None = None
    """Text to distil and score on: .txt, .jsonl, a folder, or a hub dataset; none takes installed documentation."""
    out: Path = Path("runs/puzzle")
    """Run directory."""
    workload: str = ""
    """Such as "batch=8,prompt=2048,generate=256,weights=fp8,cache=fp8"; weights and cache (fp32, bf16, fp16, fp8, int8, nvfp4:
    what memory counts) default to the format used here."""
    target: Literal["hf", "vllm", "llama.cpp"] = "hf"
    """Where the child must run; decides which variants are legal."""
    attention: str = "all,/2,/4,1,window,linear,noop"
    """Attention variants: all, /N or N KV heads, window or window=N, linear, noop; of them, Mamba-2 has all, /N, linear, noop."""
    ffn: str = "100,87,75,62,50,37,25,12,linear,noop"
    """FFN variants: percent of the parent's width, linear, noop."""
    window: int | None = None
    """Tokens of the plain window variant; none takes a quarter of the workload's context, at most half a sequence."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where to compute and to measure."""
    engine: Literal["torch", "vllm"] = "torch"
    """What measures times: PyTorch, or vLLM on a GPU, in which budgets are then met; vllm implies --target vllm."""
    dtype: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    """Format of weights and activations; auto is bf16 on a GPU, fp32 on a CPU."""
    parent_in: Literal["memory", "disk"] = "memory"
    """Where the parent's layers are while they are ranked and the library is built: all in memory, or read one at a time."""
    sequence: int = 128
    """Tokens of one training or scoring sequence."""
    rank_tokens: int = 16_384
    """Tokens to rank neurons and heads on."""
    local_tokens: int = 65_536
    """Tokens of blockwise local distillation."""
    local: LocalConfig = field(default_factory=LocalConfig)
    """Blockwise local distillation."""
    score_sequences: int = 64
    """Held-out sequences to score on; as many more are kept for the final evaluation."""
    score: ScoreConfig = field(default_factory=ScoreConfig)
    """Scoring of variants."""
    measure: Effort = field(default_factory=Effort)
    """How much to measure for the table of times."""
    batches: tuple[int, ...] = ()
    """Batch sizes to try when throughput is bounded; none tries 1, 2 and 4 times the workload's, or, where an absolute bound on
    memory has room for fewer requests of the parent, from as many by doubling up to the workload's."""
    solutions: int = 6
    """Diverse solutions to compare by true KL."""
    polish: PolishConfig = field(default_factory=PolishConfig)
    """Local search on true KL."""
    heal: HealConfig = field(default_factory=lambda: HealConfig(tokens=65_536, batch=4))
    """Distillation of the whole child."""
    rounds: int = 1
    """Times to solve and heal: after each but the last, blocks are scored anew around the healed child. They share the tokens
    of healing evenly."""
    baselines: bool = False
    """Also build, heal and measure uniform, depth-dropping, greedy and random children at the same budget."""
    seed: int = 0
    """Of the order of the text and of the random baseline; local, polish and heal have seeds of their own."""

    def __post_init__(self) -> None:
        if self.engine == "vllm" and self.target == "llama.cpp":
            raise BadData("engine vllm measures children for vLLM, target is llama.cpp; leave one of them out")
        least = {"sequence": 2, "score_sequences": 1, "solutions": 1, "rank_tokens": 1, "local_tokens": 1, "rounds": 1}
        for name, smallest in least.items():
            if getattr(self, name) < smallest:
                raise BadData(f"{name} must be at least {smallest}, got {getattr(self, name)}")
        if self.window is not None and self.window < 1:
            raise BadData(f"window must be at least 1 token, got {self.window}")
        if any(batch < 1 for batch in self.batches):
            raise BadData(f"batches must be at least 1 each, got {', '.join(map(str, self.batches))}")

    def to_json(self) -> dict[str, Any]:
        """Plain values, for config.json."""
        return {**dataclasses.asdict(self), "out": str(self.out)}

    @staticmethod
    def from_json(data: Mapping[str, Any]) -> "PuzzleConfig":
        """Read what `to_json` wrote. Raises `RunConflict` for a key this version does not know."""
        return rebuilt(PuzzleConfig, data)
