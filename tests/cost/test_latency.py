"""The additive table: exact sums, corrections that recover a known truth, strict JSON."""

import json
import random
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from befit.arch.decoder import Attention, Block, DecoderArch, Ffn, Linear, NoOp
from befit.cost.device import this_device
from befit.cost.latency import Correction, Latency, LatencyTable, WholeRun, calibrate, errors
from befit.cost.workload import Workload
from befit.errors import BadTable, IllegalArch

ATTENTION = [Attention(kv_heads=4), Attention(kv_heads=2), Attention(kv_heads=2, window=64), Linear(), NoOp()]
FFN = [Ffn(width=512), Ffn(width=96), Linear(), NoOp()]
TABLE = LatencyTable(
    device=this_device("cpu"),
    workload=Workload(batch=4, prompt=16, generate=10),
    dtype="fp32",
    base=Latency(prefill_ms=2.0, decode_ms=0.3),
    attention={
        "kv4": Latency(prefill_ms=5.0, decode_ms=0.7),
        "kv2": Latency(prefill_ms=4.1, decode_ms=0.6),
        "kv2w64": Latency(prefill_ms=3.3, decode_ms=0.5),
        "linear": Latency(prefill_ms=0.9, decode_ms=0.1),
    },
    ffn={
        "ffn512": Latency(prefill_ms=6.0, decode_ms=0.8),
        "ffn96": Latency(prefill_ms=1.7, decode_ms=0.3),
        "linear": Latency(prefill_ms=0.8, decode_ms=0.15),
    },
)
TRUTH = replace(
    TABLE,
    prefill=Correction(attention=0.8, ffn=1.1, sub_block_ms=0.4, fixed=1.3),
    decode=Correction(attention=1.2, ffn=0.9, sub_block_ms=0.05, fixed=0.7),
)

blocks = st.builds(Block, attention=st.sampled_from(ATTENTION), ffn=st.sampled_from(FFN))
archs = st.builds(DecoderArch, blocks=st.lists(blocks, min_size=1, max_size=9).map(tuple))


def drawn(count: int, seed: int) -> list[DecoderArch]:
    rng = random.Random(seed)
    return [
        DecoderArch(blocks=tuple(Block(attention=rng.choice(ATTENTION), ffn=rng.choice(FFN)) for _ in range(8)))
        for _ in range(count)
    ]


def measured(arch: DecoderArch, noise: float = 0.0, rng: random.Random | None = None) -> WholeRun:
    """What a machine that obeys `TRUTH` would show."""
    truth, rng = TRUTH.predict(arch), rng or random.Random(0)
    return WholeRun(
        arch=arch,
        prefill_ms=truth.prefill_ms * (1 + rng.uniform(-noise, noise)),
        decode_ms=truth.decode_ms * (1 + rng.uniform(-noise, noise)),
    )


def test_latency_and_throughput_in_the_open() -> None:
    workload = Workload(batch=4, prompt=16, generate=10)
    times = Latency(prefill_ms=30.0, decode_ms=2.0)
    assert times.latency_ms(workload) == 50.0
    assert times.tokens_per_s(workload) == 800.0  # 40 tokens in 50 ms


def test_prediction_in_the_open() -> None:
    arch = DecoderArch(
        blocks=(
            Block(attention=Attention(kv_heads=4), ffn=Ffn(width=96)),
            Block(attention=NoOp(), ffn=Linear()),
            Block(attention=NoOp(), ffn=NoOp()),
        )
    )
    assert TABLE.predict(arch).prefill_ms == pytest.approx(2.0 + 5.0 + 1.7 + 0.8)
    assert TRUTH.predict(arch).prefill_ms == pytest.approx(1.3 * 2.0 + 0.8 * 5.0 + 1.1 * (1.7 + 0.8) + 3 * 0.4)
    assert TRUTH.predict(arch).decode_ms == pytest.approx(0.7 * 0.3 + 1.2 * 0.7 + 0.9 * (0.3 + 0.15) + 3 * 0.05)


