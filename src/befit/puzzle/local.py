"""Blockwise local distillation: every variant of every sub-block learns its original's output from the parent's activations.

One layer at a time: the layer's inputs for all training tokens are at hand, the parent's own two sub-blocks give the
targets, and all variants of the layer train in the same pass, each on its own normalised squared error
||o_p - o_c||^2 / ||o_p||^2 (Puzzle, arXiv 2411.19146, section on blockwise local distillation; decoupled: an attention
variant is trained beside the parent's FFN and the other way round). The outputs are the next layer's inputs, so memory
stays at one layer, its variants and the activations, however deep the parent is.

Deviation: the error is taken on the sub-block's update, without the residual stream, so that layers weigh alike.

Shapes: N sequences, B batch, T tokens, D hidden.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from befit.arch.decoder import NoOp, Variant
from befit.arch.decoder_space import DecoderSpace
from befit.errors import BadData
from befit.lm.child import half
from befit.lm.distill import normalised_mse
from befit.lm.family import Family
from befit.lm.modeling_befit import BefitForCausalLM, BefitLayer, Context
from befit.lm.precision import mixed
from befit.lm.shards import room
from befit.lm.slice import KINDS, initial
from befit.progress import Progress, silent
from befit.puzzle.library import Library, flat, parent_layer
from befit.rundir import read_json, write_json, write_tensors

Halves = dict[tuple[str, Variant], BefitLayer]


@dataclass(frozen=True, kw_only=True)
class LocalConfig:
    """How a layer's variants are trained."""

    epochs: int = 1
    """Passes over the tokens; 0 leaves the training-free weights."""
    batch: int = 4
    """Sequences in one step."""
    lr: float = 4e-3
    """Adam's peak learning rate; warm-up over a tenth of the steps, then cosine to zero."""
    held: float = 0.125
    """Share of the sequences kept back to tell whether training helped."""
    seed: int = 0
    """Order of the sequences."""

    def __post_init__(self) -> None:
        if self.epochs < 0 or self.batch < 1:
            raise BadData(f"local: epochs must be 0 or more and batch at least 1, got {self.epochs} and {self.batch}")
        if not (self.lr > 0 and 0 <= self.held < 1):
            raise BadData(f"local: lr must be above 0, held from 0 to below 1, got {self.lr:g} and {self.held:g}")


def build_library(
    tokens: Tensor,
    config: LocalConfig,
    *,
    library: Library,
    mine: Callable[[int], bool] = lambda _: True,
    progress: Progress = silent,
) -> dict[int, dict[str, tuple[float, float]]]:
    """Train and write every layer's variants from token ids (N, T); layers already written are kept.

    Of several processes each trains the layers that are `mine`, and only runs the others. Returns what `library_errors` does.
    """
    parent, space, family = library.parent, library.space, library.family
    windows = {getattr(v, "window", None) for i in range(space.shape.layers) for v in space.attention_variants(i)}
    with torch.no_grad():
        device = parent.device
        place = _place(tokens.numel() * parent.config.hidden_size * parent.dtype.itemsize, device)
        x = torch.cat([parent.model.embed_tokens(ids.to(device)).to(place) for ids in tokens.split(64)])
        context = parent.model.begin(x[:1].to(device), windows=windows)
    for index in progress(range(space.shape.layers), "library", space.shape.layers):
        attended, after = _parent_outputs(parent.model.layers[index], x, context, config.batch, device)
        record = _record(library, index)
        if mine(index) and not record.exists():
            weights = parent_layer(parent, index)
            halves = _halves(parent, space, family, index, weights)
            outcome = distil_layer(halves, (x, attended, after), context, config, seed=config.seed + index)
            trained = {key: module.to(parent.dtype).state_dict() for key, module in halves.items()}
            write_tensors(library.file(index), flat(trained))
            write_json(record, {f"{kind}/{v.name}": pair for (kind, v), pair in outcome.items()})
        x = after
    return library_errors(library)


def library_errors(library: Library) -> dict[int, dict[str, tuple[float, float]]]:
    """For every layer written so far and each of its variants, the held-out error before and after training."""
    records = {index: _record(library, index) for index in range(library.space.shape.layers)}
    return {
        index: {name: (pair[0], pair[1]) for name, pair in read_json(record).items()}
        for index, record in records.items()
        if record.exists()
    }


def _record(library: Library, index: int) -> Path:
    """Where a layer's errors lie; written after its weights."""
    return library.file(index).with_suffix(".json")


