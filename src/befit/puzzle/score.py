"""What each variant costs in quality: the parent with one sub-block replaced, compared with the parent.

For every batch of held-out text the parent runs once and its layer inputs are kept. A replacement in layer i then needs only
that layer and the ones after it, and all replacements of a layer go through the rest of the network as one batch.

The default score is KL(parent || child) in nats a token, averaged over all positions (Puzzle, arXiv 2411.19146, section on
replace-1-block scores). Scores of the two sub-blocks of a layer do not add up exactly: a few pairs a layer are measured and
give the layer an interaction g, joint = s_a + s_f + g sqrt(s_a s_f); or all pairs are measured (`joint="all"`).

Shapes: N sequences, B batch, T tokens, D hidden, V vocabulary, R replacements of one layer.
"""

import importlib
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from befit.arch.decoder import Block, DecoderArch
from befit.arch.decoder_space import DecoderSpace
from befit.errors import BadData
from befit.lm.distill import kl_given, parent_terms
from befit.lm.modeling_befit import BefitForCausalLM, BefitLayer, Context
from befit.lm.shards import room
from befit.progress import Progress, silent
from befit.puzzle.library import Library
from befit.rundir import read_json, write_json

JOINT = ("none", "pairs", "all")
CPU_LOGITS, GPU_LOGITS = 2**22, 2**27
"""Logits of the replacements that go through the network together: few on a CPU, so that its caches hold the activations
(on the embedded parent a quarter faster than 2**25), many elsewhere."""

Table = dict[str, float]


@dataclass(frozen=True, kw_only=True)
class ScoreConfig:
    """How scores are measured."""

    metric: str = "kl"
    """kl, loss (next-token loss above the parent's), hidden (normalised squared error of the last hidden state), task:NAME
    (needle, tool_call, arithmetic, or a multiple-choice task of lm-evaluation-harness), or task:MODULE:FUNCTION, a function
    of your own that is given a model and returns a number, lower is better. `--score` for short."""
    joint: str = "pairs"
    """none: add the two scores of a layer; pairs: correct the sum by a few measured pairs; all: measure every pair."""
    pairs: int = 6
    """Pairs measured a layer for `joint="pairs"`; 0 measures none."""
    batch: int = 8
    """Sequences in one batch."""

    def __post_init__(self) -> None:
        if self.joint not in JOINT:
            raise BadData(f"joint must be one of {', '.join(JOINT)}, got {self.joint!r}")
        if self.pairs < 0 or self.batch < 1:
            raise BadData(f"score: pairs must be 0 or more and batch at least 1, got {self.pairs} and {self.batch}")
        if self.metric not in METRICS and not self.metric.startswith("task:"):
            raise BadData(
                f"unknown metric {self.metric!r} to score by; expected {', '.join(METRICS)}, task:NAME or "
                "task:MODULE:FUNCTION"
            )

    @property
    def task(self) -> str | None:
        """The task with options that scores, if one does."""
        return self.metric[5:] if self.metric.startswith("task:") and self.metric.count(":") == 1 else None

    @property
    def function(self) -> str | None:
        """The name of a function of the user's own, if one scores."""
        return self.metric if self.metric.count(":") > 1 else None


