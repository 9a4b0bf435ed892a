"""Measure language models on the device: every distinct sub-block for the latency table, and whole models side by side.

A sub-block is timed as a row of copies with weights and caches of their own, divided by their number, so that weights come
from where they come from in a whole model and launches overlap as they do there. Weights are random: time depends on the shape.
Prefill runs the whole prompt and writes keys and values, or some passes over parts of long ones (`befit.cost.passes`); decode
runs one token of every request against a full cache. All have static shapes and touch only preallocated memory, so they can
be captured in CUDA graphs.

Shapes: B batch, T prompt tokens, D hidden, V vocabulary.
"""

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from befit.arch.decoder import Attention, Block, DecoderArch, DecoderShape, Ffn, Mamba, NoOp, Variant
from befit.arch.decoder_space import DecoderSpace
from befit.cost.count import Cost, attention_cost, block_cost, ffn_cost, fixed_cost
from befit.cost.device import Device, Step, time_together
from befit.cost.latency import Latency, LatencyTable, WholeRun, calibrate
from befit.cost.passes import passes, prefill_note
from befit.cost.workload import Workload
from befit.errors import BefitError, IllegalArch
from befit.lm.child import build, config_for, half
from befit.lm.fixed_cache import FixedCache
from befit.lm.modeling_befit import BefitForCausalLM, BefitLayer, has_cache
from befit.lm.precision import DTYPES
from befit.progress import Progress, silent
from befit.rundir import digest

FORMAT = 1
"""Part of every key: raise it when a change here makes stored tables wrong."""
COPIES = 4
"""Copies of a sub-block in a row, at most (never more than the model has layers)."""

Steps = tuple[Step, ...]
"""The measured passes of prefill, in most workloads one, then decode of one thing."""
Module = TypeVar("Module", bound=nn.Module)


@dataclass(frozen=True, kw_only=True)
class Effort:
    """How much to measure for a latency table."""

    fit_runs: int = 6
    """Whole models that the table is fitted to, at least 0."""
    held_out_runs: int = 6
    """Whole models that the fitted table is tested on, at least 0."""
    repeats: int = 30
    """Timed calls of each step, at most about this many."""
    seconds: float = 45.0
    """Time for all timed calls together; building and warming up come on top."""


EFFORT = Effort()
"""Enough for a median error of a few percent on a quiet machine."""


def measure_table(
    config: Any,
    space: DecoderSpace,
    workload: Workload,
    device: Device,
    dtype: str,
    *,
    effort: Effort = EFFORT,
    progress: Progress = silent,
) -> LatencyTable:
    """Measure every sub-block of `space` for the parent's transformers `config`, and fit their sum to whole models.

    `dtype` is the format of weights, cache and arithmetic: fp32, bf16 or fp16; the table's workload names it in place of
    the formats of `workload`, which PyTorch may be unable to compute in. Sub-blocks and whole models are timed in turns as
    far as memory allows.
    """
    if dtype not in DTYPES:
        raise BefitError(f"latency table: dtype must be one of {', '.join(DTYPES)}, got {dtype!r}")
    workload = replace(workload, weights=dtype, cache=dtype)
    layers = range(space.shape.layers)
    attention = {v.name: v for i in layers for v in space.attention_variants(i) if not isinstance(v, NoOp)}
    ffn = {v.name: v for i in layers for v in space.ffn_variants(i) if not isinstance(v, NoOp)}
    archs = [space.shape.arch, *spread(space, effort.fit_runs + effort.held_out_runs - 1, workload)]
    bench = Bench(config=config, shape=space.shape, workload=workload, device=device, dtype=DTYPES[dtype])
    jobs = {"base": bench.base()}
    jobs |= {f"attention {name}": bench.row("attention", variant) for name, variant in attention.items()}
    jobs |= {f"ffn {name}": bench.row("ffn", variant) for name, variant in ffn.items()}
    jobs |= {f"model {i}": bench.whole(arch) for i, arch in enumerate(archs)}
    times = time_jobs(jobs, workload, device, effort, progress)
    runs = [WholeRun(arch=arch, **asdict(times[f"model {i}"])) for i, arch in enumerate(archs)]
    table = LatencyTable(
        device=device,
        workload=workload,
        dtype=dtype,
        base=times["base"],
        attention={name: times[f"attention {name}"] for name in attention},
        ffn={name: times[f"ffn {name}"] for name in ffn},
        prefill_note=prefill_note(workload),
        held_out=tuple(runs[effort.fit_runs :]),
    )
    return calibrate(table, runs[: effort.fit_runs])


def table_key(space: DecoderSpace, workload: Workload, device: Device, dtype: str, effort: Effort = EFFORT) -> str:
    """Names the table that `measure_table` would make: one with the same key may be used again."""
    work = replace(workload, weights=dtype, cache=dtype)
    return digest("latency", FORMAT, repr((space, work, device, dtype, effort)))


