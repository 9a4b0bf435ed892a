"""Bytes of formats against tensors that were allocated: fp8 and packed fp4 storage, scales, keys and values."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

import tiny
from befit.arch.decoder import Attention
from befit.cost.count import Cost, count
from befit.cost.formats import FORMATS, QUANTISED, beside, key_bytes, matrix_bytes
from befit.cost.workload import Workload
from befit.lm.families import family_of

PLAIN = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def stored(rows: tuple[int, ...], columns: int, name: str, device: str, per_row: bool) -> Iterator[Tensor]:
    """What holds (*rows, columns) numbers in a format, scales included but for that of a whole tensor."""
    if name in PLAIN:
        yield torch.empty(*rows, columns, dtype=PLAIN[name], device=device)
    elif name == "nvfp4":
        yield torch.empty(*rows, -(-columns // 2), dtype=torch.uint8, device=device)  # two numbers in a byte
        yield torch.empty(*rows, -(-columns // 16), dtype=torch.float8_e4m3fn, device=device)
    else:
        dtype = torch.float8_e4m3fn if name == "fp8" else torch.int8
        yield torch.empty(*rows, columns, dtype=dtype, device=device)
        if per_row:
            yield torch.empty(*rows, dtype=torch.float32, device=device)


def weights(config: Any, name: str, device: str) -> Iterator[Tensor]:
    """The weights of transformers' own model as a quantised checkpoint stores them."""
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    linear = {
        module.weight
        for path, module in model.named_modules()
        if isinstance(module, nn.Linear) and not path.endswith("lm_head")
    }
    for weight in model.parameters():
        if weight in linear:
            yield from stored((weight.shape[0],), weight.shape[1], name, device, name == "int8")
            if name in ("fp8", "nvfp4"):
                yield torch.empty((), dtype=torch.float32, device=device)
        else:
            yield torch.empty(weight.shape, dtype=PLAIN[beside(name)], device=device)


def cache(config: Any, work: Workload, device: str) -> Iterator[Tensor]:
    """Keys and values of every layer at full context."""
    shape = family_of(config).describe(config)
    for block in shape.arch.blocks:
        assert isinstance(block.attention, Attention)
        held = min(work.context, block.attention.window or work.context)
        for _ in ("keys", "values"):
            heads = (work.batch, block.attention.kv_heads, held)
            yield from stored(heads, shape.head_dim, work.cache, device, work.cache == "int8")


def counted(config: Any, work: Workload) -> Cost:
    shape = family_of(config).describe(config)
    return count(shape, shape.arch, work)


def size(tensors: list[Tensor]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_counted_bytes_are_those_of_allocated_tensors(family: str, name: str) -> None:
    config = tiny.config(family)
    work = Workload(batch=2, prompt=5, generate=4, weights=name, cache=name)
    cost = counted(config, work)
    assert cost.weight_bytes == size(list(weights(config, name, "cpu")))
    assert cost.cache_bytes == size(list(cache(config, work, "cpu")))


@pytest.mark.parametrize("name", FORMATS)
def test_the_weights_of_a_hybrid_are_those_of_allocated_tensors(name: str) -> None:
    config = tiny.config(tiny.HYBRID)
    assert counted(config, Workload(weights=name)).weight_bytes == size(list(weights(config, name, "cpu")))


@pytest.mark.parametrize("name", QUANTISED)
def test_the_state_of_a_hybrid_is_not_quantised(name: str) -> None:
    """Only keys and values are: without attention the cache of a quantised workload is that of bf16."""
    config = tiny.config(tiny.HYBRID, layers_block_type=tiny.kinds("M-M-"))
    assert counted(config, Workload(cache=name)).cache_bytes == counted(config, Workload(cache="bf16")).cache_bytes


def test_bits_of_a_number() -> None:
    large = 8192, 8192
    bits = {name: 8 * matrix_bytes(*large, name) / (large[0] * large[1]) for name in FORMATS}
    expected = {"fp32": 32, "bf16": 16, "fp16": 16, "fp8": 8, "int8": 8, "nvfp4": 4.5}
    assert bits == pytest.approx(expected, rel=1e-3)
    assert [key_bytes(128, name) for name in FORMATS] == [512, 256, 256, 128, 132, 72]


def test_a_llama_70b_at_a_long_context() -> None:
    """Published: 80 layers, 8 KV heads of 128; at 131,072 tokens a request's cache is 40 GiB in bf16, 20 GiB in fp8."""
    config = tiny.config(
        num_hidden_layers=80,
        hidden_size=8192,
        intermediate_size=28672,
        num_attention_heads=64,
        num_key_value_heads=8,
        head_dim=128,
        vocab_size=128256,
    )
    work = Workload(prompt=131_072 - 256, generate=256)
    assert counted(config, work).cache_bytes == 40 * 2**30
    low = counted(config, Workload(prompt=131_072 - 256, generate=256, weights="fp8", cache="fp8"))
    assert low.cache_bytes == 20 * 2**30
    assert low.params == 70_553_706_496
    linear = 80 * (2 * 8192 * 8192 + 2 * 1024 * 8192 + 3 * 8192 * 28672)
    assert low.weight_bytes == linear + 80 * 7 * 4 + 2 * (low.params - linear)


@pytest.mark.gpu
@pytest.mark.parametrize("name", ["bf16", "fp8", "int8", "nvfp4"])
def test_counted_bytes_are_those_the_gpu_allocates(name: str) -> None:
    """The allocator rounds each tensor up: to 512 bytes, and large ones by less than 1 MiB."""
    config = tiny.config(
        num_hidden_layers=16,
        hidden_size=2048,
        intermediate_size=8192,
        num_attention_heads=32,
        num_key_value_heads=8,
        head_dim=64,
        vocab_size=128256,
    )
    work = Workload(batch=4, prompt=32_000, generate=768, weights=name, cache=name)
    cost = counted(config, work)
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    held = list(weights(config, name, "cuda"))
    only_weights = torch.cuda.max_memory_allocated() - before
    held += cache(config, work, "cuda")
    both = torch.cuda.max_memory_allocated() - before
    assert cost.weight_bytes <= only_weights <= 1.01 * cost.weight_bytes
    assert cost.memory_bytes <= both <= 1.01 * cost.memory_bytes