@settings(deadline=None)
@given(arch=archs)
def test_the_solver_s_sum_is_the_prediction(arch: DecoderArch) -> None:
    total = TRUTH.fixed()
    for block in arch.blocks:
        total = total + TRUTH.option_costs(block)
    assert total == TRUTH.predict(arch)


def test_calibration_on_many_runs_recovers_the_truth() -> None:
    table = calibrate(TABLE, [measured(arch) for arch in drawn(400, seed=1)])
    found = errors(table, [measured(arch) for arch in drawn(50, seed=2)])
    assert max(found.prefill) < 0.02 and max(found.decode) < 0.02


def test_calibration_on_six_noisy_runs_helps_on_others() -> None:
    rng = random.Random(3)
    table = calibrate(TABLE, [measured(a, 0.05, rng) for a in drawn(6, seed=4)])
    others = [measured(a) for a in drawn(30, seed=5)]
    assert errors(table, others).median() < 0.5 * errors(TABLE, others).median()
    assert errors(table, others).worst() < 0.15
    assert len(table.fitted_on) == 6 and table.held_out == ()


def test_without_runs_the_table_stays_as_measured() -> None:
    table = calibrate(TRUTH, [])
    arch = drawn(1, seed=6)[0]
    assert table.predict(arch).prefill_ms == pytest.approx(TABLE.predict(arch).prefill_ms)
    assert table.predict(arch).decode_ms == pytest.approx(TABLE.predict(arch).decode_ms)


def test_calibration_replaces_an_earlier_one() -> None:
    runs = [measured(a) for a in drawn(8, seed=7)]
    assert calibrate(calibrate(TABLE, runs[:4]), runs) == calibrate(TABLE, runs)


@settings(deadline=None)
@given(st.lists(st.floats(0.01, 1000), min_size=6, max_size=6))
def test_no_option_is_ever_cheaper_than_nothing(times: list[float]) -> None:
    runs = [WholeRun(arch=a, prefill_ms=t, decode_ms=t) for a, t in zip(drawn(6, seed=8), times, strict=True)]
    table = calibrate(TABLE, runs)
    for attention in ATTENTION:
        for ffn in FFN:
            cost = table.option_costs(Block(attention=attention, ffn=ffn))
            assert cost.prefill_ms >= 0 and cost.decode_ms >= 0
    assert table.fixed().prefill_ms >= 0


def test_errors_are_relative_to_the_measured() -> None:
    arch = drawn(1, seed=9)[0]
    run = WholeRun(
        arch=arch, prefill_ms=2 * TABLE.predict(arch).prefill_ms, decode_ms=TABLE.predict(arch).decode_ms / 2
    )
    found = errors(TABLE, [run])
    assert found.prefill[0] == pytest.approx(0.5) and found.decode[0] == pytest.approx(1.0)
    assert found.median() == found.worst() == found.latency[0]


def test_a_variant_that_was_not_measured_is_named() -> None:
    block = Block(attention=Attention(kv_heads=1), ffn=NoOp())
    with pytest.raises(IllegalArch, match="attention kv1 was not measured; the table has kv4, kv2"):
        TABLE.option_costs(block)


def test_json_is_inverse_and_strict() -> None:
    runs = [measured(a) for a in drawn(5, seed=10)]
    table = replace(calibrate(TABLE, runs[:3]), held_out=tuple(runs[3:]))
    data = json.loads(json.dumps(table.to_json()))
    assert LatencyTable.from_json(data) == table
    for path in [(), ("device",), ("workload",), ("attention", "kv4"), ("prefill",), ("base",)]:
        for change in ("unknown", "missing"):
            broken = json.loads(json.dumps(data))
            place = broken
            for key in path:
                place = place[key]
            if change == "unknown":
                place["surprise"] = 1
            else:
                place.pop(next(iter(place)))
            with pytest.raises(BadTable, match="expected exactly the keys"):
                LatencyTable.from_json(broken)