def measure_models(
    models: Mapping[str, BefitForCausalLM],
    workload: Workload,
    device: Device,
    *,
    repeats: int = 30,
    seconds: float = 20.0,
    progress: Progress = silent,
) -> dict[str, Latency]:
    """Time whole models that are on the device already, in turns, so that their ratios hold on a busy machine."""
    steps = {name: model_steps(model, workload) for name, model in models.items()}
    return _times(steps, workload, device, repeats=repeats, seconds=seconds, progress=progress)


def spread(space: DecoderSpace, count: int, workload: Workload, *, seed: int = 0) -> list[DecoderArch]:
    """Children of mixed layers from small to large, attention and FFN apart, so that any few of them tell costs apart.

    Each child has a size for its attention and one for its FFN (points of a low-discrepancy sequence, so that every
    stretch of the list covers all combinations); its layers' variants scatter around them.
    """
    rng, shape = random.Random(seed), space.shape
    found: list[DecoderArch] = []
    for i in range(1, count + 1):
        sizes = (0.7549 * i % 1, 0.5698 * i % 1)
        blocks = tuple(_near(space, layer, sizes, workload, rng) for layer in range(shape.layers))
        arch = DecoderArch(blocks=blocks)
        found.append(arch if space.contains(arch) else space.sample(rng))
    return found


def _near(space: DecoderSpace, layer: int, sizes: tuple[float, float], workload: Workload, rng: random.Random) -> Block:
    """A layer whose attention and FFN rank about at `sizes` (0 smallest, 1 largest) among the layer's variants."""

    def pick(variants: Sequence[Any], cost: Callable[[DecoderShape, Any, Workload], Cost], size: float) -> Any:
        def effort(variant: Any) -> tuple[int, int]:
            own = cost(space.shape, variant, workload)
            return own.flops, own.cache_bytes

        ordered = sorted(variants, key=effort)
        rank = min(max(size + rng.gauss(0, 0.25), 0), 1) * (len(ordered) - 1)
        return ordered[round(rank)]

    attention = pick(space.attention_variants(layer), attention_cost, sizes[0])
    return Block(attention=attention, ffn=pick(space.ffn_variants(layer), ffn_cost, sizes[1]))


@dataclass(frozen=True, kw_only=True)
class Timed:
    """One thing to time."""

    memory_bytes: int
    """What its weights and caches take."""
    copies: int = 1
    """How many of it one step runs."""
    make: Callable[[], Steps]
    """Builds it on the device."""


@dataclass(frozen=True, kw_only=True)
class Bench:
    """Builds what a table needs, with random weights."""

    config: Any
    """The parent's transformers configuration."""
    shape: DecoderShape
    """The parent's shape."""
    workload: Workload
    """Batch and lengths."""
    device: Device
    """Where to build."""
    dtype: torch.dtype
    """Of weights, cache and arithmetic."""

    def base(self) -> Timed:
        """What every model has: embedding, rotary table, final norm, output projection."""
        return self.whole(DecoderArch(blocks=(Block(attention=NoOp(), ffn=NoOp()),)))

    def whole(self, arch: DecoderArch) -> Timed:
        """A model."""
        size = fixed_cost(self.shape, self.workload).memory_bytes
        size += sum(block_cost(self.shape, block, self.workload).memory_bytes for block in arch.blocks)
        return Timed(memory_bytes=size, make=lambda: model_steps(self.model(arch), self.workload))

    def row(self, kind: str, variant: Variant) -> Timed:
        """Copies of one sub-block (`kind`: attention or ffn)."""
        copies = min(COPIES, self.shape.layers)
        own = block_cost(self.shape, _only(kind, variant), self.workload)
        return Timed(
            memory_bytes=copies * own.memory_bytes, copies=copies, make=lambda: self._row(kind, variant, copies)
        )

    def model(self, arch: DecoderArch) -> BefitForCausalLM:
        """A whole model on the device."""
        model = self._filled(build(config_for(self.config, arch)))
        model.tie_weights()
        model.model.compute()
        return model

    def _row(self, kind: str, variant: Variant, copies: int) -> Steps:
        layers = [self._filled(half(self.config, 0, variant, kind)) for _ in range(copies)]
        for number, layer in enumerate(filter(has_cache, layers)):
            attention: Any = layer.self_attn
            attention.layer_idx = number  # each copy has a cache of its own
        return row_steps(layers, self.model(DecoderArch(blocks=(_only(kind, NoOp()),))), self.workload)

    def _filled(self, module: Module) -> Module:
        """The same module on the device, with random matrices."""
        module.to(self.dtype).to_empty(device=self.device.kind)
        generator = torch.Generator(self.device.kind).manual_seed(0)
        with torch.no_grad():
            for weight in module.parameters():
                weight.fill_(1) if weight.ndim == 1 else weight.normal_(std=0.02, generator=generator)
        return module


