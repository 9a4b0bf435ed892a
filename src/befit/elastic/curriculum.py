"""How a nested model is trained: stages of context and batch, how often each budget is taken, when the router settles.

Source: Nemotron Elastic (arXiv 2511.16664, section 4): first short contexts with all budgets equally often, then longer ones
with the larger budgets more often, because nesting taxes the full model most. The sandwich, every step the largest, the
smallest and something between, with in-place distillation, is from universally slimmable networks (arXiv 1903.05134).
"""

import math
import re
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Literal

from befit.errors import BadData

LARGER_FIRST = (0.5, 0.3, 0.2)
"""Nemotron Elastic's second stage: how often the budgets are taken, largest first."""


@dataclass(frozen=True, kw_only=True)
class Stage:
    """A stretch of training at one length of context."""

    tokens: int
    """Tokens to train on, at least 1; rounded up to whole batches, repeating the text where it is shorter."""
    sequence: int
    """Tokens of a sequence."""
    batch: int
    """Sequences in one step, over all processes together."""
    weights: tuple[float, ...] = ()
    """How often each budget is taken, largest first, in any unit; empty for equally often. Read off along the budgets'
    order (`for_budgets`) where their number differs."""

    def __post_init__(self) -> None:
        for name in ("tokens", "sequence", "batch"):
            if not getattr(self, name) >= 1:
                raise ValueError(f"stage: {name} must be at least 1, got {getattr(self, name)!r}")
        if any(not 0 <= weight < math.inf for weight in self.weights) or (self.weights and not sum(self.weights)):
            raise ValueError(f"stage: weights must be 0 or more, and not all 0, got {self.weights}")

    @property
    def steps(self) -> int:
        return math.ceil(self.tokens / (self.batch * self.sequence))

    @property
    def step_tokens(self) -> int:
        return self.batch * self.sequence

    def for_budgets(self, count: int) -> tuple[float, ...]:
        """The share of each of `count` budgets, largest first; they sum to 1."""
        given = self.weights or (1.0,)
        found = [_between(given, place * (len(given) - 1) / max(1, count - 1)) for place in range(count)]
        if not sum(found):
            raise ValueError(f"stage: weights {self.weights} take none of {count} budgets; give {count} weights")
        return tuple(weight / sum(found) for weight in found)


_STAGE = re.compile(r"([\d.]+)([kKMBG]?)@(\d+)x(\d+)(?::([\d./]+))?")


def parse_stages(text: str) -> tuple[Stage, ...]:
    """Read `700k@128x16, 300k@256x8:0.5/0.3/0.2`: tokens @ sequence x batch, then how often each budget, largest first.

    Raises `BadData` for anything else.
    """
    found = list[Stage]()
    for part in text.split(","):
        match = _STAGE.fullmatch(part.strip())
        if match is None:
            raise BadData(
                f"stages: cannot read {part.strip()!r}; expected TOKENS@SEQUENCExBATCH, then :WEIGHT/WEIGHT if budgets are not "
                "to be taken equally often, such as 700k@128x16, 300k@256x8:0.5/0.3/0.2"
            )
        number, unit, sequence, batch, weights = match.groups()
        tokens = float(number) * {"": 1, "k": 1e3, "K": 1e3, "M": 1e6, "B": 1e9, "G": 1e9}[unit]
        own = tuple(float(weight) for weight in weights.split("/")) if weights else ()
        found.append(Stage(tokens=int(tokens), sequence=int(sequence), batch=int(batch), weights=own))
    return tuple(found)


STAGES = (
    Stage(tokens=450_000, sequence=128, batch=16),
    Stage(tokens=150_000, sequence=256, batch=8, weights=LARGER_FIRST),
)
"""The default: for models of some million parameters."""


