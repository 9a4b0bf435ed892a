"""Latency of any architecture from a table measured once: a sum over sub-blocks, corrected on whole models.

Runtime depends on a sub-block's shape, not on its layer, so each distinct shape is measured once, prefill and decode apart
(Puzzle, arXiv 2411.19146, section 3). Sums of separately measured parts miss what parts share, so a few whole models are
measured too and four numbers for each phase are fitted to them: factors on attention, on FFN and on the fixed part, and a
constant for every sub-block that is present. The corrected table is still a sum, so a linear solver can use it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from statistics import median
from typing import Any, cast

import numpy as np
from scipy import optimize  # pyright: ignore[reportMissingTypeStubs]

from befit.arch.decoder import Block, DecoderArch, NoOp
from befit.cost.device import Device
from befit.cost.workload import Workload
from befit.errors import BadTable, IllegalArch

RIDGE = 0.03
"""Weight of staying at the uncorrected table against the relative errors of the runs: about (5 % measurement noise over 30 %
expected deviation of the factors) squared."""


@dataclass(frozen=True, kw_only=True)
class Latency:
    """Time of the two phases of generation; times of parts add."""

    prefill_ms: float
    """The whole prompt of every request of the batch."""
    decode_ms: float
    """One more token for every request of the batch."""

    def __add__(self, other: "Latency") -> "Latency":
        return Latency(
            prefill_ms=self.prefill_ms + other.prefill_ms,
            decode_ms=self.decode_ms + other.decode_ms,
        )

    def latency_ms(self, workload: Workload) -> float:
        """From the prompts' arrival to the last generated token."""
        return self.prefill_ms + workload.generate * self.decode_ms

    def tokens_per_s(self, workload: Workload) -> float:
        """Generated tokens of all requests each second."""
        return 1000 * workload.batch * workload.generate / self.latency_ms(workload)


@dataclass(frozen=True, kw_only=True)
class WholeRun:
    """One whole model, measured."""

    arch: DecoderArch
    """What was measured."""
    prefill_ms: float
    """As in `Latency`."""
    decode_ms: float
    """As in `Latency`."""

    @property
    def measured(self) -> Latency:
        return Latency(prefill_ms=self.prefill_ms, decode_ms=self.decode_ms)


@dataclass(frozen=True, kw_only=True)
class Correction:
    """What whole models say about one phase of the table; the defaults leave it as it is."""

    attention: float = 1.0
    """Factor on every attention time."""
    ffn: float = 1.0
    """Factor on every FFN time."""
    sub_block_ms: float = 0.0
    """Added for every sub-block that is no no-op, at least 0."""
    fixed: float = 1.0
    """Factor on the fixed part's time."""


@dataclass(frozen=True, kw_only=True)
class LatencyTable:
    """Measured times of every distinct sub-block, for one device and workload."""

    device: Device
    """Where it was measured."""
    workload: Workload
    """Batch and lengths it was measured at; weights and cache in `dtype`."""
    dtype: str
    """Number format it was computed in: fp32, bf16 or fp16."""
    base: Latency
    """Embedding, rotary table, final norm and output projection, as measured."""
    attention: Mapping[str, Latency]
    """As measured, by the variant's name; no-ops are absent and cost nothing."""
    ffn: Mapping[str, Latency]
    """As measured, by the variant's name; no-ops are absent and cost nothing."""
    prefill: Correction = Correction()
    """Fitted by `calibrate`."""
    decode: Correction = Correction()
    """Fitted by `calibrate`."""
    least_decode_ms: float = 0.0
    """No step of decode is shorter: what an engine's own scheduling takes while the GPU waits; 0 where nothing waits."""
    prefill_note: str = ""
    """How prefill was put together of parts, where not all of it was measured at once (`befit.cost.passes`)."""
    fitted_on: tuple[WholeRun, ...] = ()
    """Whole models behind the corrections."""
    held_out: tuple[WholeRun, ...] = ()
    """Whole models that were measured but not fitted: the honest test of the table."""

    def fixed(self) -> Latency:
        """What every architecture costs, corrected."""
        return Latency(
            prefill_ms=self.prefill.fixed * self.base.prefill_ms,
            decode_ms=self.decode.fixed * self.base.decode_ms,
        )

    def option_costs(self, block: Block) -> Latency:
        """What one layer adds, corrected. Raises `IllegalArch` for a variant that was not measured."""
        attention, ffn = _parts(self, block)
        total = Latency(prefill_ms=0.0, decode_ms=0.0)
        if attention:
            total += Latency(
                prefill_ms=self.prefill.attention * attention.prefill_ms + self.prefill.sub_block_ms,
                decode_ms=self.decode.attention * attention.decode_ms + self.decode.sub_block_ms,
            )
        if ffn:
            total += Latency(
                prefill_ms=self.prefill.ffn * ffn.prefill_ms + self.prefill.sub_block_ms,
                decode_ms=self.decode.ffn * ffn.decode_ms + self.decode.sub_block_ms,
            )
        return total

    def predict(self, arch: DecoderArch) -> Latency:
        """The fixed part plus every layer, or the least that the engine allows. Raises `IllegalArch` for an unknown variant."""
        total = self.fixed()
        for block in arch.blocks:
            total += self.option_costs(block)
        return replace(total, decode_ms=max(total.decode_ms, self.least_decode_ms))

    def to_json(self) -> dict[str, Any]:
        """Plain values; `from_json` reads them back."""
        runs = {
            name: [asdict(run) | {"arch": run.arch.to_json()} for run in getattr(self, name)]
            for name in ("fitted_on", "held_out")
        }
        return asdict(self) | runs

    @staticmethod
    def from_json(data: Mapping[str, Any]) -> "LatencyTable":
        """Read what `to_json` wrote. Raises `BadTable` for an unknown or missing key."""
        given = exact(
            LatencyTable, {"least_decode_ms": 0.0, "prefill_note": ""} | dict(data)
        )  # older tables do without
        for name in ("attention", "ffn"):
            given[name] = {variant: Latency(**exact(Latency, entry)) for variant, entry in given[name].items()}
        for name in ("fitted_on", "held_out"):
            given[name] = tuple(_run(entry) for entry in given[name])
        for name, kind in (("device", Device), ("workload", Workload), ("base", Latency)):
            given[name] = kind(**exact(kind, given[name]))
        for name in ("prefill", "decode"):
            given[name] = Correction(**exact(Correction, given[name]))
        return LatencyTable(**given)


