"""Parent, child and baselines side by side: how fast each serves a workload, and how many tokens fit beside it.

Engine vllm serves each folder with made-up weights of its shapes, one after the other; engine torch runs the weights themselves
in PyTorch, in turns. vLLM tells how many tokens it found room for; in PyTorch nothing sets memory aside, so that number is
counted: what the device's memory leaves beside the weights.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from befit.arch.decoder import DecoderArch, DecoderShape
from befit.budget import human
from befit.cost.count import count
from befit.cost.device import Device, this_device
from befit.cost.passes import prefill_note
from befit.cost.workload import Workload
from befit.errors import BadData, UnsupportedModel
from befit.export.language import Language, open_language
from befit.lm.child import load
from befit.lm.parent import find, load_parent
from befit.lm.precision import DTYPES
from befit.lm.timing import measure_models
from befit.progress import Progress, silent
from befit.rundir import read_json
from befit.serve.engine import Setting, Vllm
from befit.serve.measured import Measured, check_generates
from befit.serve.room import token_bytes
from befit.serve.table import measured_on, serve_arch

ENGINES = ("torch", "vllm")
"""What may run the models."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """One model."""

    name: str
    """The folder, as it was given."""
    measured: Measured
    """What it did; in PyTorch, `kv_tokens` is counted."""


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Models on one device, in one engine, under one workload."""

    device: Device
    """The machine, and the engine as its software."""
    workload: Workload
    """What each was asked to do."""
    kv_tokens: str
    """How the tokens that fit are known: measured or counted."""
    rows: tuple[Row, ...]
    """In the order given."""

    def to_json(self) -> dict[str, Any]:
        """Plain values: the device, the workload, and for each model its numbers with their units in their names."""
        work = self.workload
        models = [
            {
                "name": row.name,
                "tokens_per_s": row.measured.tokens_per_s(work),
                "first_ms": row.measured.first_ms,
                "mean_first_ms": row.measured.mean_first_ms,
                "each_token_ms": row.measured.each_token_ms(work),
                "total_ms": row.measured.total_ms,
                "weight_bytes": row.measured.weight_bytes,
                "kv_tokens": row.measured.kv_tokens,
            }
            for row in self.rows
        ]
        return {
            "device": asdict(self.device),
            "workload": asdict(work),
            "kv_tokens": self.kv_tokens,
            "models": models,
        }

    def notes(self) -> list[str]:
        """What a reader of the table should know."""
        work, told = self.workload, list[str]()
        if self.kv_tokens == "measured":
            return told
        if work != work.computed:
            told.append(
                f"Times are those of {work.computed.formats}, which PyTorch computes in; "
                f"weights and tokens that fit are counted with {work.formats}."
            )
        return [*told, *filter(None, [prefill_note(work)])]

    def table(self) -> list[dict[str, str]]:
        """For a terminal; the first model is what the others are compared with."""
        work, first = self.workload, self.rows[0].measured.tokens_per_s(self.workload)
        return [
            {
                "model": row.name,
                "tokens/s": f"{row.measured.tokens_per_s(work):,.0f}",
                "": f"{row.measured.tokens_per_s(work) / first:.2f}x",
                "first token": human("latency_ms", row.measured.first_ms),
                "each token": human("latency_ms", row.measured.each_token_ms(work)),
                "weights": human("weight_bytes", row.measured.weight_bytes),
                f"tokens that fit, {self.kv_tokens}": f"{row.measured.kv_tokens:,}",
            }
            for row in self.rows
        ]


