"""Numbers as people read them, and reading that never raises."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from befit.report import quantities as q

G = q.GAP


@pytest.mark.parametrize(
    ("said", "text"),
    [
        (q.significant(None), "–"),
        (q.significant(0), "0"),
        (q.significant(0.08321), "0.0832"),
        (q.significant(9.999), "10.0"),
        (q.significant(1234.5), "1230"),
        (q.significant(-0.5), "−0.500"),
        (q.significant(0.00001234), f"1.2{G}×{G}10⁻⁵"),
        (q.significant(9.99e-6), f"1.0{G}×{G}10⁻⁵"),
        (q.whole(12), "12"),
        (q.whole(262144), f"262{G}144"),
        (q.whole(54**80), f"3.9{G}×{G}10¹³⁸"),
        (q.whole(10**400), f"1.0{G}×{G}10⁴⁰⁰"),
        (q.percent(0.62), f"62{G}%"),
        (q.percent(0.004), f"0.4{G}%"),
        (q.percent(-0.25), f"−25{G}%"),
        (q.accuracy(0.98764), f"98.8{G}%"),
        (q.accuracy(None), "–"),
        (q.cost("macs", 464_000.0), f"464{G}K"),
        (q.duration(0.42), f"0.4{G}s"),
        (q.duration(59.7), f"1{G}min 0{G}s"),
        (q.duration(200), f"3{G}min 20{G}s"),
        (q.duration(7500), f"2{G}h 5{G}min"),
        (q.amount(3_412_096), f"3.41{G}M"),
        (q.amount(999_999), f"1.00{G}M"),
        (q.amount(1_235_814_400), f"1.24{G}B"),
        (q.size(12_582_912), f"12.0{G}MiB"),
        (q.size(0), f"0{G}B"),
        (q.milliseconds(0.25), f"250{G}µs"),
        (q.milliseconds(1500), f"1.50{G}s"),
        (q.cost("latency_ms", 98.4), f"98.4{G}ms"),
        (q.cost("memory_bytes", 2**30), f"1.00{G}GiB"),
        (q.cost("memory_mib", 1024), f"1.00{G}GiB"),
        (q.cost("params", 2_000_000), f"2.00{G}M"),
        (q.cost("tokens_per_s", 1500), f"1500{G}tokens/s"),
        (q.cost("latency_ms", None), "–"),
        (q.cost_name("latency_ms"), "latency"),
        (q.cost_name("params"), "parameters"),
        (q.cost_name("tokens_per_s"), "throughput"),
        (q.cost_name("peak_memory_bytes"), "peak memory"),
    ],
)
def test_written_as_people_read_it(said: str, text: str) -> None:
    assert said == text


@given(st.floats(min_value=1e-3, max_value=9.9e6))
def test_three_digits_are_kept(value: float) -> None:
    assert float(q.significant(value)) == pytest.approx(value, rel=0.0051)


@given(st.integers(min_value=0, max_value=2**50))
def test_a_size_reads_back(value: int) -> None:
    digits, unit = q.size(value).split(G)
    factor = 1024 ** ("B", "KiB", "MiB", "GiB", "TiB").index(unit)
    assert float(digits) * factor == pytest.approx(value, rel=0.0051)


@pytest.mark.parametrize("value", [None, "1", True, math.nan, math.inf, [], {}])
def test_what_is_no_number_is_absent(value: object) -> None:
    assert q.number(value) is None
    assert q.dig({"a": {"b": value}}, "a", "b") is None


def test_reading_takes_what_is_there() -> None:
    assert q.dig({"a": {"b": 2.5}}, "a", "b") == 2.5
    assert q.dig({"a": 3}, "a", "b") is None
    assert q.entries([{"a": 1}, 2, None, {"b": 2}]) == [{"a": 1}, {"b": 2}]
    assert q.entries("text") == [] and q.mapping([1]) == {}
    assert q.ratio(1, 0) is None and q.ratio(None, 2) is None and q.ratio(1, 4) == 0.25


def test_one_unit_for_an_axis() -> None:
    assert q.unit_of("latency_ms", 250.0) == ("ms", 1.0)
    assert q.unit_of("memory_bytes", 3 * 2**20) == ("MiB", 2**20)
    assert q.unit_of("params", 12e6) == ("M", 1e6)
    assert q.unit_of("tokens_per_s", 12e6) == ("tokens/s", 1.0)


@pytest.mark.parametrize(
    ("given", "factor"),
    [("60%", 0.6), (" 2x", 2.0), ("123.4", None), ("x", None), ("nan%", None), (60, None), (None, None)],
)
def test_a_relative_bound_is_recognised(given: object, factor: float | None) -> None:
    assert q.factor(given) == factor