def distil_layer(
    halves: Halves, activations: tuple[Tensor, Tensor, Tensor], context: Context, config: LocalConfig, *, seed: int
) -> dict[tuple[str, Variant], tuple[float, float]]:
    """Train a layer's variants in place on (N, T, D) inputs, attention outputs and layer outputs of the parent.

    A variant that training did not improve on the held-out sequences gets its first weights back. Returns the held-out
    normalised squared error of each, before and after.
    """
    count = activations[0].shape[0]
    held = max(1, int(count * config.held)) if config.epochs else count
    train, kept = range(count - held), slice(count - held, None)
    measure = partial(_errors, halves, [a[kept] for a in activations], context, config.batch)
    before = measure()
    if not train or not config.epochs or not halves:
        return {key: (value, value) for key, value in before.items()}
    first = {key: {n: t.clone() for n, t in module.state_dict().items()} for key, module in halves.items()}
    _train(halves, [a[: len(train)] for a in activations], context, config, seed)
    after = measure()
    for key, module in halves.items():
        if not after[key] < before[key]:
            module.load_state_dict(first[key])
            after[key] = before[key]
    return {key: (before[key], after[key]) for key in halves}


def _train(halves: Halves, activations: list[Tensor], context: Context, config: LocalConfig, seed: int) -> None:
    """Adam on the sum of all variants' errors; variants share no parameter, so each has its own gradient."""
    parameters = [p for module in halves.values() for p in module.requires_grad_(True).parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=config.lr, betas=(0.9, 0.95), weight_decay=0.0, fused=True)
    count = activations[0].shape[0]
    steps = math.ceil(count / config.batch) * config.epochs
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, partial(_warm_cosine, steps=steps))
    order = torch.Generator().manual_seed(seed)
    device, place = parameters[0].device, activations[0].device
    for _ in range(config.epochs):
        for rows in torch.randperm(count, generator=order).split(config.batch):
            with mixed(device):
                losses = _losses(halves, [a[rows.to(place)].to(device) for a in activations], context)
            optimizer.zero_grad(set_to_none=True)
            torch.stack(list(losses.values())).sum().backward()
            optimizer.step()
            schedule.step()
    for module in halves.values():
        module.requires_grad_(False)


def _losses(halves: Halves, activations: list[Tensor], context: Context) -> dict[tuple[str, Variant], Tensor]:
    """The normalised squared error of every variant's update on (B, T, D) activations."""
    x, attended, after = (a.float() for a in activations)
    losses = {}
    for (kind, variant), module in halves.items():
        if kind == "attention":
            losses[kind, variant] = normalised_mse(attended - x, module.attend(x, context) - x)
        else:
            losses[kind, variant] = normalised_mse(after - attended, module.feed(attended) - attended)
    return losses


@torch.no_grad()
def _errors(
    halves: Halves, activations: list[Tensor], context: Context, batch: int
) -> dict[tuple[str, Variant], float]:
    totals: dict[tuple[str, Variant], float] = dict.fromkeys(halves, 0.0)
    pieces = list(zip(*(a.split(batch) for a in activations), strict=True))
    devices = [parameter.device for module in halves.values() for parameter in module.parameters()]
    for piece in pieces if devices else []:
        for key, loss in _losses(halves, [a.to(devices[0]) for a in piece], context).items():
            totals[key] += float(loss) / len(pieces)
    return totals


@torch.no_grad()
def _parent_outputs(
    layer: BefitLayer, x: Tensor, context: Context, batch: int, device: torch.device
) -> tuple[Tensor, Tensor]:
    """What both sub-blocks give, kept where `x` is and computed on `device`."""
    attended, after = torch.empty_like(x), torch.empty_like(x)
    for place in torch.arange(len(x)).split(batch):
        rows = slice(int(place[0]), int(place[-1]) + 1)
        attended[rows] = middle = layer.attend(x[rows].to(device), context)
        after[rows] = layer.feed(middle)
    return attended, after


def _place(size: int, device: torch.device) -> torch.device:
    """Where a layer's inputs and both outputs, each of `size` bytes, wait: beside the layer, or in the host's memory."""
    return torch.device("cpu") if 3 * size > room(device) else device


def _halves(
    parent: BefitForCausalLM, space: DecoderSpace, family: Family, index: int, weights: Mapping[str, Tensor]
) -> Halves:
    """Every variant of a layer that has weights of its own, in fp32, with its training-free weights."""
    halves: Halves = {}
    block = space.shape.arch.blocks[index]
    for kind, own in zip(KINDS, (block.attention, block.ffn), strict=True):
        for variant in space.attention_variants(index) if kind == "attention" else space.ffn_variants(index):
            if variant == own or isinstance(variant, NoOp):
                continue
            module = half(parent.config, index, variant, kind)
            module.load_state_dict(initial(dict(weights), variant, kind, space.shape, family), assign=True)
            halves[kind, variant] = module.float()
    return halves


def _warm_cosine(step: int, *, steps: int) -> float:
    warm = max(1, steps // 10)
    if step < warm:
        return (step + 1) / warm
    return 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1, steps - warm)))