@dataclass(frozen=True, kw_only=True)
class ElasticTraining:
    """How the nested model is distilled from its parent, and how its router learns."""

    stages: tuple[Stage, ...] = STAGES
    """One after the other, at least one."""
    lr: float = 1e-3
    """AdamW's peak learning rate of the weights: 1e-3 suits models of some million parameters, 1e-4 or less billions."""
    router_lr: float = 1e-2
    """Adam's learning rate of the router, constant."""
    warmup: float = 0.05
    """Share of the steps over which the weights' rate rises to its peak; then it falls as a cosine to a tenth."""
    weight_decay: float = 0.0
    """AdamW's decay of matrices; norms, biases and gains have none."""
    clip: float = 1.0
    """Largest norm of a step's gradient; a longer one is shortened to it."""
    temperature: float = 1.0
    """Logits are divided by it before the KL, which is multiplied by its square."""
    mode: Literal["sampled", "sandwich"] = "sampled"
    """`sampled`: each micro-batch trains one budget, from the frozen teacher. `sandwich`: each batch trains the largest
    budget from the teacher, and from its logits the smallest and some between."""
    micro_batches: int = 4
    """Parts of a step's batch: with `sampled`, how many budgets a step can train; with `sandwich`, only less memory."""
    between: int = 1
    """With `sandwich`, budgets between the largest and the smallest in each step."""
    router_every: int = 4
    """The router takes one step in so many steps of the weights; 0 leaves it as it is."""
    budget_weight: float = 1.0
    """Factor of |cost / limit - 1| beside the KL in the router's loss."""
    explore: float = 1.0
    """Temperature of the router's samples at the start ..."""
    exploit: float = 0.05
    """... and when it settles; exponential between."""
    settle: float = 0.3
    """Share of the tokens, at the end, with the members that will be cut, and no other; 1 fixes them from the start."""
    gains: bool = False
    """Whether each budget has RMSNorm gains of its own."""
    recompute: bool = False
    """Gradient checkpointing: less memory, about a third more work."""
    compile: bool = False
    """Whether to compile the members once they are settled; on CUDA only."""
    tensorboard: bool = True
    """Whether to log the loss of each budget to TensorBoard, where that is installed."""
    checkpoint_seconds: float = 60.0
    """Least time between two checkpoints; what a kill can cost at most. 0 writes one after every step."""
    seed: int = 0
    """Order of the text, and which budgets and members are tried."""

    def __post_init__(self) -> None:
        if not self.stages:
            raise ValueError("elastic: give at least one stage")
        for name in ("lr", "router_lr", "clip", "temperature", "explore", "exploit"):
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(f"elastic: {name} must be above 0, got {getattr(self, name)!r}")
        for name in ("weight_decay", "router_every", "budget_weight", "between", "checkpoint_seconds"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"elastic: {name} must be 0 or more, got {getattr(self, name)!r}")
        for name in ("warmup", "settle"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"elastic: {name} must be a share, 0 .. 1, got {getattr(self, name)!r}")
        if self.mode not in ("sampled", "sandwich"):
            raise ValueError(f"elastic: mode must be sampled or sandwich, got {self.mode!r}")
        if self.micro_batches < 1:
            raise ValueError(f"elastic: micro_batches must be at least 1, got {self.micro_batches}")

    @property
    def steps(self) -> int:
        return sum(stage.steps for stage in self.stages)

    @property
    def tokens(self) -> int:
        """Tokens trained on, repetitions counted."""
        return sum(stage.steps * stage.step_tokens for stage in self.stages)

    def place(self, step: int) -> tuple[int, int]:
        """The number of the stage that a step is in, and the step's number inside it."""
        ends = list(accumulate(stage.steps for stage in self.stages))
        stage = bisect_right(ends, step)
        return stage, step - (ends[stage - 1] if stage else 0)

    def check(self, team: int) -> None:
        """Raise `BadData` unless `team` processes can share every micro-batch evenly."""
        for stage in self.stages:
            if stage.batch % (self.micro_batches * team):
                raise BadData(
                    f"elastic: a batch of {stage.batch} sequences cannot be shared evenly by {self.micro_batches} "
                    f"micro-batches of {team} processes; give a multiple of {self.micro_batches * team}"
                )

    @property
    def settled_at(self) -> int:
        """The first step whose members are those that will be cut."""
        if self.settle == 1:
            return 0
        left, step = self.settle * self.tokens, self.steps
        for stage in reversed(self.stages):
            fit = min(stage.steps, int(left / stage.step_tokens + 1e-9))
            step, left = step - fit, left - fit * stage.step_tokens
            if fit < stage.steps:
                break
        return step

    def router_temperature(self, step: int) -> float:
        """Of the router's samples at a step: from `explore` exponentially to `exploit` at the last step before it settles."""
        done = min(1.0, step / max(1, self.settled_at - 1))
        return self.explore * (self.exploit / self.explore) ** done


def systematic(weights: Sequence[float], count: int, offset: float) -> list[int]:
    """`count` draws of an index by `weights` (which sum to 1) from one random number `offset` in 0 .. 1.

    Evenly spaced marks on the cumulated weights: each index is drawn as often as independent draws would on average, but
    with the least variance, so that a step of a few micro-batches is as varied as it can be.
    """
    ends = list(accumulate(weights))[:-1]
    return [bisect_right(ends, (place + offset) / count) for place in range(count)]


def _between(values: Sequence[float], place: float) -> float:
    """Linear interpolation in a list, at a position between 0 and its last index."""
    low = min(int(place), len(values) - 1)
    high = min(low + 1, len(values) - 1)
    return values[low] + (place - low) * (values[high] - values[low])
