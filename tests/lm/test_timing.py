"""What is timed is what is priced: steps against real generation and exact counts. No time is asserted."""

import random
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from transformers import DynamicCache

from befit.arch.decoder import Attention, Block, DecoderArch, Ffn, Linear, Mamba, NoOp
from befit.arch.decoder_space import DecoderSpace
from befit.cost.count import attention_cost, count
from befit.cost.device import Device, Step, Timing, this_device
from befit.cost.latency import LatencyTable, errors
from befit.cost.workload import Workload
from befit.errors import BefitError, IllegalArch
from befit.lm import timing
from befit.lm.child import arch_of, build, config_for
from befit.lm.families import family_of
from befit.lm.timing import (
    Bench,
    Effort,
    FixedCache,
    measure_models,
    measure_table,
    model_steps,
    row_steps,
    spread,
    table_key,
)
from tiny import ALL, FAMILIES, HYBRID, config, parent, tokens

CPU = this_device("cpu")
WORK = Workload(batch=2, prompt=9, generate=4, weights="fp32", cache="fp32")
QUICK = Effort(fit_runs=3, held_out_runs=2, repeats=1, seconds=0.0)


def space_of(family: str = "llama", layers: int = 3) -> DecoderSpace:
    own = config(family, layers)
    return DecoderSpace(shape=family_of(own).describe(own), window=4, ffn=("100", "50", "linear", "noop"))


def bench(family: str = "llama", layers: int = 3) -> Bench:
    own = config(family, layers)
    shape = family_of(own).describe(own)
    return Bench(config=own, shape=shape, workload=WORK, device=CPU, dtype=torch.float32)


def flops(step: Step) -> int:
    """What torch counts for one call, attention's own products included (its fused CPU kernel hides them)."""
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        step()
    return counter.get_total_flops()


@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3"])
def test_a_decode_step_on_fixed_memory_is_a_real_decode_step(family: str) -> None:
    model, work = parent(family), Workload(batch=4, prompt=15, generate=1)
    rows = tokens(4, 16)
    layers = model.model.layers
    fixed, real = FixedCache(layers, work, 0), DynamicCache()
    with torch.inference_mode():
        for cache in (fixed, real):
            model(rows[:, :15], past_key_values=cache)
        later = FixedCache(layers, work, 15)
        later.buffers = fixed.buffers
        got = model(rows[:, 15:], past_key_values=later).logits
        again = model(rows[:, 15:], past_key_values=later).logits
        want = model(rows[:, 15:], past_key_values=real).logits
    torch.testing.assert_close(got, want)
    torch.testing.assert_close(again, want)  # nothing has grown: every call does the same work


def test_states_on_fixed_memory_are_those_of_real_steps() -> None:
    """A prompt begins anew at every call; a decode step goes on from the state, and leaves it where it is."""
    model, work, rows = parent(HYBRID), Workload(batch=4, prompt=15, generate=1), tokens(4, 16)
    layers = model.model.layers
    fixed, later, real = FixedCache(layers, work, 0), FixedCache(layers, work, 15), DynamicCache()
    with torch.inference_mode():
        want = model(rows[:, :15], past_key_values=real).logits
        got = [model(rows[:, :15], past_key_values=fixed).logits for _ in range(2)]
        assert got[0].equal(want) and got[1].equal(want)
        later.buffers = fixed.buffers
        state: Any = later.layers[0]
        place = state.recurrent_states[0].data_ptr()
        state.update_conv_state(fixed.layers[0].conv_states[0])
        state.update_recurrent_state(fixed.layers[0].recurrent_states[0])
        step = model(rows[:, 15:], past_key_values=later).logits
        torch.testing.assert_close(step, model(rows[:, 15:], past_key_values=real).logits)
        assert later.layers[0] is state and state.recurrent_states[0].data_ptr() == place
        assert not state.recurrent_states[0].equal(fixed.layers[0].recurrent_states[0])


def test_a_row_of_mamba_runs_its_copies() -> None:
    rig = bench(HYBRID)
    row = rig.row("attention", Mamba(heads=2))
    own = DecoderArch(blocks=(replace(rig.shape.arch.blocks[0], attention=Mamba(heads=2)),))
    nothing = count(rig.shape, DecoderArch(blocks=(replace(own.blocks[0], attention=NoOp()),)), WORK)
    assert row.memory_bytes == 3 * (count(rig.shape, own, WORK).memory_bytes - nothing.memory_bytes)
    outputs: list[Any] = [step() for step in row.make()]  # prefill, decode
    assert [output.shape for output in outputs] == [(2, 9, 32), (2, 1, 32)]
    with pytest.raises(IllegalArch, match="cannot stand in"):
        rig.row("ffn", Mamba(heads=2))


