"""Options are told by whole models: exactly where they say enough, else by size, and never by steps of the engine's own."""

import random
from dataclasses import replace

import pytest
from tests import tiny

from befit.arch.decoder import Attention, Block, DecoderArch, Ffn, Linear, NoOp, Variant
from befit.arch.decoder_space import DecoderSpace
from befit.cost.device import Device
from befit.cost.latency import LatencyTable, WholeRun, errors
from befit.cost.workload import Workload
from befit.errors import BadTable, IllegalArch
from befit.lm.families import family_of
from befit.serve.fit import LEAST_RUNS, Setup, counted, fit_table, sizes

DEVICE = Device(name="made up", kind="cuda", engine="vLLM 0", cores=1, threads=1, memory_bytes=2**30)
SETUP = Setup(device=DEVICE, workload=Workload(batch=8, prompt=16, generate=8), dtype="bf16")
OPTIONS: list[Variant] = [
    *(Attention(kv_heads=k) for k in (8, 4, 2, 1)),
    *(Ffn(width=w) for w in (1024, 768, 512, 256)),
    NoOp(),
]


def true_ms(variant: Variant, bend: float = 0.0) -> float:
    """Time by a formula: linear in size, and up to `bend` off it, each size in its own way."""
    if isinstance(variant, NoOp):
        return 0.0
    one, heads, other, width = sizes(variant)
    straight = 0.05 * one + 0.01 * heads + 0.04 * other + 0.0002 * width
    return straight * (1 + bend * random.Random(variant.name).uniform(-1, 1))


def drawn(seed: int, layers: int = 16) -> DecoderArch:
    rng = random.Random(seed)
    attention = [v for v in OPTIONS if not isinstance(v, Ffn)]
    ffn = [v for v in OPTIONS if not isinstance(v, Attention)]
    weights = [rng.random() for _ in attention], [rng.random() for _ in ffn]
    blocks = [
        Block(attention=rng.choices(attention, weights[0])[0], ffn=rng.choices(ffn, weights[1])[0])  # pyright: ignore[reportArgumentType]
        for _ in range(layers)
    ]
    return DecoderArch(blocks=tuple(blocks))


def run_of(seed: int, *, bend: float = 0.0, noise: float = 0.0, least: float = 0.0) -> WholeRun:
    arch, rng = drawn(seed), random.Random(1000 + seed)
    time = 0.5 + sum(true_ms(half, bend) for block in arch.blocks for half in (block.attention, block.ffn))
    return WholeRun(
        arch=arch,
        prefill_ms=20 * time * (1 + rng.gauss(0, noise)),
        decode_ms=max(least, time) * (1 + rng.gauss(0, noise)),
    )


def test_times_linear_in_size_come_back_exactly() -> None:
    table = fit_table(SETUP, [run_of(seed) for seed in range(8)], OPTIONS)
    for variant in OPTIONS:
        if isinstance(variant, NoOp):
            continue
        known = table.attention if isinstance(variant, Attention) else table.ffn
        assert known[variant.name].decode_ms == pytest.approx(true_ms(variant), rel=1e-4)
        assert known[variant.name].prefill_ms == pytest.approx(20 * true_ms(variant), rel=1e-4)
    assert table.base.decode_ms == pytest.approx(0.5, rel=1e-4)
    assert set(table.attention) == {"kv8", "kv4", "kv2", "kv1"}


def test_bent_times_and_noise_leave_models_that_were_not_fitted_within_four_percent() -> None:
    runs = [run_of(seed, bend=0.15, noise=0.005) for seed in range(14)]
    table = fit_table(SETUP, runs, OPTIONS)
    told = errors(table, [run_of(seed, bend=0.15) for seed in range(100, 120)])
    assert told.median() < 0.01
    assert told.worst() < 0.04


def test_options_in_no_model_are_told_by_their_size() -> None:
    runs = [run_of(seed) for seed in range(10)]
    table = fit_table(SETUP, runs, [*OPTIONS, Ffn(width=640)])
    assert table.ffn["ffn640"].decode_ms == pytest.approx(true_ms(Ffn(width=640)), rel=1e-3)


def test_the_engines_own_steps_say_nothing_about_options() -> None:
    least = sorted(run_of(seed).decode_ms for seed in range(48))[24]
    runs = [run_of(seed, least=least) for seed in range(48)]
    assert sum(run.decode_ms == least for run in runs) >= 12
    table = fit_table(SETUP, runs, OPTIONS, least_decode_ms=least)
    assert table.ffn["ffn1024"].decode_ms == pytest.approx(true_ms(Ffn(width=1024)), rel=1e-3)
    assert errors(table, runs).worst() < 1e-3  # the least step included
    blind = fit_table(SETUP, runs, OPTIONS)
    assert errors(blind, runs).worst() > 0.02


def test_no_engine_takes_longer_than_the_fastest_model_in_it() -> None:
    runs = [run_of(seed) for seed in range(20)]
    fastest = min(run.decode_ms for run in runs)
    table = fit_table(SETUP, runs, OPTIONS, least_decode_ms=10 * fastest)  # a slow moment of the smallest model
    assert table.least_decode_ms == fastest
    assert errors(table, [run_of(seed) for seed in range(100, 120)]).worst() < 0.05
    assert fit_table(SETUP, runs, OPTIONS, least_decode_ms=fastest / 2).least_decode_ms == fastest / 2


def test_too_few_models_and_strange_ones_are_refused() -> None:
    runs = [run_of(seed) for seed in range(LEAST_RUNS)]
    fit_table(SETUP, runs, OPTIONS)
    with pytest.raises(BadTable, match=f"at least {LEAST_RUNS}"):
        fit_table(SETUP, runs[:-1], OPTIONS)
    with pytest.raises(BadTable, match="ffn1024"):
        fit_table(SETUP, runs, [v for v in OPTIONS if v != Ffn(width=1024)])
    with pytest.raises(IllegalArch, match="linear"):
        sizes(Linear())


def test_counts_are_those_of_the_layers() -> None:
    arch = DecoderArch(
        blocks=(
            Block(attention=Attention(kv_heads=2), ffn=Ffn(width=512)),
            Block(attention=NoOp(), ffn=Ffn(width=512)),
        )
    )
    assert counted(arch, ["kv2", "kv1", "ffn512"]) == [1, 1, 0, 2]


def test_the_table_survives_json_with_its_least_step_and_old_tables_are_read() -> None:
    table = fit_table(SETUP, [run_of(seed) for seed in range(8)], OPTIONS, least_decode_ms=0.25)
    assert LatencyTable.from_json(table.to_json()) == table
    old = {name: value for name, value in table.to_json().items() if name != "least_decode_ms"}
    assert LatencyTable.from_json(old) == replace(table, least_decode_ms=0.0)
    assert table.to_json()["device"]["engine"].startswith("vLLM")


def test_every_option_of_a_space_for_vllm_has_a_size() -> None:
    plain = tiny.config("llama", 3)
    space = DecoderSpace(shape=family_of(plain).describe(plain), target="vllm")
    halves = {half for i in range(3) for block in space.blocks(i) for half in (block.attention, block.ffn)}
    assert all(sum(sizes(half)) > 1 for half in halves if not isinstance(half, NoOp))
