"""Healing: distil the assembled child, whole, from its frozen parent.

The child was put together from parts that had only ever seen the parent's activations; training it end to end for
comparatively few tokens lets them adapt to each other. The loss is Puzzle's (arXiv 2411.19146, section 5): KL of the logits
plus cosine distance of every layer's hidden state, without a language-modelling loss, which made the child worse there.

Killed at any moment, the same call with the same folder goes on from the last checkpoint and ends with the same weights:
nothing in the training is random but the order of the sequences, and that is a function of seed and step alone.

In one process training stays where the child is. Of several (`befit.lm.team`), each trains on its share of every batch; the
child in training, its gradient and Adam's moments are spread over all of them (FSDP2, `befit.lm.shard`), while the frozen
parent is whole on each device.

Shapes: N sequences, B batch, T tokens, D hidden.
"""

import math
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from befit.errors import BadData, BefitError
from befit.lm.child import adopt, arch_of, build
from befit.lm.distill import cosine, head_kl, outputs
from befit.lm.modeling_befit import BefitForCausalLM
from befit.lm.precision import mixed
from befit.lm.shard import gathered, shard, spread
from befit.lm.team import Team
from befit.lm.training import (
    Checkpoint,
    adam,
    batch_rows,
    checksum,
    claim,
    learning_rate,
    restore,
    sampled_checksum,
    training_state,
)
from befit.progress import Progress, silent
from befit.rundir import digest, read_json, read_tensors, write_json, write_tensors

OTHERS = "the healing of another child, from another parent, on other text or with another configuration"
"""What a folder holds that is not this healing's."""


@dataclass(frozen=True, kw_only=True)
class HealConfig:
    """How the child is distilled from the parent."""

    tokens: int = 1_000_000
    """Tokens to train on, at least 1; rounded up to whole batches, repeating the text where it is shorter."""
    batch: int = 8
    """Sequences in one step, over all processes together."""
    lr: float = 1e-3
    """AdamW's peak learning rate: 1e-3 suits models of some million parameters, 1e-4 or less those of billions."""
    warmup: float = 0.05
    """Share of the steps over which the learning rate rises to its peak, 0 .. 1; then it falls as a cosine to a tenth."""
    weight_decay: float = 0.0
    """AdamW's decay of matrices; norms and biases have none."""
    clip: float = 1.0
    """Largest norm of a step's gradient; a longer one is shortened to it."""
    kl_weight: float = 1.0
    """Factor of KL(parent || child) on the logits, in nats per token."""
    cosine_weight: float = 8.0
    """Factor of 1 - cos between the hidden states, mean over layers and tokens; Puzzle's sum over layers is the number
    of layers here."""
    temperature: float = 1.0
    """Logits are divided by it before the KL, which is multiplied by its square."""
    checkpoint_seconds: float = 60.0
    """Least time between two checkpoints; what a kill can cost at most. 0 writes one after every step."""
    seed: int = 0
    """Order of the sequences."""

    def __post_init__(self) -> None:
        for name in ("tokens", "batch", "lr", "clip", "temperature"):
            if not getattr(self, name) > 0:
                raise ValueError(f"heal: {name} must be above 0, got {getattr(self, name)!r}")
        for name in ("weight_decay", "kl_weight", "cosine_weight", "checkpoint_seconds"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"heal: {name} must be 0 or more, got {getattr(self, name)!r}")
        if not 0 <= self.warmup <= 1:
            raise ValueError(f"heal: warmup must be a share of the steps, 0 .. 1, got {self.warmup!r}")


@dataclass(frozen=True, kw_only=True)
class HealResult:
    """What healing did."""

    steps: int
    """Optimizer steps."""
    tokens: int
    """Tokens trained on, repetitions counted."""
    losses: tuple[float, ...]
    """The weighted loss of every step, before the step."""
    kl: tuple[float, ...]
    """Its KL part, nats per token, before weighting."""
    seconds: float
    """Time in training, interrupted attempts included as far as they were kept."""


class Student(nn.Module):
    """The child with its loss inside, so that whatever Accelerate wraps around it sees one forward call."""

    def __init__(self, child: BefitForCausalLM, config: HealConfig) -> None:
        super().__init__()
        self.child = child
        self.config = config

    def forward(self, tokens: Tensor, parent_states: list[Tensor], parent_head: Tensor) -> tuple[Tensor, Tensor]:
        """The weighted loss and its KL for tokens (B, T), given what `outputs` yields for the parent."""
        *states, last = outputs(self.child, tokens)
        *parent_layers, parent_last = parent_states
        head: Any = self.child.lm_head.weight
        kl = head_kl((parent_last, parent_head), (last, head), temperature=self.config.temperature)
        distance = cosine(parent_layers, states)
        return self.config.kl_weight * kl + self.config.cosine_weight * distance, kl.detach()


def heal(
    child: BefitForCausalLM,
    parent: BefitForCausalLM,
    blocks: Tensor,
    config: HealConfig,
    folder: Path,
    progress: Progress = silent,
) -> HealResult:
    """Train `child` to answer as `parent` on token ids (N, T); at the end its weights are replaced by the healed ones.

    The child keeps its number format and device, and shares no tensor with what it had before; the parent is not
    touched. `folder` receives the checkpoints, then `healed.safetensors` and `heal.json`; called again with the same
    arguments, it only loads these. A checkpoint that cannot be read counts as none.
    Raises `BadData` for empty text, `RunConflict` if the folder belongs to another healing, `DiskFull` if a checkpoint
    cannot be written (the one before stays), `BefitError` if the loss is no longer a number.
    """
    if blocks.ndim != 2 or blocks.numel() == 0:
        raise BadData(f"healing needs token ids (N, T), at least one sequence, got {tuple(blocks.shape)}")
    claim(folder, _key(child, parent, blocks, config), OTHERS)
    written = folder / "heal.json"
    if not written.exists():
        _Healing(child, parent, blocks, config, folder).run(progress)
    told = read_json(written)
    adopt(child, {n: t.to(child.device, child.dtype) for n, t in read_tensors(folder / "healed.safetensors").items()})
    return HealResult(**{**told, "losses": tuple(told["losses"]), "kl": tuple(told["kl"])})