def test_a_window_limits_what_decode_reads() -> None:
    layers = parent("mistral").model.layers  # a window of 6
    cache = FixedCache(layers, WORK, WORK.context - 1)
    new = torch.ones(2, 2, 1, 8)
    keys, values = cache.update(new, new, 1)
    assert keys.shape == values.shape == (2, 2, 6, 8)
    assert keys[:, :, -1:].equal(new) and not keys[:, :, :-1].any()
    long = torch.arange(9.0).view(1, 1, 9, 1).expand(2, 2, 9, 8)
    fresh = FixedCache(layers, WORK, 0)
    assert fresh.update(long, long, 0)[0].equal(long)  # a prompt attends to itself, masked
    assert fresh.buffers[0][0].equal(long[:, :, -6:])


@pytest.mark.parametrize("family", FAMILIES)
def test_steps_do_the_counted_work(family: str) -> None:
    space, own = space_of(family), config(family, 3)
    arch = spread(space, 1, WORK)[0]
    model = bench(family).model(arch)
    cost = count(space.shape, arch, WORK)
    assert sum(p.numel() for p in model.parameters()) == cost.params
    caches = FixedCache(model.model.layers, WORK, 0).buffers
    assert sum(t.numel() * 4 for pair in caches for t in pair) == cost.cache_bytes
    head = 2 * WORK.batch * own.hidden_size * own.vocab_size
    prefill, _ = model_steps(model, WORK)
    assert flops(prefill) == cost.flops - head * (WORK.prompt - 1)  # logits of each request's last token only
    logits: Any = prefill()
    assert logits.shape == (WORK.batch, 1, own.vocab_size) and logits.isfinite().all() and logits.is_inference()


@pytest.mark.parametrize(
    ("kind", "variant"),
    [("attention", Attention(kv_heads=1, window=3)), ("attention", Linear()), ("ffn", Ffn(width=7)), ("ffn", Linear())],
)
def test_a_row_runs_its_copies_and_nothing_else(
    kind: str, variant: Attention | Ffn | Linear, monkeypatch: pytest.MonkeyPatch
) -> None:
    rig = bench(layers=3)
    row = rig.row(kind, variant)
    assert row.copies == 3
    one = count(
        rig.shape,
        DecoderArch(blocks=(replace(rig.shape.arch.blocks[0], **{"attention": NoOp(), "ffn": NoOp(), kind: variant}),)),
        WORK,
    )
    nothing = count(
        rig.shape,
        DecoderArch(blocks=(replace(rig.shape.arch.blocks[0], attention=NoOp(), ffn=NoOp()),)),
        WORK,
    )
    assert row.memory_bytes == 3 * (one.memory_bytes - nothing.memory_bytes)
    prefill, decode = row.make()
    assert flops(prefill) == 3 * (one.flops - nothing.flops)
    update, used = FixedCache.update, set[int]()

    def watch(cache: FixedCache, keys: torch.Tensor, values: torch.Tensor, layer_idx: int) -> Any:
        used.add(layer_idx)
        return update(cache, keys, values, layer_idx)

    monkeypatch.setattr(FixedCache, "update", watch)
    out: Any = prefill()
    assert used == ({0, 1, 2} if isinstance(variant, Attention) else set())  # each copy has its own cache
    steps: list[Any] = [decode(), decode()]
    assert out.shape == (2, 9, 32) and steps[0].shape == (2, 1, 32)
    assert steps[0].equal(steps[1])
    with pytest.raises(IllegalArch, match="cannot stand in"):
        rig.row(
            "ffn" if kind == "attention" else "attention",
            Attention(kv_heads=1) if kind == "attention" else Ffn(width=3),
        )


@pytest.mark.parametrize("family", ALL)
def test_a_table_prices_every_child(family: str) -> None:
    space = space_of(family)
    table = measure_table(config(family, 3), space, WORK, CPU, "fp32", effort=QUICK)
    assert table.fitted_on[0].arch == space.shape.arch
    assert (len(table.fitted_on), len(table.held_out)) == (3, 2)
    assert LatencyTable.from_json(table.to_json()) == table
    rng = random.Random(0)
    for arch in (space.sample(rng) for _ in range(10)):
        predicted = table.predict(arch)
        assert predicted.prefill_ms > 0 and predicted.decode_ms > 0


