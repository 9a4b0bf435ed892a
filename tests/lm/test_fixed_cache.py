"""Passes over parts of a long prompt do the work of the whole. What a cache in fixed memory gives is told in `test_timing`."""

from typing import Any

import pytest
import torch
from tests.lm.test_timing import CPU, QUICK, bench, flops, space_of
from transformers import DynamicCache

import members
from befit.arch.decoder import Attention, Block, DecoderArch, NoOp
from befit.arch.member import whole
from befit.cost import passes as module
from befit.cost.count import count
from befit.cost.device import this_device
from befit.cost.latency import LatencyTable
from befit.cost.passes import passes
from befit.cost.workload import Workload
from befit.lm.fixed_cache import FixedCache
from befit.lm.member_timing import MemberTimer
from befit.lm.timing import Effort, measure_table, model_steps, row_steps
from tiny import ALL, HYBRID, config, parent, tokens

LONG = Workload(batch=3, prompt=40, generate=4, weights="fp32", cache="fp32")
"""Four passes of 10 tokens for each request, of which the first, the second and the last are measured."""


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "WHOLE", 16)
    monkeypatch.setattr(module, "PASS", 10)


def total(work: Workload, steps: tuple[Any, ...]) -> float:
    return sum(part.times * flops(step) for part, step in zip(passes(work), steps[:-1], strict=True))


@pytest.mark.parametrize(("family", "pairs"), [("llama", 850), ("qwen3", 850), ("mistral", 100 + 3 * 150)])
def test_passes_compute_what_a_causal_kernel_does(family: str, pairs: int) -> None:
    """By hand: 10 x 10 pairs of query and key, then 10 x (10 + 5), 10 x (20 + 5) and 10 x (30 + 5); with a window of 6,
    10 x (5 + 10) under a mask. One pass would be 40 x 40. (Older transformers make the rotary table by a small product.)"""
    rig = bench(family)
    cost = count(rig.shape, rig.shape.arch, LONG)
    head = 2 * LONG.batch * rig.shape.hidden * rig.shape.vocab
    scores = 4 * LONG.batch * rig.shape.heads * rig.shape.head_dim * len(rig.shape.arch.blocks)
    expected = cost.flops - head * 40 - scores * 40 * 40 + head * 4 + scores * pairs
    assert total(LONG, model_steps(rig.model(rig.shape.arch), LONG)) == pytest.approx(expected, rel=1e-3)


def test_short_prompts_are_counted_as_often_as_they_go_in() -> None:
    rig, work = bench(), Workload(batch=5, prompt=4, generate=2)
    cost = count(rig.shape, rig.shape.arch, work)
    head = 2 * work.batch * rig.shape.hidden * rig.shape.vocab
    assert total(work, model_steps(rig.model(rig.shape.arch), work)) == pytest.approx(cost.flops - 3 * head, rel=1e-3)


def test_with_windows_a_pass_is_that_of_real_generation() -> None:
    model, rows, work = parent("mistral"), tokens(1, 20), Workload(batch=3, prompt=40, generate=4)
    layers, real = model.model.layers, DynamicCache()
    first = FixedCache(layers, work, 0, requests=1)
    second = FixedCache(layers, work, 10, first.buffers, requests=1)
    with torch.inference_mode():
        for part, cache in ((rows[:, :10], first), (rows[:, 10:], second)):
            with cache.attending():
                got = model(part, past_key_values=cache).logits
            torch.testing.assert_close(got, model(part, past_key_values=real).logits)


@pytest.mark.parametrize("family", ALL)
def test_steps_go_through_and_leave_the_model_as_it_was(family: str) -> None:
    model, base = parent(family), DecoderArch(blocks=(Block(attention=NoOp(), ffn=NoOp()),))
    rows = tokens(2, 12)
    with torch.inference_mode():
        before = model(rows).logits
    for steps in (model_steps(model, LONG), row_steps(model.model.layers, bench(family).model(base), LONG)):
        found: list[Any] = [step() for step in (*steps, *steps)]
        assert len(steps) == 4 and all(one.isfinite().all() for one in found)
        assert [len(one) for one in found[:4]] == [1, 1, 1, 3]
    with torch.inference_mode():
        assert model(rows).logits.equal(before)


@pytest.mark.parametrize("family", ["llama", "mistral", "qwen2", HYBRID])
def test_members_are_timed_in_passes_too(family: str) -> None:
    own: dict[str, Any] = {"use_sliding_window": True, "sliding_window": 6, "max_window_layers": 2}
    net = members.parent_of(config(family, 4, **(own if family == "qwen2" else {})))
    timer = MemberTimer(
        net=net.net,
        config=net.config,
        weights=net.weights,
        workload=LONG,
        device=this_device("cpu"),
        effort=Effort(repeats=1, seconds=0.0),
    )
    steps = timer.steps(net.weights, whole(net.net.shape))
    assert [step().shape for step in steps] == [(1, 1, 64)] * 3 + [(3, 1, 64)]  # type: ignore[attr-defined]


def test_a_table_says_that_it_was_measured_in_passes() -> None:
    space = space_of()
    table = measure_table(config(layers=3), space, LONG, CPU, "fp32", effort=QUICK)
    assert "passes of 10 tokens of one request, measured after 0, 10 and 30 earlier" in table.prefill_note
    assert LatencyTable.from_json(table.to_json()) == table
    older = {name: value for name, value in table.to_json().items() if name != "prefill_note"}
    assert LatencyTable.from_json(older).prefill_note == ""


def test_contents_of_a_long_context_are_no_zeros() -> None:
    layers = parent("llama").model.layers
    assert isinstance(bench().shape.arch.blocks[0].attention, Attention)
    held = FixedCache(layers, LONG, 0, requests=1).buffers[0]
    assert all(part.shape[:1] == (3,) and part.std() > 0.5 for part in held)
    assert not FixedCache(layers, Workload(batch=1, prompt=4), 0).buffers[0][0].any()