def bench(  # noqa: PLR0913 - what, where and how
    sources: Sequence[str],
    *,
    engine: str = "torch",
    workload: str = "",
    device: str = "auto",
    dtype: str | None = None,
    setting: Setting | None = None,
    log: Path = Path("vllm.log"),
    progress: Progress = silent,
) -> Comparison:
    """Measure checkpoints (parents, children, runs of `befit puzzle`, exports, "befit:dense") side by side.

    `dtype` is fp32, bf16 or fp16, by default bf16 on a GPU and fp32 on a CPU. Raises `BadData` for an unknown engine or no
    model, `BadBudget` for the workload, `RunConflict` or `UnsupportedModel` for a folder that is no checkpoint.
    """
    if engine not in ENGINES:
        raise BadData(f"engine must be one of {', '.join(ENGINES)}, got {engine!r}")
    if not sources:
        raise BadData("befit bench compares checkpoints; give at least one folder")
    place = this_device(device)
    if engine == "vllm":
        place = measured_on(place, setting or Setting())
    number_format = dtype or ("bf16" if place.kind == "cuda" else "fp32")
    work = Workload.parse(workload, base=Workload(weights=number_format, cache=number_format))
    check_generates(work)
    folders = {source: found_in(source) for source in sources}
    if engine == "torch":
        exports = [source for source, folder in folders.items() if is_export(folder)]
        if exports:
            raise BadData(
                f"{exports[0]} is an export that vLLM runs; give the child that it was made of, or --engine vllm"
            )
        return _in_torch({name: open_language(folder) for name, folder in folders.items()}, work, place, progress)
    models = {name: folder if is_export(folder) else open_language(folder) for name, folder in folders.items()}
    with Vllm(setting or Setting(), log) as running:
        rows = [
            Row(name=name, measured=_in_vllm(running, one, work))
            for name, one in progress(list(models.items()), "bench", len(models))
        ]
    return Comparison(device=place, workload=work, kv_tokens="measured", rows=tuple(rows))


def found_in(source: str) -> Path:
    """The folder that a name means: one that befit ships, one on the hub, or simply a folder."""
    return Path(source) if Path(source).is_dir() else find(source)


def is_export(folder: Path) -> bool:
    """Whether a folder is in the form that vLLM reads and befit only writes."""
    config = folder / "config.json"
    return config.is_file() and read_json(config).get("model_type") == "nemotron-nas"


def _in_vllm(engine: Vllm, one: Language | Path, workload: Workload) -> Measured:
    if isinstance(one, Path):
        return engine(one, [workload]).runs[0]
    return serve_arch(engine, one.arch, one.shape, one.config, [workload]).runs[0]


def _in_torch(models: Mapping[str, Language], workload: Workload, device: Device, progress: Progress) -> Comparison:
    """PyTorch, in turns; decode is timed at the full context, so a token after the first takes at most that."""
    work = workload.computed
    loaded = {name: _loaded(one, work, device) for name, one in models.items()}
    times = measure_models(loaded, work, device, progress=progress)
    rows = []
    for name, one in models.items():
        first, each = times[name].prefill_ms, times[name].decode_ms
        cost = count(one.shape, one.arch, workload)
        told = Measured(
            first_ms=first,
            mean_first_ms=first,
            total_ms=first + (workload.generate - 1) * each,
            weight_bytes=cost.weight_bytes,
            kv_tokens=_that_fit(device, one.shape, one.arch, workload),
        )
        rows.append(Row(name=name, measured=told))
    return Comparison(device=device, workload=workload, kv_tokens="counted", rows=tuple(rows))


def _loaded(one: Language, workload: Workload, device: Device) -> Any:
    """The model on the device, as befit's own row of layers."""
    number_format = DTYPES[workload.weights]
    if one.own_code:
        try:
            child: Any = load(one.folder, dtype=number_format)
        except SafetensorError as error:
            raise UnsupportedModel(f"the weights in {one.folder} cannot be read ({error}); copy them again") from error
        return child.to(device.kind)
    return load_parent(str(one.folder), device=device.kind, dtype=number_format).model


def _that_fit(device: Device, shape: DecoderShape, arch: DecoderArch, workload: Workload) -> int:
    left = device.memory_bytes - count(shape, arch, workload).weight_bytes
    each = token_bytes(shape, arch, replace(workload, batch=1))
    return max(0, int(left / each)) if each else 0
