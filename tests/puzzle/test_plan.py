"""Plans from a configuration alone: published sizes, memory, disk, and times that follow from the work."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch

import tiny
from befit.arch.decoder import NoOp
from befit.budget import Budget, human
from befit.cost.count import attention_cost, count, ffn_cost
from befit.cost.workload import Workload
from befit.errors import BefitError, Infeasible
from befit.puzzle.config import PuzzleConfig
from befit.puzzle.job import check
from befit.puzzle.plan import _prefilled, plan

LLAMA_8B = {
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "vocab_size": 128256,
}
LLAMA_70B = LLAMA_8B | {
    "hidden_size": 8192,
    "intermediate_size": 28672,
    "num_hidden_layers": 80,
    "num_attention_heads": 64,
}
QWEN3_8B = LLAMA_8B | {"intermediate_size": 12288, "num_hidden_layers": 36, "vocab_size": 151936}
NEMOTRON_9B = {
    "hidden_size": 4480,
    "intermediate_size": 15680,
    "num_attention_heads": 40,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "mamba_num_heads": 128,
    "mamba_head_dim": 80,
    "n_groups": 8,
    "ssm_state_size": 128,
    "vocab_size": 131072,
    "layers_block_type": tiny.kinds("M-M-M-MM-M-M-M*-M-M-M*-M-M-M-M*-M-M-M-M*-M-MM-M-M-M-M-M-"),
}
"""Published sizes: meta-llama/Llama-3.1-8B and -70B, Qwen/Qwen3-8B, nvidia/NVIDIA-Nemotron-Nano-9B-v2."""

STORY = "batch=64,prompt=131072,weights=fp8,cache=fp8"
FAR: dict[str, Any] = {"attention": "all,/2,/4,noop", "ffn": "100,50,noop"}


def write(folder: Path, family: str, sizes: dict[str, Any]) -> PuzzleConfig:
    tiny.config(family, **sizes).save_pretrained(folder)
    assert [path.name for path in folder.iterdir()] == ["config.json"]
    return PuzzleConfig(parent=str(folder), **FAR)


def line(lines: list[str], start: str) -> str:
    (found,) = (one for one in lines if one.startswith(start))
    return found


def seconds(told: str) -> float:
    """What a stage's line says of its time."""
    units = {"ms": 1e-3, "s": 1.0, "min": 60.0, "h": 3600.0}
    ((number, unit),) = re.findall(r" ([\d.,]+) (ms|s|min|h) ", told)
    return float(number.replace(",", "")) * units[unit]


@pytest.mark.parametrize(
    ("family", "sizes", "told"),
    [
        ("llama", LLAMA_8B, "llama, 32 layers, 8.03 B"),
        ("llama", LLAMA_70B, "llama, 80 layers, 70.6 B"),
        ("qwen3", QWEN3_8B, "qwen3, 36 layers, 8.19 B"),
        (tiny.HYBRID, NEMOTRON_9B, "nemotron_h, 56 layers, 8.89 B"),
    ],
)
def test_a_configuration_alone_is_enough(family: str, sizes: dict[str, Any], told: str, tmp_path: Path) -> None:
    lines = plan(write(tmp_path, family, sizes), on="h200")
    assert told in lines[0] and "NVIDIA H200" in lines[1] and "bf16" in lines[1]
    for stage in ("rank", "library", "score", "measure", "choose", "heal", "evaluate", "total"):
        assert re.search(r"\d (ms|s|min|h) .*B", line(lines, stage + " "))
    assert "989 TFLOP (as its maker says)" in lines[-1] and "25% (an assumption)" in lines[-1]


def test_memory_at_the_workload_and_at_a_long_context(tmp_path: Path) -> None:
    """By hand: 32 layers x 8 heads x 128 x 2 numbers a token are 64 KiB in fp8, 131,072 tokens of them 8 GiB."""
    config = write(tmp_path, "llama", LLAMA_8B)
    text = PuzzleConfig(parent=config.parent, workload=STORY, budget="memory=80GiB, throughput>=2x", **FAR)
    lines = plan(text, on="h200")
    assert any("cache 8.00 GiB (batch 1, context 131,072, weights fp8, cache fp8)" in one for one in lines)
    assert any("cache 512 GiB (batch 64, context 131,104" in one for one in lines)
    assert any("room for 8 requests within the budget" in one for one in lines)
    assert "8, 16, 32, 64" in line(lines, "batches")
    assert "measure" in line(lines, "More memory")


