"""What a run would do, before it does it: stages, work, disk, memory and a rough time. Reads the configuration, no weights.

Work is counted in FLOPs, exactly for the matrix products; time is that work over the speed of a short matrix product on this
machine, or over what the maker of another device says of it, times a share of it that real layers reach. Times are estimates
and are printed as such.
"""

import os
import time
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch

from befit.arch.decoder import Ffn, NoOp
from befit.budget import Budget, human
from befit.cost.count import attention_cost, block_cost, count, ffn_cost
from befit.cost.device import Device, this_device
from befit.cost.formats import BYTES
from befit.cost.named_devices import named_device
from befit.cost.passes import passes, prefill_note
from befit.cost.workload import Workload
from befit.lm.precision import DTYPES
from befit.lm.timing import COPIES
from befit.puzzle.batches import crowded
from befit.puzzle.config import PuzzleConfig
from befit.puzzle.job import Asked, check, chosen_dtype, workload_of

REACHED = {"cpu": 0.5, "cuda": 0.25}
"""Share of a matrix product's speed that the stages reach. CPU: measured, the demo's stages reached 88 to 150 GFLOP/s where a
product alone reached about 190. GPU: an assumption for models that fill the device; small ones are bound by launches."""
SPEED_SECONDS = 0.5
"""How long the matrix product is repeated."""
ADAM_BYTES = 16
"""fp32 weight, gradient and two moments."""
CALLS = 5
"""Of everything that is measured, at least: three to warm up and two that are timed."""
LONG = 131_072
"""Tokens of a long context, for which memory is told beside the workload's."""


@dataclass(frozen=True, kw_only=True)
class Step:
    """One stage of the plan."""

    name: str
    flops: float
    """Floating-point operations."""
    disk_bytes: float = 0.0
    memory_bytes: float = 0.0
    """At its peak, the parent included."""
    host_bytes: float = 0.0
    """Of hidden states that wait in the host's own memory, because the device has no room."""
    least_s: float = 0.0
    """Seconds that it takes however little work it is."""

    def seconds(self, speed: float) -> float:
        """At so many operations a second."""
        return max(self.flops / speed, self.least_s)


def plan(config: PuzzleConfig, *, on: str | None = None) -> list[str]:
    """Lines that say what `befit puzzle` would do with this configuration, here or on a device named by `on`.

    The parent's folder needs no weights. Raises what the run itself would raise for a budget, workload, parent or variant
    that cannot be used, and `BefitError` for a device that is not known.
    """
    budget = Budget.parse(config.budget)
    device = this_device(config.device) if on is None else _elsewhere(on)
    dtype = chosen_dtype(config, device)
    wanted = workload_of(config, dtype)
    asked = check(config, budget, wanted)
    shape = asked.space.shape
    product = _speed(device.kind, dtype) if on is None else named_device(on).flops_per_s
    speed = product * REACHED[device.kind]
    source = "measured now" if on is None else "as its maker says"
    basis = "as measured on the demo" if device.kind == "cpu" else "an assumption"
    return [
        f"parent    {config.parent or 'embedded'}: {shape.family}, {shape.layers} layers, "
        f"{human('params', count(shape, shape.arch, wanted).params)} parameters",
        f"device    {device.name}, {human('weight_bytes', device.memory_bytes)}, {device.engine}, {dtype}",
        f"workload  batch {wanted.batch}, prompt {wanted.prompt}, generate {wanted.generate}, {wanted.formats}",
        *_memory(asked, wanted, budget),
        *(f"prefill   {note}" for note in [prefill_note(asked.workload)] if note and config.engine == "torch"),
        f"budget    {budget}",
        f"space     {asked.space.size:.3g} architectures, up to {len(asked.space.blocks(shape.layers - 1))} options a layer",
        "",
        *_table(_steps(config, asked, dtype, device.memory_bytes), speed, device),
        "",
        f"Times are estimates from counted work at {human('flops', speed)} a second: {REACHED[device.kind]:.0%} ({basis}) of a "
        f"matrix product's {human('flops', product)} ({source}); nothing has been run."
        + (" Small models take longer on a GPU than their work says." if device.kind == "cuda" else ""),
    ]