class _Healing:
    """One attempt: an fp32 copy of the child in training, its optimizer, and the files that outlive the attempt."""

    def __init__(
        self, child: BefitForCausalLM, parent: BefitForCausalLM, blocks: Tensor, config: HealConfig, folder: Path
    ) -> None:
        self.team = team = Team.of(child.device.type)
        if config.batch % team.size:
            raise BadData(f"heal: batch {config.batch} cannot be shared evenly by {team.size} processes")
        self.device = child.device
        self.parent = parent
        self.dtype, self.blocks, self.config = child.dtype, blocks, config
        self.steps = math.ceil(config.tokens / (config.batch * blocks.shape[1]))
        self.checkpoint, self.healed = Checkpoint(folder / "checkpoint"), folder / "healed.safetensors"
        twin = build(child.config)
        adopt(twin, {n: p.detach().to(self.device, torch.float32, copy=True) for n, p in child.named_parameters()})
        self.student = Student(twin.requires_grad_(True), config)
        if team.size > 1:
            shard(self.student, twin.model.layers, size=team.size, device=self.device)
        self.weights = dict(twin.named_parameters())
        self.adam = adam(self.weights, lr=config.lr, weight_decay=config.weight_decay)
        self.curve: list[Tensor] = []
        self.seconds = 0.0

    def run(self, progress: Progress) -> None:
        """Train from the last checkpoint to the end and write what remains of it."""
        begin, main = self._resume(), self.team.main
        saved = start = time.monotonic()
        already = self.seconds
        for step in (progress if main else silent)(range(begin, self.steps), "heal", self.steps - begin):
            self.curve.append(self._step(step))
            now = time.monotonic()
            self.seconds = already + now - start
            if step + 1 < self.steps and self.team.agreed(now - saved >= self.config.checkpoint_seconds):
                state = self._state()
                if main:
                    self.checkpoint.write(state)
                saved = time.monotonic()
        losses, kl = self._losses().t().tolist()
        healed = {name: gathered(weight.detach()).to(self.dtype) for name, weight in self.weights.items()}
        if main:
            write_tensors(self.healed, healed)
            told = {"steps": self.steps, "tokens": self.steps * self.config.batch * self.blocks.shape[1]}
            told |= {"losses": losses, "kl": kl, "seconds": round(self.seconds, 3)}
            write_json(self.healed.with_name("heal.json"), told)
            self.checkpoint.remove()
        self.team.agreed(True)  # the others read what was written

    def _step(self, step: int) -> Tensor:
        """One step of the optimizer; its loss and KL before it (2,), mean over all processes."""
        rows = batch_rows(step, self.config.batch, len(self.blocks), self.config.seed)
        mine = rows[self.team.rank :: self.team.size]
        tokens = self.blocks[mine].to(self.device)
        head: Any = self.parent.lm_head.weight
        with mixed(self.device):
            with torch.no_grad():
                states = list(outputs(self.parent, tokens))
            loss, kl = self.student(tokens, states, head)
        loss.backward()
        nn.utils.clip_grad_norm_(self.weights.values(), self.config.clip)
        for group in self.adam.param_groups:
            group["lr"] = learning_rate(step, self.steps, peak=self.config.lr, warmup=self.config.warmup)
        self.adam.step()
        self.adam.zero_grad(set_to_none=True)
        return self.team.mean(torch.stack([loss.detach(), kl]))

    def _losses(self) -> Tensor:
        """Loss and KL of every step so far, (steps, 2). Raises `BefitError` if one is no number."""
        curve = torch.stack(self.curve).cpu()
        broken = (~curve.isfinite().all(1)).nonzero()
        if len(broken):
            raise BefitError(
                f"healing diverged: the loss of step {int(broken[0])} of {self.steps} is no number; "
                f"give a lower learning rate than {self.config.lr:g}"
            )
        return curve

    def _state(self) -> dict[str, Tensor]:
        """All that the next attempt needs."""
        own = {"curve": self._losses(), "seconds": torch.tensor(self.seconds)}
        return own | training_state(self.weights, self.adam, gathered=gathered)

    def _resume(self) -> int:
        """The number of the first step to take: that of the checkpoint, if there is one that can be read."""
        with self.team.first():
            if self.team.main:
                self.checkpoint.sweep()
        state = self.checkpoint.read()
        if state is None:
            return 0
        self.curve, self.seconds = list(state["curve"].to(self.device)), float(state["seconds"])
        restore(state, self.weights, self.adam, len(self.curve), spread=spread)
        return len(self.curve)


def _key(child: BefitForCausalLM, parent: BefitForCausalLM, blocks: Tensor, config: HealConfig) -> str:
    """A name for everything that the result depends on; of the weights, a sample."""
    told = asdict(config)
    del told["checkpoint_seconds"]
    before = sampled_checksum(child.named_parameters()), sampled_checksum(parent.named_parameters())
    return digest(told, arch_of(child.config).to_json(), *before, list(blocks.shape), checksum(blocks))