def test_a_parent_without_room_for_one_request_is_said_to_have_none(tmp_path: Path) -> None:
    """In fp8 the weights are 67.7 GiB, one request's cache is 20."""
    config = write(tmp_path, "llama", LLAMA_70B)
    told = "no room for one request within the budget; what is relative to it means 64"
    for memory, expected in (("80GiB", True), ("90GiB", False), ("2TiB", False), ("70%", False)):
        asked = PuzzleConfig(parent=config.parent, workload=STORY, budget=f"memory={memory}, throughput>=2x", **FAR)
        assert any(told in one for one in plan(asked, on="h200")) == expected


def test_a_long_prompt_is_planned_as_it_is_measured(tmp_path: Path) -> None:
    """Of 16 passes of 8,192 tokens the first, the second and the last, each token with all pairs up to it."""
    config = write(tmp_path, "llama", LLAMA_8B)
    long = PuzzleConfig(parent=config.parent, workload="batch=1,prompt=131072", **FAR)
    lines = plan(long, on="h200")
    assert "after 0, 8,192 and 122,880 earlier tokens" in line(lines, "prefill")
    assert not any(one.startswith("prefill") for one in plan(config, on="h200"))
    shape = check(long, Budget.parse(long.budget), Workload()).space.shape

    def flops(work: Workload) -> float:
        return count(shape, shape.arch, work).flops

    once, twice = (flops(Workload(batch=1, prompt=tokens)) for tokens in (1, 2))
    square = (twice - 2 * once) / 2
    by_hand = 3 * 8192 * (once - square) + (1 + 3 + 31) * 8192**2 * square
    assert _prefilled(Workload(batch=8, prompt=131_072), flops) == pytest.approx(by_hand)
    whole = Workload(batch=4, prompt=2048)
    assert _prefilled(whole, flops) == pytest.approx(flops(whole))


def test_the_library_s_disk_is_that_of_its_variants(tmp_path: Path) -> None:
    config = write(tmp_path, "llama", LLAMA_8B)
    space = check(config, Budget.parse(config.budget), Workload()).space
    stored = 0
    for i in range(space.shape.layers):
        halves = [attention_cost(space.shape, v, Workload()) for v in space.attention_variants(i)[1:] if v != NoOp()]
        halves += [ffn_cost(space.shape, v, Workload()) for v in space.ffn_variants(i)[1:] if v != NoOp()]
        stored += sum(half.weight_bytes for half in halves)
    assert human("weight_bytes", stored) in line(plan(config, on="h100"), "library")


def test_a_tenth_of_the_speed_takes_ten_times_as_long(tmp_path: Path) -> None:
    config = write(tmp_path, "llama", LLAMA_70B)
    fast, slow = (plan(config, on=f"{rate}TFLOPS,80GB") for rate in (800, 80))
    for stage in ("library", "score", "heal"):
        assert seconds(line(slow, stage)) == pytest.approx(10 * seconds(line(fast, stage)), rel=0.1)
    assert "library" in line(fast, "More memory") and "a device of 800 TFLOP/s" in fast[1]


def test_what_the_device_has_no_room_for_waits_elsewhere(tmp_path: Path) -> None:
    """10^8 tokens of 4,096 channels, a layer's inputs and two outputs in bf16; the library of a 70B parent."""
    parent = write(tmp_path / "8b", "llama", LLAMA_8B).parent
    lines = plan(PuzzleConfig(parent=parent, local_tokens=10**8, **FAR), on="h200")
    assert human("weight_bytes", 3 * 10**8 * 4096 * 2) in line(lines, "Hidden states")
    assert not any(one.startswith("Hidden states") for one in plan(PuzzleConfig(parent=parent, **FAR), on="h200"))
    large = write(tmp_path / "70b", "llama", LLAMA_70B).parent
    kept, read = (
        line(plan(PuzzleConfig(parent=large, parent_in=where, **FAR), on="h200"), "rank")
        for where in ("memory", "disk")
    )
    assert "131 GiB" in kept and "7.10 GiB" in read


def test_on_this_machine_the_speed_is_measured(tmp_path: Path) -> None:
    torch.manual_seed(0)
    lines = plan(PuzzleConfig(parent=write(tmp_path, "llama", {}).parent, device="cpu", **FAR))
    assert "(measured now)" in lines[-1] and not any(one.startswith("More memory") for one in lines)


def test_what_cannot_be_planned_is_refused(tmp_path: Path) -> None:
    config = write(tmp_path, "llama", LLAMA_8B)
    with pytest.raises(BefitError, match="device 'tpu' is not known"):
        plan(config, on="tpu")
    with pytest.raises(Infeasible, match="memory"):
        plan(PuzzleConfig(parent=config.parent, budget="memory=1GiB", **FAR), on="h200")
