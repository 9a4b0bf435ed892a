"""A cost table made in vLLM, from the models that are served to the run that uses it."""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tests import tiny

from befit.arch.decoder import Attention, DecoderArch, Ffn, NoOp
from befit.arch.decoder_space import DecoderSpace
from befit.cli import main
from befit.cost.count import count
from befit.cost.device import Device, this_device
from befit.cost.latency import errors
from befit.cost.workload import Workload
from befit.errors import BefitError
from befit.lm.families import family_of
from befit.lm.timing import Effort
from befit.puzzle import job
from befit.serve.engine import Answer, Setting
from befit.serve.measured import Measured
from befit.serve.room import token_bytes
from befit.serve.table import (
    FIT_RUNS,
    LITTLE,
    measure_served,
    measured_on,
    serve_arch,
    served_key,
    smallest,
    variants_of,
)

CONFIG = tiny.config("llama", 8, hidden_size=64, num_attention_heads=8, num_key_value_heads=8, intermediate_size=2048)
SPACE = DecoderSpace(shape=family_of(CONFIG).describe(CONFIG), target="vllm")
WORKS = (Workload(batch=4, prompt=8, generate=8), Workload(batch=2, prompt=32, generate=4))
DEVICE = Device(name="made up", kind="cuda", engine="vLLM 0", cores=1, threads=1, memory_bytes=2**30)


def made_up(work: Workload, arch: DecoderArch) -> Measured:
    """Times by a formula: a part that all models pay, sub-blocks by their size; decode at least 0.9 ms."""
    heads = sum(b.attention.kv_heads + 2 for b in arch.blocks if isinstance(b.attention, Attention))
    widths = sum(b.ffn.width + 100 for b in arch.blocks if isinstance(b.ffn, Ffn))
    first = 1.0 + work.batch * work.prompt * (0.001 * heads + 0.00002 * widths)
    each = max(0.9, 0.5 + 0.01 * heads + 0.0002 * widths)
    cost = count(SPACE.shape, arch, work)
    tokens = int((2**30 - cost.weight_bytes - 12_345) / token_bytes(SPACE.shape, arch, work))
    total = first + work.generate * each
    return Measured(
        first_ms=first, mean_first_ms=first, total_ms=total, weight_bytes=cost.weight_bytes, kv_tokens=tokens
    )


def by_formula(engine: Any, arch: DecoderArch, shape: Any, config: Any, workloads: Sequence[Workload]) -> Answer:
    del engine, shape, config
    runs = tuple(made_up(work, arch) for work in workloads)
    return Answer(runs=runs, start_s=1.0, memory_bytes=2**30, memory_share=1.0)


def test_a_table_for_each_workload_predicts_models_that_it_has_not_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("befit.serve.table.serve_arch", by_formula)
    engine: Any = None
    effort = Effort(fit_runs=2, held_out_runs=5)
    priced = measure_served(CONFIG, SPACE, WORKS, DEVICE, engine, effort=effort)
    assert [table.workload for table in priced.tables] == list(WORKS)
    for table in priced.tables:
        assert len(table.fitted_on) == FIT_RUNS and len(table.held_out) == 5
        assert table.fitted_on[0].arch == SPACE.shape.arch
        assert table.least_decode_ms == pytest.approx(0.9)
        assert errors(table, table.held_out).worst() < 0.01
    seen = priced.tables[0].held_out[0].arch
    assert priced.room.kv_tokens(SPACE.shape, seen, WORKS[0]) == pytest.approx(
        made_up(WORKS[0], seen).kv_tokens, rel=1e-6
    )


def test_the_smallest_model_is_legal_and_smaller_than_any() -> None:
    least = smallest(SPACE)
    assert sum(isinstance(block.attention, Attention) for block in least.blocks) == 1
    assert least.blocks[0].attention == Attention(kv_heads=1)
    assert all(isinstance(half, NoOp) for b in least.blocks[1:] for half in (b.attention, b.ffn))
    assert SPACE.contains(least)


def test_every_variant_has_its_name_once() -> None:
    names = variants_of(SPACE)
    assert {"kv8", "kv1", "noop", "ffn2048"} <= set(names)
    assert all(variant.name == name for name, variant in names.items())


def test_a_folder_that_vllm_can_read_is_served_and_gone() -> None:
    told = list[tuple[Path, dict[str, Any], float | None]]()

    def engine(folder: Path, workloads: Sequence[Workload], *, memory_share: float | None) -> Answer:
        told.append((folder, json.loads((folder / "config.json").read_text()), memory_share))
        return by_formula(None, SPACE.shape.arch, None, None, workloads)

    serving: Any = engine
    serve_arch(serving, SPACE.shape.arch, SPACE.shape, CONFIG, WORKS)
    serve_arch(serving, smallest(SPACE), SPACE.shape, CONFIG, WORKS)
    assert [config["num_hidden_layers"] for _, config, _ in told] == [8, 1]
    assert [share for *_, share in told] == [None, LITTLE]
    assert told[0][1]["dtype"] == "bfloat16"
    assert not any(folder.exists() for folder, *_ in told)


def test_a_key_names_all_that_a_table_depends_on() -> None:
    key = served_key(SPACE, WORKS, DEVICE, Setting(), Effort())
    assert key == served_key(SPACE, WORKS, DEVICE, Setting(), Effort())
    others = [
        served_key(SPACE, WORKS[:1], DEVICE, Setting(), Effort()),
        served_key(SPACE, WORKS, replace(DEVICE, engine="vLLM 1"), Setting(), Effort()),
        served_key(SPACE, WORKS, DEVICE, Setting(compiled=True), Effort()),
        served_key(SPACE, WORKS, DEVICE, Setting(), Effort(held_out_runs=1)),
    ]
    assert len({key, *others}) == 5


@pytest.mark.usefixtures("fake_vllm")
def test_the_device_names_its_engine() -> None:
    gpu = replace(this_device("cpu"), kind="cuda")
    assert measured_on(gpu, Setting()).engine == "vLLM 0.25.0, not compiled, CUDA graphs, 8192 tokens a step"
    with pytest.raises(BefitError, match="measures on a GPU"):
        measured_on(this_device("cpu"), Setting())


@pytest.mark.usefixtures("fake_vllm")
def test_befit_measure_keeps_the_table_of_vllm(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(job, "measured_on", lambda device, setting: replace(device, engine="vLLM without a model"))
    words = ["--workload", "batch=2,prompt=4,generate=4", "--measure.held-out-runs", "1", "--device", "cpu"]
    run = ["measure", "--engine", "vllm", "--out", str(tmp_path / "run"), *words, "--sequence", "32"]
    assert main(run) == 0, capsys.readouterr().err
    stages = list((tmp_path / "run" / "stages").glob("measure-*"))
    assert len(stages) == 1
    table = json.loads((stages[0] / "latency-2.json").read_text())
    assert table["device"]["engine"] == "vLLM without a model"
    assert set(table["attention"]) == {"kv4", "kv2", "kv1"} and "linear" not in table["ffn"]
    assert len(table["fitted_on"]) == FIT_RUNS and table["least_decode_ms"] > 0
    assert (tmp_path / "run" / "vllm.log").is_file()


def test_befit_measure_without_vllm_says_what_to_do_before_any_work(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["measure", "--engine", "vllm", "--out", str(tmp_path / "run")]) == 2
    assert "pip install vllm" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
    assert main(["puzzle", "--engine", "vllm", "--target", "llama.cpp", "--out", str(tmp_path / "run")]) == 2
    assert "leave one of them out" in capsys.readouterr().err