def _memory(asked: Asked, wanted: Workload, budget: Budget) -> list[str]:
    """What the parent takes at the workload, at a long context, and in fp8; the batches that throughput is looked for at."""
    shape = asked.space.shape
    low = replace(wanted, weights="fp8", cache="fp8")
    long = replace(wanted, batch=1, prompt=LONG - wanted.generate) if wanted.generate < LONG else wanted
    rows = {f"batch {wanted.batch}, context {wanted.context:,}, {wanted.formats}": wanted}
    rows[f"batch {wanted.batch}, context {wanted.context:,}, {low.formats}"] = low
    rows[f"batch 1, context {long.context:,}, {wanted.formats}"] = long
    lines = []
    for text, work in rows.items():
        cost = count(shape, shape.arch, work)
        total, weights, cache = (
            human("memory_bytes", b) for b in (cost.memory_bytes, cost.weight_bytes, cost.cache_bytes)
        )
        lines.append(f"memory    {total}: weights {weights}, cache {cache} ({text})")
    if asked.workload.batch != wanted.batch:
        lines.append(
            f"          the parent has room for {asked.workload.batch} requests within the budget, and is compared with those"
        )
    elif crowded(wanted, budget, shape):
        lines.append(
            "          the parent has no room for one request within the budget; what is relative to it means "
            f"{wanted.batch} in more memory"
        )
    if len(asked.batches) > 1:
        lines.append(f"batches   {', '.join(map(str, asked.batches))}, each measured for throughput")
    return lines


def _table(steps: list[Step], speed: float, device: Device) -> list[str]:
    """A line for each stage, then the whole, then what the device has too little memory for."""
    lines = [f"{'stage':<12}{'work':>12}{'about':>10}{'disk':>12}{'memory':>12}"]
    total = Step(
        name="total",
        flops=sum(step.flops for step in steps),
        disk_bytes=sum(step.disk_bytes for step in steps),
        memory_bytes=max(step.memory_bytes for step in steps),
        least_s=sum(step.seconds(speed) for step in steps),
    )
    for step in (*steps, total):
        disk, memory = (human("weight_bytes", size) for size in (step.disk_bytes, step.memory_bytes))
        work = human("flops", step.flops) if step is not total else ""
        lines.append(f"{step.name:<12}{work:>12}{_duration(step.seconds(speed)):>10}{disk:>12}{memory:>12}")
    host = max(step.host_bytes for step in steps)
    if host:
        lines += ["", f"Hidden states of the library stage, {human('weight_bytes', host)}, wait in the host's memory."]
    large = [step.name for step in steps if step.memory_bytes > device.memory_bytes]
    if large:
        lines += ["", f"More memory than this device has: {', '.join(large)}."]
    return lines


def _elsewhere(on: str) -> Device:
    """A device of which only its maker's figures are known."""
    named, here = named_device(on), len(os.sched_getaffinity(0))
    return Device(
        name=named.name,
        kind="cuda",
        engine=f"torch {torch.__version__}",
        cores=here,
        threads=here,
        memory_bytes=int(named.memory_bytes),
    )


def _duration(seconds: float) -> str:
    """`3.2 h` from two hours up, `12.0 min` from two minutes up, `40 s` from two seconds up, else milliseconds."""
    if seconds >= 7200:
        return f"{seconds / 3600:,.1f} h"
    if seconds >= 120:
        return f"{seconds / 60:.1f} min"
    return f"{seconds:.0f} s" if seconds >= 2 else human("latency_ms", 1000 * seconds)