@dataclass(frozen=True, kw_only=True)
class Scores:
    """Measured scores of every layer, by block name (`kv2+ffn512`); a block that is replaced by itself scores 0."""

    layers: tuple[Table, ...]
    """All measured replacements, single and joint."""
    interaction: tuple[float, ...]
    """g of each layer; 0 adds the two scores."""
    around: DecoderArch
    """In which network a layer was replaced: the parent, or a healed child of an earlier round."""
    base: float = 0.0
    """That network's own distance from the parent."""

    def block(self, layer: int, block: Block) -> float:
        """The score of replacing a whole layer by `block`: measured if it was, else from its two halves."""
        measured = self.layers[layer]
        if block == self.around.blocks[layer]:
            return 0.0
        if block.name in measured:
            return measured[block.name]
        s_a, s_f = self.halves(layer, block)
        return s_a + s_f + self.interaction[layer] * _geometric(s_a, s_f)

    def halves(self, layer: int, block: Block) -> tuple[float, float]:
        """The scores of the attention half and of the FFN half alone."""
        measured, own = self.layers[layer], self.around.blocks[layer]
        alone = (Block(attention=block.attention, ffn=own.ffn), Block(attention=own.attention, ffn=block.ffn))
        s_a, s_f = (0.0 if b == own else measured[b.name] for b in alone)
        return s_a, s_f

    def total(self, arch: DecoderArch) -> float:
        """The sum over layers: a ranking signal, not the child's KL."""
        return math.fsum([self.base, *(self.block(i, block) for i, block in enumerate(arch.blocks))])

    def to_json(self) -> dict[str, Any]:
        """For a stage folder."""
        plain = {"layers": list(self.layers), "interaction": list(self.interaction), "base": self.base}
        return plain | {"around": self.around.to_json()}

    @staticmethod
    def from_json(data: Mapping[str, Any]) -> "Scores":
        """What `to_json` gave."""
        around = DecoderArch.from_json(data["around"])
        return Scores(
            **{**data, "layers": tuple(data["layers"]), "interaction": tuple(data["interaction"]), "around": around}
        )


@dataclass(frozen=True, kw_only=True)
class Reference:
    """One batch as the parent sees it."""

    ids: Tensor
    """Tokens (B, T)."""
    hidden: Tensor
    """The parent's normed final states (B, T, D)."""
    head: nn.Module
    """The parent's, from states to logits."""


class Metric(Protocol):
    """Compares final hidden states of children with the parent's, for one batch."""

    def __call__(self, reference: Reference, head: nn.Module) -> Callable[[Tensor], Tensor]:
        """A function from the states of children (R, B, T, D), all with one head, to their distances (R, B)."""
        ...


def kl_metric(reference: Reference, head: nn.Module) -> Callable[[Tensor], Tensor]:
    """KL(parent || child), mean over tokens."""
    terms = parent_terms(reference.head(reference.hidden))
    return lambda states: torch.stack([kl_given(terms, head(one)) for one in states])


def loss_metric(reference: Reference, head: nn.Module) -> Callable[[Tensor], Tensor]:
    """Next-token loss of the child minus the parent's, mean over tokens."""

    def loss(states: Tensor, head: nn.Module) -> Tensor:
        logits = head(states[:, :-1]).float().transpose(1, 2)
        return nn.functional.cross_entropy(logits, reference.ids[:, 1:], reduction="none").mean(1)

    base = loss(reference.hidden, reference.head)
    return lambda states: torch.stack([loss(one, head) - base for one in states])


def hidden_metric(reference: Reference, head: nn.Module) -> Callable[[Tensor], Tensor]:
    """Squared error of the normed final hidden state over the parent's squared norm."""
    del head
    hidden = reference.hidden
    norm = hidden.float().square().sum((-1, -2))
    return lambda states: (states.float() - hidden.float()).square().sum((-1, -2)) / norm


METRICS: dict[str, Metric] = {"kl": kl_metric, "loss": loss_metric, "hidden": hidden_metric}


def score(
    library: Library,
    tokens: Tensor,
    config: ScoreConfig,
    *,
    folder: Path,
    progress: Progress = silent,
) -> Scores:
    """Measure all replacements on token ids (N, T); batches finished earlier are read from `folder`."""
    score_batches(library, tokens, config, folder=folder, progress=progress)
    return scores_of(library, tokens, config, folder)


@torch.inference_mode()
def score_batches(
    library: Library,
    tokens: Tensor,
    config: ScoreConfig,
    *,
    folder: Path,
    mine: Callable[[int], bool] = lambda _: True,
    metrics: Sequence[Metric] = (),
    progress: Progress = silent,
) -> None:
    """Measure all replacements on the batches that are `mine`, and leave a file for each; those that are there are kept.

    `metrics`: one for each batch, instead of the one that the configuration names.
    """
    plans = _plans(library.space, library.around, config)
    here = (library.space.shape.arch.blocks, library.around.blocks, *plans)
    windows = {getattr(block.attention, "window", None) for blocks in here for block in blocks}
    halves = _Halves(library)
    batches = [(number, ids) for number, ids in enumerate(tokens.split(config.batch)) if mine(number)]
    for number, ids in progress(batches, "score", len(batches)):
        record = _record(folder, number)
        if not record.exists():
            metric = metrics[number] if metrics else METRICS[config.metric]
            sums = _score_batch(library, halves, plans, ids, windows, metric)
            write_json(record, sums)


