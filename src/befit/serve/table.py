"""The cost table of a parent's children, measured in vLLM: the parent and a few random children are served, the rest follows.

Prefill and decode are told apart inside one run (`befit.serve.measured`), each is a sum over options that is fitted to all models
(`befit.serve.fit`), and the last few models are kept out of the fit to say how good it is. Weights are made up: time depends on
shapes.
"""

import math
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from befit.arch.decoder import Attention, Block, DecoderArch, DecoderShape, Ffn, NoOp, Variant
from befit.arch.decoder_space import DecoderSpace
from befit.cost.device import Device
from befit.cost.latency import LatencyTable, WholeRun
from befit.cost.workload import Workload
from befit.errors import BefitError
from befit.export.vllm import write_config
from befit.lm.timing import Effort, spread
from befit.progress import Progress, silent
from befit.rundir import digest
from befit.serve.engine import Answer, Setting, Vllm, engine_name
from befit.serve.fit import Setup, fit_table
from befit.serve.room import Held, Room, fit_room

FORMAT = 1
"""Part of every key: raise it when a change here makes stored tables wrong."""
FIT_RUNS = 12
"""Models that a table is fitted to, at least: about 15 seconds each on a large GPU."""
LITTLE = 0.1
"""Share of the GPU's memory for a model of one attention layer, which it is enough for."""


@dataclass(frozen=True, kw_only=True)
class Priced:
    """What was measured of a parent and its children."""

    tables: tuple[LatencyTable, ...]
    """One for each workload."""
    room: Room
    """The memory for keys and values."""


def measured_on(device: Device, setting: Setting) -> Device:
    """The device with vLLM as its engine. Raises `BefitError` where vLLM is not installed or there is no GPU."""
    name = engine_name(setting)
    if device.kind != "cuda":
        raise BefitError(
            f"engine vllm measures on a GPU, and the device here is {device.name} ({device.kind}); use engine torch"
        )
    return replace(device, engine=name)


def serve_arch(
    engine: Vllm, arch: DecoderArch, shape: DecoderShape, config: Any, workloads: Sequence[Workload]
) -> Answer:
    """Serve an architecture with made-up weights; `config` is the parent's transformers configuration.

    A model of one attention layer gets `LITTLE` of the memory. Raises `UnsupportedModel` for what vLLM's model classes cannot
    express, and what the engine raises.
    """
    with tempfile.TemporaryDirectory(prefix="befit-") as name:
        write_config(arch, shape, Path(name), base=config, dtype=workloads[0].weights)
        attends = sum(isinstance(block.attention, Attention) for block in arch.blocks)
        return engine(Path(name), workloads, memory_share=LITTLE if attends == 1 else None)


def measure_served(
    config: Any,
    space: DecoderSpace,
    workloads: Sequence[Workload],
    device: Device,
    engine: Vllm,
    *,
    effort: Effort,
    progress: Progress = silent,
) -> Priced:
    """Serve the parent and random children under every workload, and fit a table to each workload.

    `device` names vLLM as its engine (`measured_on`). Of `effort` the numbers of models count, at least `FIT_RUNS` in the fit.
    """
    fit_runs = max(effort.fit_runs, FIT_RUNS)
    others = spread(space, fit_runs + effort.held_out_runs - 1, workloads[0])
    # The smallest last: the first model in a new process waits for kernels that are compiled for it.
    archs = [space.shape.arch, *others, smallest(space)]
    answers = [
        serve_arch(engine, arch, space.shape, config, workloads)
        for arch in progress(archs, "measure in vLLM", len(archs))
    ]
    variants = variants_of(space)
    tables = []
    for number, workload in enumerate(workloads):
        runs = [whole_run(arch, answer, number, workload) for arch, answer in zip(archs, answers, strict=True)]
        setup = Setup(device=device, workload=workload, dtype=workload.weights)
        least = runs.pop()
        table = fit_table(setup, runs[:fit_runs], list(variants.values()), least_decode_ms=least.decode_ms)
        tables.append(replace(table, held_out=tuple(runs[fit_runs:])))
    return Priced(tables=tuple(tables), room=room_of(space.shape, workloads[0], archs[:-1], answers[:-1]))


def smallest(space: DecoderSpace) -> DecoderArch:
    """A child of which next to nothing is left: one layer, with the fewest KV heads and the narrowest FFN."""

    def kv_heads(variant: Variant) -> int:
        return variant.kv_heads if isinstance(variant, Attention) else space.shape.heads

    def width(variant: Variant) -> float:
        return variant.width if isinstance(variant, Ffn) else math.inf

    first = Block(attention=min(space.attention_variants(0), key=kv_heads), ffn=min(space.ffn_variants(0), key=width))
    return DecoderArch(blocks=(first, *[Block(attention=NoOp(), ffn=NoOp())] * (space.shape.layers - 1)))


def whole_run(arch: DecoderArch, answer: Answer, number: int, workload: Workload) -> WholeRun:
    """What workload `number` of a served model took."""
    told = answer.runs[number].latency(workload)
    return WholeRun(arch=arch, prefill_ms=told.prefill_ms, decode_ms=told.decode_ms)


def room_of(shape: DecoderShape, workload: Workload, archs: Sequence[DecoderArch], answers: Sequence[Answer]) -> Room:
    """The room for keys and values that served models had."""
    allowed = min(round(answer.memory_bytes * answer.memory_share) for answer in answers)
    held = [
        Held(arch=arch, kv_tokens=answer.runs[0].kv_tokens, weight_bytes=answer.runs[0].weight_bytes)
        for arch, answer in zip(archs, answers, strict=True)
    ]
    return fit_room(shape, workload, allowed, held)


def variants_of(space: DecoderSpace) -> Mapping[str, Variant]:
    """Every variant of every layer, by name."""
    layers = range(space.shape.layers)
    found: dict[str, Variant] = {v.name: v for i in layers for v in space.attention_variants(i)}
    return found | {v.name: v for i in layers for v in space.ffn_variants(i)}


def served_key(
    space: DecoderSpace, workloads: Sequence[Workload], device: Device, setting: Setting, effort: Effort
) -> str:
    """Names what `measure_served` would measure: a record with the same key may be used again."""
    return digest("served", FORMAT, repr((space, list(workloads), device, setting, effort)))
