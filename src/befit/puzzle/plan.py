"""What a run would do, before it does it: stages, work, disk, memory and a rough time. Reads the configuration, no weights.

Work is counted in FLOPs, exactly for the matrix products; time is that work over the speed of a short matrix product on this
machine, times a share of it that real layers reach. Times are estimates and are printed as such.
"""

import time
from dataclasses import dataclass

import torch

from befit.arch.decoder import NoOp
from befit.arch.decoder_space import DecoderSpace
from befit.budget import Budget, human
from befit.cost.count import attention_cost, count, ffn_cost
from befit.cost.device import this_device
from befit.cost.formats import BYTES
from befit.cost.workload import Workload
from befit.lm.precision import DTYPES
from befit.puzzle.config import PuzzleConfig
from befit.puzzle.job import check, chosen_dtype, workload_of

REACHED = {"cpu": 0.5, "cuda": 0.25}
"""Share of a matrix product's speed that the stages reach. CPU: measured, the demo's stages reached 88 to 150 GFLOP/s where a
product alone reached about 190. GPU: an assumption for models that fill the device; small ones are bound by launches."""
SPEED_SECONDS = 0.5
"""How long the matrix product is repeated."""
ADAM_BYTES = 16
"""fp32 weight, gradient and two moments."""


@dataclass(frozen=True, kw_only=True)
class Step:
    """One stage of the plan."""

    name: str
    flops: float
    """Floating-point operations."""
    disk_bytes: float = 0.0
    memory_bytes: float = 0.0
    """At its peak, the parent included."""


def plan(config: PuzzleConfig) -> list[str]:
    """Lines that say what `befit puzzle` would do with this configuration.

    Raises what the run itself would raise for a budget, workload, parent or variant that cannot be used.
    """
    budget = Budget.parse(config.budget)
    device = this_device(config.device)
    dtype = chosen_dtype(config, device)
    workload = workload_of(config, dtype)
    asked = check(config, budget, workload)
    space, shape = asked.space, asked.space.shape
    steps = _steps(config, space, BYTES[dtype])
    speed = _speed(device.kind, dtype) * REACHED[device.kind]
    lines = [
        f"parent    {config.parent or 'embedded'}: {shape.family}, {shape.layers} layers, "
        f"{human('params', count(shape, shape.arch, workload).params)} parameters",
        f"device    {device.name}, {device.engine}, {dtype}",
        f"workload  batch {workload.batch}, prompt {workload.prompt}, generate {workload.generate}",
        f"budget    {budget}",
        f"space     {space.size:.3g} architectures, up to {len(space.blocks(shape.layers - 1))} options a layer",
        "",
        f"{'stage':<12}{'work':>12}{'about':>10}{'disk':>12}{'memory':>12}",
    ]
    for step in steps:
        seconds = step.flops / speed
        lines.append(
            f"{step.name:<12}{human('flops', step.flops):>12}{human('latency_ms', 1000 * seconds):>10}"
            f"{human('weight_bytes', step.disk_bytes):>12}{human('weight_bytes', step.memory_bytes):>12}"
        )
    total, disk = sum(s.flops for s in steps) / speed, sum(s.disk_bytes for s in steps)
    peak = max(s.memory_bytes for s in steps)
    lines.append(
        f"{'total':<12}{'':>12}{human('latency_ms', 1000 * total):>10}"
        f"{human('weight_bytes', disk):>12}{human('weight_bytes', peak):>12}"
    )
    small = " Small models take longer on a GPU than their work says." if device.kind == "cuda" else ""
    return [*lines, "", f"Times are estimates from counted work; nothing has been run.{small}"]


def _steps(config: PuzzleConfig, space: DecoderSpace, width: float) -> list[Step]:
    """The stages with their work. One forward costs F a token, a training step three times that."""
    shape, one = space.shape, Workload(batch=1, prompt=config.sequence, generate=1)
    parent = count(shape, shape.arch, one)
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
    return [
        Step(name="rank", flops=forward * config.rank_tokens, memory_bytes=weights),
        Step(
            name="library",
            flops=config.local_tokens * (forward + 3 * config.local.epochs * variants),
            disk_bytes=stored * width,
            memory_bytes=weights + activations + largest * ADAM_BYTES,
        ),
        Step(name="score", flops=tokens * forward * (1 + replaced / 2), memory_bytes=weights + stored * width),
        Step(name="measure", flops=60 * forward * config.sequence, memory_bytes=2 * weights),
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
