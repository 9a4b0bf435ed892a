"""What is timed is a member's own prefill and decode: the logits are those with transformers' own cache. No time is asserted."""

from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
from transformers import DynamicCache

import members
import tiny
from befit.arch.member import cut_shape, whole
from befit.cost.device import this_device
from befit.cost.workload import Workload
from befit.lm.extract import member_model
from befit.lm.member_timing import MemberTimer, Mixer, PlainCache
from befit.lm.timing import Effort

QUICK = Effort(repeats=1, seconds=0.0)


def parent(family: str) -> members.Parent:
    own: dict[str, Any] = {}
    if family == "qwen2":  # two layers with a window, after two without
        own = {"use_sliding_window": True, "sliding_window": 6, "max_window_layers": 2}
    return members.parent_of(tiny.config(family, 4, **own))


@pytest.mark.parametrize("family", tiny.ALL)
def test_steps_on_fixed_memory_are_real_steps(family: str) -> None:
    own, work, rows = parent(family), Workload(batch=4, prompt=15, generate=1), tiny.tokens(4, 16)
    member = replace(whole(own.net.shape), ffn=24, layers=(0, 1, 2))
    model = member_model(own.config, own.net, own.weights, member)
    name = own.net.family.query.partition(".")[0]
    blocks = cut_shape(own.net.shape, member).arch.blocks
    mixers = [Mixer.of(layer, name, block) for layer, block in zip(model.model.layers, blocks, strict=True)]
    cache_of = partial(PlainCache, mixers, work)
    first, later, real = cache_of(0), cache_of(15), DynamicCache(config=model.config)
    with torch.inference_mode():
        want = model(rows[:, :15], past_key_values=real, use_cache=True).logits
        for _ in range(2):  # every call begins anew
            got = model(rows[:, :15], past_key_values=first, use_cache=True).logits
            torch.testing.assert_close(got, want)
        for layer, mixer in enumerate(mixers):
            if mixer is not None and mixer.recurrent:
                later.layers[layer].conv_states[0].copy_(first.layers[layer].conv_states[0])
                later.layers[layer].recurrent_states[0].copy_(first.layers[layer].recurrent_states[0])
            elif mixer is not None:
                for new, old in zip(later.buffers[layer], first.buffers[layer], strict=True):
                    # A window's oldest token has left when the next comes in.
                    held = new.shape[2] - 1
                    new[:, :, :held] = old[:, :, old.shape[2] - held :] if mixer.window else old[:, :, :held]
        want = model(rows[:, 15:], past_key_values=real, use_cache=True).logits
        got = model(rows[:, 15:], past_key_values=later, use_cache=True).logits
    torch.testing.assert_close(got, want)


@pytest.mark.parametrize("family", tiny.ALL)
def test_every_call_of_a_decode_step_does_the_same_work(family: str) -> None:
    own, work = parent(family), Workload(batch=2, prompt=9, generate=4, weights="fp32")
    timer = MemberTimer(
        net=own.net, config=own.config, weights=own.weights, workload=work, device=this_device("cpu"), effort=QUICK
    )
    prefill, decode = timer.steps(own.weights, whole(own.net.shape))
    for step in (prefill, decode):
        shapes = [step().shape for _ in range(3)]  # type: ignore[attr-defined]
        assert shapes == [(2, 1, 64)] * 3


@pytest.mark.parametrize(("family", "form"), [("nemotron_h", "fp32"), ("llama", "bf16"), ("mistral", "fp32")])
def test_members_are_timed_in_the_workloads_format(family: str, form: str) -> None:
    own = parent(family)
    largest = whole(own.net.shape)
    uneven = replace(largest, ffn=(40, 16, 16, 24))
    work = Workload(batch=1, prompt=8, generate=2, weights=form, cache=form)
    timer = MemberTimer(
        net=own.net, config=own.config, weights=own.weights, workload=work, device=this_device("cpu"), effort=QUICK
    )
    assert all(0 < ms < 60_000 for ms in timer([largest, uneven]))


def test_quantised_weights_are_timed_in_bf16() -> None:
    own, asked = parent("llama"), Workload(batch=1, prompt=3, generate=1, weights="fp8", cache="fp8")
    timer = MemberTimer(
        net=own.net, config=own.config, weights=own.weights, workload=asked, device=this_device("cpu"), effort=QUICK
    )
    formats = set[torch.dtype]()
    steps = timer.steps

    def note(weights: Any, member: Any) -> Any:
        formats.update(weight.dtype for weight in weights.values())
        return steps(weights, member)

    object.__setattr__(timer, "steps", note)
    assert timer([whole(own.net.shape)])[0] > 0
    assert formats == {torch.bfloat16}