@pytest.mark.parametrize("family", ALL)
def test_on_a_machine_whose_time_is_flops_the_table_is_exact(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def clock(steps: Mapping[str, Step], device: Device, **_: object) -> dict[str, Timing]:
        times = {name: flops(step) / 1e6 for name, step in steps.items()}
        return {n: Timing(median_ms=t, low_ms=t, high_ms=t, repeats=1, graph=False) for n, t in times.items()}

    monkeypatch.setattr(timing, "time_together", clock)
    effort = Effort(fit_runs=4, held_out_runs=6)
    table = measure_table(config(family, 3), space_of(family), WORK, CPU, "fp32", effort=effort)
    found = errors(table, table.held_out)
    assert max(*found.prefill, *found.decode) < 1e-9
    assert table.prefill.sub_block_ms == pytest.approx(0, abs=1e-9)
    assert table.fixed().decode_ms == pytest.approx(2 * WORK.batch * 32 * 64 / 1e6)


def test_a_table_takes_a_child_s_configuration_too() -> None:
    space = space_of("mistral")
    whole = config_for(config("mistral", 3), space.shape.arch)
    assert measure_table(whole, space, WORK, CPU, "bf16", effort=QUICK).dtype == "bf16"
    with pytest.raises(BefitError, match="fp32, bf16, fp16, got 'int8'"):
        measure_table(whole, space, WORK, CPU, "int8")


def test_without_memory_for_all_groups_take_turns() -> None:
    space = space_of()
    labels: list[str] = []

    def hear(items, label, total=None):
        labels.append(label)
        yield from items

    def groups(memory_bytes: int) -> int:
        labels.clear()
        small = replace(CPU, memory_bytes=memory_bytes)
        table = measure_table(config(layers=3), space, WORK, small, "fp32", effort=QUICK, progress=hear)
        assert set(table.attention) == {"kv2", "kv1", "kv2w4", "linear"} and set(table.ffn) == {
            "ffn48",
            "ffn32",
            "linear",
        }
        return len(labels)

    assert groups(4) == 1 + 4 + 3 + 5  # base, sub-blocks and models one by one
    assert 1 < groups(4 * 350_000) <= 3
    assert groups(CPU.memory_bytes) == 1


def test_children_to_measure_are_legal_and_spread() -> None:
    space = space_of(layers=6)
    archs = spread(space, 12, WORK)
    assert all(space.contains(arch) for arch in archs)
    assert archs == spread(space, 12, WORK) and len(set(archs)) == 12
    for half in (archs[:6], archs[6:]):
        flops = [count(space.shape, arch, WORK).flops for arch in half]
        assert min(flops) < 0.6 * max(flops)


def test_models_are_timed_side_by_side() -> None:
    models = {"parent": parent(), "child": build(config(layers=2), device="cpu")}
    times = measure_models(models, WORK, CPU, repeats=2)
    assert list(times) == ["parent", "child"]
    assert all(time.prefill_ms > 0 and time.decode_ms > 0 for time in times.values())


def test_a_key_names_all_that_a_table_depends_on() -> None:
    space = space_of()
    same = table_key(space, WORK, CPU, "fp32")
    assert same == table_key(space_of(), replace(WORK), replace(CPU), "fp32")
    others = [
        table_key(replace(space, window=5), WORK, CPU, "fp32"),
        table_key(space, replace(WORK, batch=3), CPU, "fp32"),
        table_key(space, WORK, replace(CPU, threads=CPU.threads + 1), "fp32"),
        table_key(space, WORK, CPU, "bf16"),
        table_key(space, WORK, CPU, "fp32", QUICK),
    ]
    assert len({same, *others}) == 6


@pytest.mark.gpu
@pytest.mark.parametrize("family", ["mistral", HYBRID])
def test_everything_is_captured_on_a_gpu(family: str) -> None:
    # A step that cannot be captured warns, and warnings are errors here.
    space, gpu = space_of(family), this_device("cuda")
    table = measure_table(config(family, 3), space, WORK, gpu, "bf16", effort=QUICK)
    assert table.device.kind == "cuda" and table.predict(space.shape.arch).decode_ms > 0


@pytest.mark.parametrize("family", ["llama", "mistral", HYBRID])
def test_prefill_and_decode_share_their_keys_and_values(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What both steps of a model or a row hold together is what a cache is counted as."""
    made = list[FixedCache]()
    real = FixedCache.__init__

    def note(self: FixedCache, *args: Any, **options: Any) -> None:
        real(self, *args, **options)
        made.append(self)

    monkeypatch.setattr(FixedCache, "__init__", note)
    model, base = parent(family), DecoderArch(blocks=(Block(attention=NoOp(), ffn=NoOp()),))
    for steps in (model_steps(model, WORK), row_steps(model.model.layers, bench(family).model(base), WORK)):
        first, second = made[-2:]
        held = {
            part.data_ptr(): part.numel() * 4 for cache in (first, second) for pair in cache.buffers for part in pair
        }
        shape = replace(bench(family).shape, arch=arch_of(model.config))
        attention = [b for b in shape.arch.blocks if isinstance(b.attention, Attention)]
        work = replace(WORK, weights="fp32", cache="fp32")
        assert sum(held.values()) == sum(attention_cost(shape, b.attention, work).cache_bytes for b in attention)
        assert (first.past, second.past) == (0, WORK.context - 1)
        outputs: list[Any] = [step() for step in steps]
        assert all(output.isfinite().all() for output in outputs)