def _steps(config: PuzzleConfig, asked: Asked, dtype: str, room: float) -> list[Step]:
    """The stages with their work on a device of `room` bytes. A forward costs F a token, a training step three times that."""
    space, shape, one = asked.space, asked.space.shape, Workload(batch=1, prompt=config.sequence, generate=1)
    parent = count(shape, shape.arch, one)
    width = BYTES[dtype]
    forward, weights = parent.flops / config.sequence, parent.params * width
    activations = 3 * config.local_tokens * shape.hidden * width
    layers = []
    for layer in range(shape.layers):
        halves = [attention_cost(shape, v, one) for v in space.attention_variants(layer)[1:] if not isinstance(v, NoOp)]
        halves += [ffn_cost(shape, v, one) for v in space.ffn_variants(layer)[1:] if not isinstance(v, NoOp)]
        layers.append((sum(h.params for h in halves), sum(h.flops for h in halves) / config.sequence))
    stored, variants = sum(p for p, _ in layers), sum(f for _, f in layers)
    others = [(len(space.attention_variants(i)) - 1, len(space.ffn_variants(i)) - 1) for i in range(shape.layers)]
    replaced = sum(mixers + ffns + min(config.score.pairs, mixers * ffns) for mixers, ffns in others)
    tokens = config.score_sequences * config.sequence
    children = 1 + (4 if config.baselines else 0)
    largest = max(p for p, _ in layers)
    resident = weights
    if config.parent_in == "disk":  # embedding and head, the largest layer, and its copy
        own = [block_cost(shape, block, one).params for block in shape.arch.blocks]
        resident = (parent.params - sum(own) + 2 * max(own)) * width
    spare = (room - resident) / 2  # what hidden states may take of it
    return [
        Step(name="rank", flops=forward * config.rank_tokens, memory_bytes=resident),
        Step(
            name="library",
            flops=config.local_tokens * (forward + 3 * config.local.epochs * variants),
            disk_bytes=stored * width,
            memory_bytes=resident + largest * ADAM_BYTES + (activations if activations <= spare else 0.0),
            host_bytes=activations if activations > spare else 0.0,
        ),
        Step(
            name="score",
            flops=tokens * forward * (1 + replaced / 2),
            # A library that is too large for the device is read anew for every batch, a layer at a time.
            memory_bytes=weights + (stored if stored * width <= (room - weights) / 2 else largest) * width,
        ),
        _measure_step(config, asked, dtype),
        Step(
            name="choose",
            flops=tokens * forward * config.polish.evaluations,
            memory_bytes=2 * weights + min(tokens * shape.vocab, 2**28) * 4,
        ),
        Step(
            name="heal",
            flops=children * config.heal.tokens * 4 * forward,
            disk_bytes=children * 4 * weights,
            memory_bytes=weights + parent.params * ADAM_BYTES,
        ),
        Step(name="evaluate", flops=2 * children * tokens * forward, memory_bytes=2 * weights),
    ]


def _measure_step(config: PuzzleConfig, asked: Asked, dtype: str) -> Step:
    """A few calls of every distinct sub-block, in rows, and of whole models, at every batch; or as long as is asked for."""
    shape, space, effort, width = asked.space.shape, asked.space, config.measure, BYTES[dtype]
    layers = range(shape.layers)
    mixers = {v for i in layers for v in space.attention_variants(i) if not isinstance(v, NoOp)}
    ffns = {v for i in layers for v in space.ffn_variants(i) if not isinstance(v, NoOp)}
    widest = max((v.width for v in ffns if isinstance(v, Ffn)), default=shape.hidden)

    def halves(work: Workload) -> float:
        own = [attention_cost(shape, v, work) for v in mixers] + [ffn_cost(shape, v, work) for v in ffns]
        return sum(part.flops for part in own)

    flops = memory = 0.0
    for batch in asked.batches:
        work = replace(asked.workload, batch=batch)
        whole = count(shape, shape.arch, work)
        models = effort.fit_runs + effort.held_out_runs
        flops += CALLS * min(COPIES, shape.layers) * _prefilled(work, halves)
        flops += CALLS * models * _prefilled(work, lambda w: count(shape, shape.arch, w).flops)
        # Where throughput is bounded, larger batches are for children with smaller caches than the parent's.
        if batch == asked.workload.batch:
            # Gate, up and their product are there together.
            caches = count(shape, shape.arch, replace(work, cache=dtype)).cache_bytes
            together = max(part.requests * part.tokens for part in passes(work))
            memory = whole.params * width + caches + 3 * together * widest * width
    return Step(name="measure", flops=flops, memory_bytes=memory, least_s=len(asked.batches) * effort.seconds)


def _prefilled(work: Workload, flops: Callable[[Workload], float]) -> float:
    """Operations of all passes of prefill that are measured, once each: those of their tokens, with what lies before them."""

    def until(tokens: int) -> float:
        return flops(replace(work, batch=1, prompt=tokens)) if tokens else 0.0

    return sum(part.requests * (until(part.past + part.tokens) - until(part.past)) for part in passes(work))


def _speed(kind: str, dtype: str) -> float:
    """Floating-point operations a second of one matrix product here: the best of many, so that other programs matter little."""
    size = 4096 if kind == "cuda" else 512
    a = torch.randn(size, size, device=kind, dtype=DTYPES[dtype])
    best = float("inf")
    end = time.perf_counter() + SPEED_SECONDS
    while time.perf_counter() < end or best == float("inf"):
        begin = time.perf_counter()
        float((a @ a)[0, 0])  # Reading a number waits for the device.
        best = min(best, time.perf_counter() - begin)
    return 2 * size**3 / best