def model_steps(model: Any, workload: Workload, cache_of: Callable[..., FixedCache] | None = None) -> Steps:
    """Prefill and decode of a whole model: tokens in, logits (B, 1, V) of every request's last token out.

    `cache_of` makes the cache for so many earlier tokens, as `FixedCache` does, where the model is none of befit's own.
    """

    def step(requests: int, count: int, cache: FixedCache) -> Step:
        tokens = torch.arange(requests * count, device=model.device).view(requests, count) % model.config.vocab_size
        forward = partial(model, input_ids=tokens, past_key_values=cache, use_cache=True, logits_to_keep=1)

        def run() -> Tensor:
            with cache.attending():
                return forward().logits

        return torch.inference_mode()(run)

    return _steps(workload, step, cache_of or partial(FixedCache, model.model.layers, workload))


def row_steps(layers: Sequence[BefitLayer], base: BefitForCausalLM, workload: Workload) -> Steps:
    """Prefill and decode of layers in a row: hidden states (B, T or 1, D) in and out, rotary table and masks given."""

    def step(requests: int, count: int, cache: FixedCache) -> Step:
        x = torch.ones(requests, count, base.config.hidden_size, device=base.device, dtype=base.dtype)
        context = base.model.begin(x, cache=cache, windows={layer.window for layer in layers})

        def forward() -> Tensor:
            y = x
            with cache.attending():
                for layer in layers:
                    y = layer(y, context)
            return y

        return torch.inference_mode()(forward)

    return _steps(workload, step, partial(FixedCache, layers, workload))


def _steps(
    workload: Workload, step: Callable[[int, int, FixedCache], Step], cache_of: Callable[..., FixedCache]
) -> Steps:
    """A step for every pass of prefill that is measured, and one for decode; all share their keys and values."""
    made, parts = list[Step](), passes(workload)
    buffers: Sequence[tuple[Tensor, Tensor]] = ()
    for part in parts:
        alone = len(parts) == 1 and part.requests == workload.batch
        cache = cache_of(part.past, buffers, requests=None if alone else part.requests)
        buffers = cache.buffers
        made.append(step(part.requests, part.tokens, cache))
    return *made, step(workload.batch, 1, cache_of(workload.context - 1, buffers))


def time_jobs(
    jobs: Mapping[str, Timed], workload: Workload, device: Device, effort: Effort, progress: Progress
) -> dict[str, Latency]:
    """Time all jobs, made for `workload`, in turns; in several groups, one after the other, where memory cannot hold all."""
    room = torch.cuda.mem_get_info()[0] // 2 if device.kind == "cuda" else device.memory_bytes // 4
    groups, used = [list[str]()], 0
    for name, job in jobs.items():
        if groups[-1] and used + job.memory_bytes > room:
            groups.append([])
            used = 0
        groups[-1].append(name)
        used += job.memory_bytes
    times: dict[str, Latency] = {}
    for group in groups:
        seconds = effort.seconds * len(group) / len(jobs)
        steps = {name: jobs[name].make() for name in group}
        found = _times(steps, workload, device, repeats=effort.repeats, seconds=seconds, progress=progress)
        steps.clear()  # before the next group is built
        times |= {name: _each(time, jobs[name].copies) for name, time in found.items()}
    return times


def _times(
    steps: Mapping[str, Steps],
    workload: Workload,
    device: Device,
    *,
    repeats: int,
    seconds: float,
    progress: Progress,
) -> dict[str, Latency]:
    parts = passes(workload)

    def label(name: str, number: int) -> str:
        return f"decode {name}" if number == len(parts) else f"prefill {name}, pass {number + 1} of {len(parts)}"

    named = {label(name, number): own[number] for number in range(len(parts) + 1) for name, own in steps.items()}
    warmup = 3 if device.kind == "cuda" else 1
    found = time_together(named, device, warmup=warmup, repeats=repeats, seconds=seconds, progress=progress)
    # Nothing but other processes makes a call on a CPU slower than another, and they only ever add: the fast calls are the
    # step's own. A GPU runs one graph at a time, so its median is that already.
    own = {place: t.median_ms if device.kind == "cuda" else t.low_ms for place, t in found.items()}
    return {
        name: Latency(
            prefill_ms=sum(part.times * own[label(name, number)] for number, part in enumerate(parts)),
            decode_ms=own[label(name, len(parts))],
        )
        for name in steps
    }


def _each(row: Latency, copies: int) -> Latency:
    return Latency(prefill_ms=row.prefill_ms / copies, decode_ms=row.decode_ms / copies)


def _only(kind: str, variant: Variant) -> Block:
    """A layer that has one sub-block."""
    if kind == "attention" and not isinstance(variant, Ffn):
        return Block(attention=variant, ffn=NoOp())
    if kind == "ffn" and not isinstance(variant, Attention | Mamba):
        return Block(attention=NoOp(), ffn=variant)
    raise IllegalArch(f"{variant.name} cannot stand in for the {kind} sub-block")