def scores_of(library: Library, tokens: Tensor, config: ScoreConfig, folder: Path) -> Scores:
    """The mean over all batches that `score_batches` measured, less the distance of the network without a replacement."""
    measured = [read_json(_record(folder, number)) for number in range(math.ceil(len(tokens) / config.batch))]
    base = math.fsum(one["base"] for one in measured) / len(tokens)
    layers = []
    for layer, plan in enumerate(_plans(library.space, library.around, config)):
        sums = [one["layers"][layer] for one in measured]
        layers.append({b.name: math.fsum(s[b.name] for s in sums) / len(tokens) - base for b in plan})
    return with_interaction(layers, library.space, library.around, base)


def _record(folder: Path, number: int) -> Path:
    """Where a batch's sums lie."""
    return folder / f"batch_{number:04d}.json"


def score_task(library: Library, task: Callable[[BefitForCausalLM], float], *, progress: Progress = silent) -> Scores:
    """Score by a task of the user's own: `task(model)` is a number, lower is better; the parent's is subtracted.

    Nothing of the parent's work can be reused, so this runs one whole child for each replacement.
    """
    own, parent = library.around, task(library.parent)
    base = task(library.start) if library.start is not library.parent else parent
    plans = _plans(library.space, own, ScoreConfig(joint="none"))
    jobs = [(layer, block) for layer, plan in enumerate(plans) for block in plan]
    layers: list[Table] = [{} for _ in plans]
    for layer, block in progress(jobs, "score", len(jobs)):
        blocks = (*own.blocks[:layer], block, *own.blocks[layer + 1 :])
        layers[layer][block.name] = task(library.compose(DecoderArch(blocks=blocks))) - base
    return with_interaction(layers, library.space, own, base - parent)


def load_task(name: str) -> Any:
    """The function a user named as task:MODULE:FUNCTION. Raises `BadData` if there is none."""
    module, _, function = name.removeprefix("task:").partition(":")
    try:
        return getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError, ValueError) as error:
        raise BadData(f"{name!r} cannot be imported ({error}); give task:MODULE:FUNCTION on the Python path") from error


def with_interaction(layers: Iterable[Table], space: DecoderSpace, around: DecoderArch, base: float = 0.0) -> Scores:
    """Fit each layer's interaction g to its measured pairs by least squares through the origin."""
    tables, fitted = tuple(layers), []
    plain = Scores(layers=tables, interaction=(0.0,) * len(tables), around=around)
    for layer, table in enumerate(tables):
        own = around.blocks[layer]
        above = below = 0.0
        for block in space.blocks(layer):
            if block.name in table and block.attention != own.attention and block.ffn != own.ffn:
                s_a, s_f = plain.halves(layer, block)
                mean = _geometric(s_a, s_f)
                above += (table[block.name] - s_a - s_f) * mean
                below += mean * mean
        fitted.append(above / below if below > 0 else 0.0)
    return Scores(layers=tables, interaction=tuple(fitted), around=around, base=base)


def _geometric(s_a: float, s_f: float) -> float:
    return math.sqrt(max(s_a, 0.0) * max(s_f, 0.0))


def _plans(space: DecoderSpace, around: DecoderArch, config: ScoreConfig) -> list[list[Block]]:
    """For each layer the replacements to measure in the network `around` them."""
    return [_plan(space, layer, own, config) for layer, own in enumerate(around.blocks)]


def _plan(space: DecoderSpace, layer: int, own: Block, config: ScoreConfig) -> list[Block]:
    """Every variant alone, then pairs from mild to strong."""
    attention = [a for a in space.attention_variants(layer) if a != own.attention]
    ffn = [f for f in space.ffn_variants(layer) if f != own.ffn]
    plan = [Block(attention=a, ffn=own.ffn) for a in attention] + [Block(attention=own.attention, ffn=f) for f in ffn]
    pairs = [Block(attention=a, ffn=f) for a in attention for f in ffn]
    if config.joint == "pairs" and len(pairs) > config.pairs:
        # Evenly spaced along the diagonal: mild with mild up to nothing with nothing.
        places = [(k + 1) / config.pairs for k in range(config.pairs)]
        corners = [(math.ceil(p * len(attention)) - 1, math.ceil(p * len(ffn)) - 1) for p in places]
        pairs = [Block(attention=attention[a], ffn=ffn[f]) for a, f in dict.fromkeys(corners)]
    return plan + ([] if config.joint == "none" else pairs)