@dataclass(frozen=True, kw_only=True)
class Errors:
    """Relative errors |predicted - measured| / measured of a table on whole models, one entry for each run."""

    prefill: tuple[float, ...]
    decode: tuple[float, ...]
    latency: tuple[float, ...]
    """Of prefill plus all decode steps of the workload."""

    def median(self) -> float:
        """Median error of the latency."""
        return median(self.latency)

    def worst(self) -> float:
        """Largest error of the latency."""
        return max(self.latency)


def errors(table: LatencyTable, runs: Sequence[WholeRun]) -> Errors:
    """How far the table is from what whole models took; `runs` must not be empty."""
    pairs = [(table.predict(run.arch), run.measured) for run in runs]
    work = table.workload
    return Errors(
        prefill=tuple(_relative(p.prefill_ms, m.prefill_ms) for p, m in pairs),
        decode=tuple(_relative(p.decode_ms, m.decode_ms) for p, m in pairs),
        latency=tuple(_relative(p.latency_ms(work), m.latency_ms(work)) for p, m in pairs),
    )


def calibrate(table: LatencyTable, runs: Sequence[WholeRun]) -> LatencyTable:
    """The table with its corrections fitted to whole models (earlier corrections and runs are replaced).

    Non-negative least squares on relative errors, with a ridge towards no correction: with few runs the factors stay near
    1, and no option can become cheaper than nothing.
    """
    return replace(
        table,
        prefill=_fit(table, runs, "prefill_ms"),
        decode=_fit(table, runs, "decode_ms"),
        fitted_on=tuple(runs),
    )


def _fit(table: LatencyTable, runs: Sequence[WholeRun], phase: str) -> Correction:
    """Coefficients are (attention, ffn, sub-block constant in units of the mean sub-block's time, fixed)."""
    rows = np.array([_features(table, run.arch, phase) for run in runs]).reshape(-1, 4)
    times = np.array([getattr(run, phase) for run in runs])
    sub_blocks = rows[:, 2].sum()
    unit = float(rows[:, :2].sum() / sub_blocks) if sub_blocks else 0.0
    rows[:, 2] *= unit
    weight = np.sqrt(RIDGE)
    prior = np.array([1.0, 1.0, 0.0, 1.0])
    matrix = np.vstack([rows / times[:, None], weight * np.eye(4)])
    target = np.concatenate([np.ones(len(runs)), weight * prior])
    solution = cast("tuple[Any, float]", optimize.nnls(matrix, target))[0]  # pyright: ignore[reportUnknownMemberType]
    attention, ffn, constant, fixed = (float(value) for value in solution)
    return Correction(attention=attention, ffn=ffn, sub_block_ms=constant * unit, fixed=fixed)


def _features(table: LatencyTable, arch: DecoderArch, phase: str) -> tuple[float, float, int, float]:
    parts = [_parts(table, block) for block in arch.blocks]
    attention = [getattr(part, phase) for part, _ in parts if part]
    ffn = [getattr(part, phase) for _, part in parts if part]
    return sum(attention), sum(ffn), len(attention) + len(ffn), getattr(table.base, phase)


def _parts(table: LatencyTable, block: Block) -> tuple[Latency | None, Latency | None]:
    """Measured times of a layer's attention and FFN; None for a no-op."""
    found: list[Latency | None] = []
    for kind, variant, known in (("attention", block.attention, table.attention), ("FFN", block.ffn, table.ffn)):
        if not isinstance(variant, NoOp) and variant.name not in known:
            raise IllegalArch(
                f"{kind} {variant.name} was not measured; the table has {', '.join(known) or 'none'}. Measure it again"
            )
        found.append(known.get(variant.name))
    return found[0], found[1]


def _relative(predicted: float, measured: float) -> float:
    return abs(predicted - measured) / measured


def _run(data: Mapping[str, Any]) -> WholeRun:
    given = exact(WholeRun, data)
    given["arch"] = DecoderArch.from_json(given["arch"])
    return WholeRun(**given)


def exact(kind: type, data: Any) -> dict[str, Any]:
    """The fields of a dataclass as found in JSON, none missing, none unknown. Raises `BadTable`."""
    expected = [field.name for field in fields(kind) if field.init]
    given = dict(cast("Mapping[str, Any]", data)) if isinstance(data, Mapping) else {}
    if set(given) != set(expected):
        raise BadTable(f"latency table, {kind.__name__}: expected exactly the keys {expected}, got {data!r:.200}")
    return given
