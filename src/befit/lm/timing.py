"""Measure language models on the device: every distinct sub-block for the latency table, and whole models side by side.

A sub-block is timed as a row of copies with weights and caches of their own, divided by their number, so that weights come
from where they come from in a whole model and launches overlap as they do there. Weights are random: time depends on the shape.
Prefill runs the whole prompt and writes keys and values; decode runs one token of every request against a full cache.
Both have static shapes and touch only preallocated memory, so they can be captured in CUDA graphs.

Shapes: B batch, T prompt tokens, C context (prompt and generated tokens), G KV heads, D hidden, V vocabulary; Mamba-2: H heads,
P channels of a head, N state.
"""

import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer, LinearAttentionLayer

from befit.arch.decoder import Attention, Block, DecoderArch, DecoderShape, Ffn, Mamba, NoOp, Variant
from befit.arch.decoder_space import DecoderSpace
from befit.cost.count import Cost, attention_cost, block_cost, ffn_cost, fixed_cost
from befit.cost.device import Device, Step, time_together
from befit.cost.latency import Latency, LatencyTable, WholeRun, calibrate
from befit.cost.workload import Workload
from befit.errors import BefitError, IllegalArch
from befit.lm.child import build, config_for, half
from befit.lm.modeling_befit import BefitForCausalLM, BefitLayer, has_cache
from befit.lm.precision import DTYPES
from befit.progress import Progress, silent
from befit.rundir import digest

FORMAT = 1
"""Part of every key: raise it when a change here makes stored tables wrong."""
COPIES = 4
"""Copies of a sub-block in a row, at most (never more than the model has layers)."""

Steps = tuple[Step, Step]
"""Prefill and decode of one thing."""
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


class FixedState(LinearAttentionLayer):
    """The state of one Mamba-2 mixer in memory that stays where it is: of a prompt's beginning, or of earlier tokens."""

    def __init__(self, mixer: Any, batch: int, past: int) -> None:
        """Zeros: inputs of the convolution (B, channels, kernel), and the state (B, H, P, N), in fp32 as the scan makes it."""
        super().__init__()
        weight, state = mixer.conv1d.weight, (batch, mixer.num_heads, mixer.head_dim, mixer.ssm_state_size)
        self.lazy_initialization(weight.new_zeros(batch, weight.shape[0], weight.shape[-1]))
        self.lazy_initialization(recurrent_states=weight.new_zeros(state, dtype=torch.float32))
        self.begun = past > 0
        self.has_previous_state[0] = self.begun

    def update_conv_state(self, conv_states: Tensor, *args: Any, **options: Any) -> Tensor:
        """The same as ever, but a prompt that was seen before is a new one the next time."""
        found = super().update_conv_state(conv_states, *args, **options)
        self.has_previous_state[0] = self.begun
        return found


