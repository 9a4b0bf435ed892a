"""A latency table from whole models alone: what each option must cost, so that the sums are what the models took.

In an engine a sub-block cannot be timed by itself, but a model of many layers can, and its time is a sum over them. Two least
squares for each phase, of relative errors and of times that are not negative:

1. By size: a constant for each attention and each FFN, a rate for each KV head and each FFN neuron, and what every model pays.
   Five numbers, so a dozen models tell them well.
2. By option: the time of every option by itself, near the one that its size says (`LOOSE`), as near as the models allow
   (`NOISE`). This is where a width that fits the GPU's tiles badly gets its own time.

An engine has its own work between two steps, which it does while the GPU computes. With models that are faster than that, the GPU
waits: a step of decode takes the larger of both times. The smallest model there is tells the engine's.

Puzzle (arXiv 2411.19146) measures options by differences; differences of two models have the noise of both, and here every model
counts for all options that it holds.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
from scipy import optimize  # pyright: ignore[reportMissingTypeStubs]

from befit.arch.decoder import Attention, DecoderArch, Ffn, NoOp, Variant
from befit.cost.device import Device
from befit.cost.latency import Latency, LatencyTable, WholeRun
from befit.cost.workload import Workload
from befit.errors import BadTable, IllegalArch

LOOSE = 0.1
"""Expected deviation of an option's time from what its size says, relative."""
NOISE = 0.01
"""Expected error of a model's measured time, relative."""
LEAST_RUNS = 6
"""Models that a fit needs: one more than there are numbers in its first step."""

ABOVE = 1.15
"""Times the least step of decode from which on a step is the model's own."""

Array = Any


@dataclass(frozen=True, kw_only=True)
class Setup:
    """Where and how the models of a fit were measured."""

    device: Device
    """The machine, and the engine as its software."""
    workload: Workload
    """Batch and lengths."""
    dtype: str
    """Number format: fp32, bf16 or fp16."""


def fit_table(
    setup: Setup, runs: Sequence[WholeRun], variants: Sequence[Variant], *, least_decode_ms: float = 0.0
) -> LatencyTable:
    """A table with a time for each of `variants` (no-ops cost nothing and get none), fitted to whole models.

    Steps of decode near `least_decode_ms`, which the engine itself takes with any model, say nothing about the options in
    them. A model that was faster says that the engine takes no longer than that. Raises `BadTable` for too few models, or for a
    model that holds a variant not among `variants`.
    """
    options = {variant.name: variant for variant in variants if not isinstance(variant, NoOp)}

    if len(runs) < LEAST_RUNS:
        raise BadTable(f"a fit to whole models needs at least {LEAST_RUNS} of them, got {len(runs)}; measure more")

    def fitted(phase: str, told: Sequence[WholeRun]) -> Array:
        counts = np.array([counted(run.arch, list(options)) for run in told])
        return _times(counts, list(options.values()), [getattr(run, phase) for run in told])

    slowest = sorted(runs, key=lambda run: -run.decode_ms)
    least_decode_ms = min(least_decode_ms, slowest[-1].decode_ms)
    own = sum(run.decode_ms > ABOVE * least_decode_ms for run in runs)
    prefill = fitted("prefill_ms", runs)
    decode = fitted("decode_ms", slowest[: max(own, LEAST_RUNS)])
    times = [Latency(prefill_ms=float(p), decode_ms=float(d)) for p, d in zip(prefill, decode, strict=True)]
    named = dict(zip(options, times[1:], strict=True))
    return LatencyTable(
        device=setup.device,
        workload=setup.workload,
        dtype=setup.dtype,
        base=times[0],
        attention={name: time for name, time in named.items() if isinstance(options[name], Attention)},
        ffn={name: time for name, time in named.items() if isinstance(options[name], Ffn)},
        least_decode_ms=least_decode_ms,
        fitted_on=tuple(runs),
    )


def counted(arch: DecoderArch, names: Sequence[str]) -> list[int]:
    """1 for what every model pays, then how many sub-blocks of each name an architecture has.

    Raises `BadTable` for a sub-block of another name.
    """
    found = dict.fromkeys(names, 0)
    for block in arch.blocks:
        for half in (block.attention, block.ffn):
            if isinstance(half, NoOp):
                continue
            if half.name not in found:
                raise BadTable(f"a measured model has {half.name}, which is not among {', '.join(names)}")
            found[half.name] += 1
    return [1, *found.values()]


def sizes(variant: Variant) -> tuple[float, float, float, float]:
    """What a variant's time depends on: 1 and KV heads for attention, 1 and width for an FFN, each in a place of its own.

    Raises `IllegalArch` for a variant that no engine measured here runs.
    """
    match variant:
        case Attention(kv_heads=kv_heads):
            return 1, kv_heads, 0, 0
        case Ffn(width=width):
            return 0, 0, 1, width
        case _:
            raise IllegalArch(f"{variant.name} is not measured in a serving engine; search without it")


def _times(counts: Array, options: Sequence[Variant], measured: Sequence[float]) -> Array:
    """Milliseconds of what every model pays, and of each option."""
    sized = np.array([[1, 0, 0, 0, 0], *([0, *sizes(option)] for option in options)], dtype=float)
    total = np.array(measured)
    rates = _non_negative((counts @ sized) / total[:, None], np.ones(len(total)))
    expected = sized @ rates
    # An option that its size says is free may still cost something: it deviates from a share of the mean.
    scale = LOOSE * np.maximum(expected, expected.mean() / 10)
    rows = np.vstack([counts / total[:, None] / NOISE, np.diag(1 / scale)])
    return _non_negative(rows, np.concatenate([np.full(len(total), 1 / NOISE), expected / scale]))


def _non_negative(rows: Array, target: Array) -> Array:
    """Least squares of numbers that are at least 0; columns are scaled to equal size first."""
    unit = np.maximum(np.abs(rows).max(axis=0), 1e-300)
    found = cast("tuple[Any, float]", optimize.nnls(rows / unit, target))[0]  # pyright: ignore[reportUnknownMemberType]
    return found / unit


def spread_over(variants: Mapping[str, Variant], archs: Sequence[DecoderArch]) -> dict[str, int]:
    """How many sub-blocks of each variant some architectures have: a variant with none is told by its size alone."""
    total = np.sum([counted(arch, list(variants)) for arch in archs], axis=0)
    return dict(zip(variants, (int(number) for number in total[1:]), strict=True))