class _Halves:
    """Sub-blocks of the library, made when first used; kept for the next batch if memory has room for the whole library."""

    def __init__(self, library: Library) -> None:
        self.library = library
        self.made: dict[tuple[int, str, str], BefitLayer] = {}
        files = [library.file(layer) for layer in range(library.space.shape.layers)]
        self.keep = sum(file.stat().st_size for file in files if file.exists()) <= room(library.parent.device)

    def done(self, layer: int) -> None:
        """The batch goes on to the next layer."""
        if not self.keep:
            self.library.loaded.pop(layer, None)
            self.made = {key: half for key, half in self.made.items() if key[0] != layer}

    def __call__(self, layer: int, kind: str, block: Block) -> BefitLayer:
        variant = block.attention if kind == "attention" else block.ffn
        key = (layer, kind, variant.name)
        if key not in self.made:
            self.made[key] = self.library.half(layer, kind, variant)
        return self.made[key]


def _score_batch(
    library: Library,
    halves: _Halves,
    plans: list[list[Block]],
    ids: Tensor,
    windows: set[int | None],
    metric: Metric,
) -> dict[str, Any]:
    """For one batch (B, T), the sum over its sequences of every replacement's distance, layer by layer, and of none's."""
    model, parent = library.start, library.parent
    ids = ids.to(model.device)
    inputs, context = _inputs(model, ids, windows)
    hidden = model.model.norm(inputs[-1])
    own = hidden if model is parent else parent.model.norm(_inputs(parent, ids, windows)[0][-1])
    compare = metric(Reference(ids=ids, hidden=own, head=parent.lm_head), model.lm_head)
    base = 0.0 if model is parent else float(compare(hidden[None]).sum())
    room = CPU_LOGITS if ids.device.type == "cpu" else GPU_LOGITS
    at_once = max(1, room // (ids.numel() * model.config.vocab_size))
    sums = []
    for layer, plan in enumerate(plans):
        table: Table = {}
        replaced = _replacements(halves, layer, plan, inputs[layer], context)
        for start in range(0, len(plan), at_once):
            part = torch.stack(replaced[start : start + at_once])
            states = _suffix(model, layer + 1, part.flatten(0, 1), context).unflatten(0, part.shape[:2])
            values = compare(states).sum(1).tolist()
            table |= {block.name: v for block, v in zip(plan[start : start + at_once], values, strict=True)}
        sums.append(table)
        del replaced
        halves.done(layer)
    return {"base": base, "layers": sums}


def _inputs(model: BefitForCausalLM, ids: Tensor, windows: set[int | None]) -> tuple[list[Tensor], Context]:
    """What every layer is given for tokens (B, T), and what the last one gives."""
    inputs = [model.model.embed_tokens(ids)]
    context = model.model.begin(inputs[0], windows=windows)
    for layer in model.model.layers:
        inputs.append(layer(inputs[-1], context))
    return inputs, context


def _replacements(halves: _Halves, index: int, plan: list[Block], x: Tensor, context: Context) -> list[Tensor]:
    """The layer's output (B, T, D) for every replacement; each attention variant runs once."""
    attended: dict[str, Tensor] = {}
    outputs = []
    for block in plan:
        name = block.attention.name
        if name not in attended:
            attended[name] = halves(index, "attention", block).attend(x, context)
        outputs.append(halves(index, "ffn", block).feed(attended[name]))
    return outputs


def _suffix(model: BefitForCausalLM, start: int, x: Tensor, context: Context) -> Tensor:
    """The rest of the network on (R * B, T, D), up to and with the final norm."""
    for layer in model.model.layers[start:]:
        x = layer(x, context)
    return model.model.norm(x)