class FixedCache(DynamicCache):
    """Keys and values in preallocated memory that stays where it is; to a model it looks like transformers' plain cache.

    Empty for a prefill (`past` 0), or holding `past` earlier tokens for decode: each call of a step then writes the same
    new token into the last place, so that every call does the same work.
    """

    def __init__(
        self, layers: Iterable[Any], workload: Workload, past: int, buffers: Sequence[tuple[Tensor, Tensor]] = ()
    ) -> None:
        """Room for the context, or the window, in every layer that attends: keys and values (B, G, C, head_dim).

        With `buffers`, those of another cache of the same layers: a long context leaves no room for two.
        """
        super().__init__()
        self.past = past
        self.buffers: list[tuple[Tensor, Tensor]] = []
        self.layers: list[Any] = []
        for number, layer in enumerate(filter(has_cache, layers)):
            if layer.recurrent:
                self.layers.append(FixedState(layer.self_attn, workload.batch, past))
                self.buffers.append((torch.empty(0), torch.empty(0)))  # numbered as all caches of the model are
                continue
            self.layers.append(DynamicLayer())
            if buffers:
                self.buffers.append(buffers[number])
                continue
            weight, head_dim = layer.self_attn.k_proj.weight, layer.self_attn.head_dim
            length = min(workload.context, layer.window or workload.context)
            zeros = weight.new_zeros(2, workload.batch, weight.shape[0] // head_dim, length, head_dim)
            self.buffers.append((zeros[0], zeros[1]))

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Tokens before this call, in every layer."""
        del layer_idx
        return self.past

    def get_mask_sizes(self, query_length: int, layer_idx: int) -> tuple[int, int]:
        """Keys that a call sees, and the position of the first."""
        del layer_idx
        return self.past + query_length, 0

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *_: Any, **__: Any
    ) -> tuple[Tensor, Tensor]:
        """Write new keys and values (B, G, tokens, head_dim); what this call attends to comes back."""
        stored_keys, stored_values = self.buffers[layer_idx]
        count = min(key_states.shape[2], stored_keys.shape[2])
        place = slice(-count, None) if self.past else slice(count)
        stored_keys[:, :, place] = key_states[:, :, -count:]
        stored_values[:, :, place] = value_states[:, :, -count:]
        return (stored_keys, stored_values) if self.past else (key_states, value_states)


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
    times = time_jobs(jobs, device, effort, progress)
    runs = [WholeRun(arch=arch, **asdict(times[f"model {i}"])) for i, arch in enumerate(archs)]
    table = LatencyTable(
        device=device,
        workload=workload,
        dtype=dtype,
        base=times["base"],
        attention={name: times[f"attention {name}"] for name in attention},
        ffn={name: times[f"ffn {name}"] for name in ffn},
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
    return _times(steps, device, repeats=repeats, seconds=seconds, progress=progress)


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

    `cache_of` makes the cache for so many earlier tokens, from the buffers of another one or from none, where the model is
    none of befit's own.
    """
    cache_of = cache_of or partial(FixedCache, model.model.layers, workload)
    prompt = torch.arange(workload.batch * workload.prompt, device=model.device) % model.config.vocab_size
    prompt = prompt.view(workload.batch, workload.prompt)

    empty = cache_of(0)

    def step(tokens: Tensor, cache: FixedCache) -> Step:
        forward = partial(model, input_ids=tokens, past_key_values=cache, use_cache=True, logits_to_keep=1)
        return torch.inference_mode()(lambda: forward().logits)

    return step(prompt, empty), step(prompt[:, :1].clone(), cache_of(workload.context - 1, empty.buffers))


def row_steps(layers: Sequence[BefitLayer], base: BefitForCausalLM, workload: Workload) -> Steps:
    """Prefill and decode of layers in a row: hidden states (B, T or 1, D) in and out, rotary table and masks given."""
    empty = FixedCache(layers, workload, 0)
    full = FixedCache(layers, workload, workload.context - 1, empty.buffers)

    def step(count: int, cache: Any) -> Step:
        x = torch.ones(workload.batch, count, base.config.hidden_size, device=base.device, dtype=base.dtype)
        context = base.model.begin(x, cache=cache, windows={layer.window for layer in layers})

        def forward() -> Tensor:
            y = x
            for layer in layers:
                y = layer(y, context)
            return y

        return torch.inference_mode()(forward)

    return step(workload.prompt, empty), step(1, full)


def time_jobs(jobs: Mapping[str, Timed], device: Device, effort: Effort, progress: Progress) -> dict[str, Latency]:
    """Time all jobs in turns; in several groups, one after the other, where memory cannot hold them all."""
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
        found = _times(steps, device, repeats=effort.repeats, seconds=seconds, progress=progress)
        steps.clear()  # before the next group is built
        times |= {name: _each(time, jobs[name].copies) for name, time in found.items()}
    return times


def _times(
    steps: Mapping[str, Steps], device: Device, *, repeats: int, seconds: float, progress: Progress
) -> dict[str, Latency]:
    prefill = {f"prefill {name}": pair[0] for name, pair in steps.items()}
    decode = {f"decode {name}": pair[1] for name, pair in steps.items()}
    warmup = 3 if device.kind == "cuda" else 1
    found = time_together(prefill | decode, device, warmup=warmup, repeats=repeats, seconds=seconds, progress=progress)
    # Nothing but other processes makes a call on a CPU slower than another, and they only ever add: the fast calls are the
    # step's own. A GPU runs one graph at a time, so its median is that already.
    own = {name: t.median_ms if device.kind == "cuda" else t.low_ms for name, t in found.items()}
    return {name: Latency(prefill_ms=own[f"prefill {name}"], decode_ms=own[f"decode {name}"]) for name in steps}


def _each(row: Latency, copies: int) -> Latency:
    return Latency(prefill_ms=row.prefill_ms / copies, decode_ms=row.decode_ms / copies)


def _only(kind: str, variant: Variant) -> Block:
    """A layer that has one sub-block."""
    if kind == "attention" and not isinstance(variant, Ffn):
        return Block(attention=variant, ffn=NoOp())
    if kind == "ffn" and not isinstance(variant, Attention | Mamba):
        return Block(attention=NoOp(), ffn=variant)
    raise IllegalArch(f"{variant.name} cannot stand in for the {kind} sub-block")
