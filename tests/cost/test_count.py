"""Counts against published parameter counts, transformers' own modules, torch's FLOP counter and a real KV cache."""

import subprocess
import sys
from dataclasses import replace
from random import Random
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.flop_counter import FlopCounterMode
from transformers import DynamicCache, LlamaConfig, MistralConfig, PreTrainedConfig, Qwen2Config, Qwen3Config
from transformers.models.llama.modeling_llama import LlamaForCausalLM, LlamaRMSNorm
from transformers.models.mistral.modeling_mistral import MistralForCausalLM
from transformers.models.qwen2.modeling_qwen2 import Qwen2ForCausalLM
from transformers.models.qwen3.modeling_qwen3 import Qwen3ForCausalLM

import members
from befit.arch.decoder import (
    Attention,
    AttentionVariant,
    Block,
    DecoderArch,
    DecoderShape,
    Ffn,
    Linear,
    Mamba,
    MambaShape,
    NoOp,
)
from befit.arch.member import Member, cut_shape
from befit.cost.count import Cost, attention_cost, block_cost, count, ffn_cost, fixed_cost
from befit.cost.workload import Workload
from befit.errors import IllegalArch

CLASSES = {
    "llama": (LlamaForCausalLM, LlamaConfig),
    "mistral": (MistralForCausalLM, MistralConfig),
    "qwen2": (Qwen2ForCausalLM, Qwen2Config),
    "qwen3": (Qwen3ForCausalLM, Qwen3Config),
}


def uniform(layers: int, kv_heads: int, width: int, window: int | None = None) -> DecoderArch:
    block = Block(attention=Attention(kv_heads=kv_heads, window=window), ffn=Ffn(width=width))
    return DecoderArch(blocks=(block,) * layers)


def hf_config(shape: DecoderShape) -> PreTrainedConfig:
    """transformers' configuration of a uniform `shape`."""
    first = shape.arch.blocks[0]
    assert isinstance(first.attention, Attention) and isinstance(first.ffn, Ffn)
    more: dict[str, object] = (
        {"attention_bias": shape.o_bias, "mlp_bias": shape.mlp_bias} if shape.family == "llama" else {}
    )
    if shape.family == "qwen3":
        more: dict[str, object] = {"attention_bias": shape.o_bias}
    if shape.family != "qwen2":
        more["head_dim"] = shape.head_dim
    if shape.family == "mistral":
        more["sliding_window"] = first.attention.window
    return CLASSES[shape.family][1](
        vocab_size=shape.vocab,
        hidden_size=shape.hidden,
        intermediate_size=first.ffn.width,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=first.attention.kv_heads,
        tie_word_embeddings=shape.tied,
        bos_token_id=None,
        eos_token_id=None,
        pad_token_id=None,
        attn_implementation="eager",
        **more,
    )


@st.composite
def shapes(draw: st.DrawFn) -> DecoderShape:
    """Small uniform shapes that the four families can express."""
    family = draw(st.sampled_from(sorted(CLASSES)))
    kv_heads, group = draw(st.integers(1, 3)), draw(st.integers(1, 3))
    heads, head_dim = kv_heads * group, 2 * draw(st.integers(1, 6))
    bias = family in ("llama", "qwen3") and draw(st.booleans())
    window = draw(st.integers(2, 12)) if family == "mistral" and draw(st.booleans()) else None
    return DecoderShape(
        family=family,
        vocab=draw(st.integers(2, 40)),
        hidden=heads * (head_dim if family == "qwen2" else draw(st.integers(1, 9))),
        heads=heads,
        head_dim=head_dim,
        tied=draw(st.booleans()),
        qkv_bias=bias or family == "qwen2",
        o_bias=bias,
        mlp_bias=family == "llama" and draw(st.booleans()),
        qk_norm=family == "qwen3",
        arch=uniform(draw(st.integers(1, 3)), kv_heads, draw(st.integers(1, 40)), window),
    )


workloads = st.builds(
    Workload,
    batch=st.integers(1, 3),
    prompt=st.integers(1, 9),
    generate=st.integers(1, 9),
    weights=st.sampled_from(["fp32", "bf16"]),
    cache=st.sampled_from(["fp32", "bf16"]),
)

LLAMA_1B = DecoderShape(
    family="llama", vocab=128256, hidden=2048, heads=32, head_dim=64, tied=True, arch=uniform(16, 8, 8192)
)
PUBLISHED = [
    (LLAMA_1B, 1_235_814_400),
    (
        replace(LLAMA_1B, hidden=4096, head_dim=128, tied=False, arch=uniform(32, 8, 14336)),
        8_030_261_248,
    ),
    (
        DecoderShape(
            family="qwen2",
            vocab=151936,
            hidden=896,
            heads=14,
            head_dim=64,
            tied=True,
            qkv_bias=True,
            arch=uniform(24, 2, 4864),
        ),
        494_032_768,
    ),
    (
        DecoderShape(
            family="qwen3",
            vocab=151936,
            hidden=1024,
            heads=16,
            head_dim=128,
            tied=True,
            qk_norm=True,
            arch=uniform(28, 8, 3072),
        ),
        596_049_920,
    ),
    (
        DecoderShape(
            family="mistral",
            vocab=32000,
            hidden=4096,
            heads=32,
            head_dim=128,
            tied=False,
            arch=uniform(32, 8, 14336, window=4096),
        ),
        7_241_732_096,
    ),
]


@pytest.mark.parametrize(("shape", "params"), PUBLISHED, ids=["llama1b", "llama8b", "qwen2", "qwen3", "mistral7b"])
def test_published_parameter_counts(shape: DecoderShape, params: int) -> None:
    cost = count(shape, shape.arch, Workload(weights="bf16"))
    assert cost.params == params
    assert cost.weight_bytes == 2 * params
    with torch.device("meta"):
        model = CLASSES[shape.family][0](hf_config(shape))
    assert sum(p.numel() for p in model.parameters()) == params


@settings(max_examples=40, deadline=None)
@given(shape=shapes(), workload=workloads)
def test_whole_models_match_transformers_numel_and_flop_counter(shape: DecoderShape, workload: Workload) -> None:
    model = CLASSES[shape.family][0](hf_config(shape)).eval()
    cost = count(shape, shape.arch, workload)
    assert cost.params == sum(p.numel() for p in model.parameters())
    itemsize = {"fp32": 4, "bf16": 2}[workload.weights]
    assert cost.weight_bytes == itemsize * cost.params
    tokens = torch.zeros(workload.batch, workload.prompt, dtype=torch.long)
    with torch.inference_mode(), FlopCounterMode(display=False) as counter:
        model(tokens, use_cache=False)
    assert cost.flops == counter.get_total_flops()


class WatchedCache(DynamicCache):
    """Remembers the keys and values that each layer attended to last."""

    def __init__(self, config: PreTrainedConfig) -> None:
        super().__init__(config=config)
        self.attended: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}

    def update(self, key_states, value_states, layer_idx, *args, **kwargs):
        self.attended[layer_idx] = super().update(key_states, value_states, layer_idx, *args, **kwargs)
        return self.attended[layer_idx]


@settings(max_examples=25, deadline=None)
@given(shape=shapes(), workload=workloads)
def test_cache_bytes_match_the_keys_and_values_a_real_cache_attends_to(shape: DecoderShape, workload: Workload) -> None:
    config = hf_config(shape)
    model = CLASSES[shape.family][0](config).to(getattr(torch, {"fp32": "float32", "bf16": "bfloat16"}[workload.cache]))
    cache = WatchedCache(config)
    tokens = torch.zeros(workload.batch, workload.context, dtype=torch.long)
    with torch.inference_mode():
        if workload.context > 1:
            model(tokens[:, :-1], past_key_values=cache)
        model(tokens[:, -1:], past_key_values=cache)
    real = sum(t.numel() * t.element_size() for pair in cache.attended.values() for t in pair)
    assert count(shape, shape.arch, workload).cache_bytes == real


def test_a_window_longer_than_the_context_costs_the_context() -> None:
    workload = Workload(prompt=20, generate=10)
    shape = replace(LLAMA_1B, arch=uniform(1, 8, 64))
    full = attention_cost(shape, Attention(kv_heads=8), workload)
    assert attention_cost(shape, Attention(kv_heads=8, window=31), workload) == full
    assert attention_cost(shape, Attention(kv_heads=8, window=29), workload).cache_bytes == full.cache_bytes * 29 // 30


def test_linear_and_noop_match_modules() -> None:
    shape, workload = replace(LLAMA_1B, hidden=24, head_dim=4, heads=4, arch=uniform(1, 2, 8)), Workload(prompt=7)
    module = torch.nn.Sequential(LlamaRMSNorm(24), torch.nn.Linear(24, 24, bias=False))
    with FlopCounterMode(display=False) as counter:
        module(torch.zeros(workload.batch, workload.prompt, 24))
    for cost in (attention_cost(shape, Linear(), workload), ffn_cost(shape, Linear(), workload)):
        assert cost.params == sum(p.numel() for p in module.parameters())
        assert cost.flops == counter.get_total_flops()
        assert cost.cache_bytes == 0
    assert attention_cost(shape, NoOp(), workload) == ffn_cost(shape, NoOp(), workload) == Cost()


def test_mixed_layers_add_up() -> None:
    shape = replace(LLAMA_1B, hidden=24, head_dim=4, heads=4, arch=uniform(1, 2, 8))
    blocks = (
        Block(attention=Attention(kv_heads=1, window=5), ffn=NoOp()),
        Block(attention=Linear(), ffn=Ffn(width=3)),
        Block(attention=NoOp(), ffn=Linear()),
    )
    workload = Workload(batch=2, prompt=6, generate=3)
    total = fixed_cost(shape, workload)
    for block in blocks:
        total = total + block_cost(shape, block, workload)
    assert count(shape, DecoderArch(blocks=blocks), workload) == total
    assert total.memory_bytes == total.weight_bytes + total.cache_bytes


def test_uneven_kv_heads_are_refused() -> None:
    with pytest.raises(IllegalArch, match="32 query heads cannot share 5 KV heads"):
        count(LLAMA_1B, uniform(2, 5, 64), Workload())


def test_counting_needs_no_torch() -> None:
    code = "import sys, befit.cost.count; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def hybrid_member(draw: Random) -> tuple[members.Parent, Member, Any]:
    """A random hybrid, a random member of it, and the member as transformers' own model."""
    config = members.hybrid_config(draw, vocab_size=11)
    parent = members.parent_of(config)
    member = members.member_of(draw, parent.net.shape)
    return parent, member, members.plain(config, member, members.by_index(config, member, parent.weights))


@settings(max_examples=40)
@given(draw=st.randoms(use_true_random=False), workload=workloads)
def test_a_hybrid_member_s_parameters_and_memory_are_those_of_its_class(draw: Random, workload: Workload) -> None:
    parent, member, model = hybrid_member(draw)
    shape = cut_shape(parent.net.shape, member)
    cost = count(shape, shape.arch, workload)
    assert cost.params == sum(p.numel() for p in model.parameters())
    assert cost.weight_bytes == {"fp32": 4, "bf16": 2}[workload.weights] * cost.params
    cache = DynamicCache(config=model.config)
    model = model.to({"fp32": torch.float32, "bf16": torch.bfloat16}[workload.cache])
    tokens = torch.zeros(workload.batch, workload.context, dtype=torch.long)
    with torch.inference_mode():
        model(tokens[:, : workload.prompt], past_key_values=cache, use_cache=True)
        for place in range(workload.prompt, workload.context):
            model(tokens[:, place : place + 1], past_key_values=cache, use_cache=True)
    held = list[torch.Tensor]()
    for block, layer in zip(shape.arch.blocks, cache.layers, strict=True):
        own: Any = layer
        if isinstance(block.attention, Attention):
            held += [own.keys, own.values]
        elif isinstance(block.attention, Mamba):
            assert own.recurrent_states[0].dtype == torch.float32
            held += [own.conv_states[0], own.recurrent_states[0]]
    assert cost.cache_bytes == sum(tensor.numel() * tensor.element_size() for tensor in held)


@settings(max_examples=30)
@given(draw=st.randoms(use_true_random=False), workload=workloads)
def test_a_hybrid_member_s_flops_are_counted_by_torch_but_for_the_scan(draw: Random, workload: Workload) -> None:
    """The class scans in chunks and convolves `kernel - 1` tokens too many; all else must agree.

    What the scan and the convolution are counted as is held against a plain recurrence and an unpadded convolution.
    """
    parent, member, model = hybrid_member(draw)
    shape = cut_shape(parent.net.shape, member)
    batch, time = workload.batch, workload.prompt
    model.set_attn_implementation("eager")  # torch counts nothing of a CPU's fused attention
    with torch.inference_mode(), FlopCounterMode(display=False) as counter:
        model(torch.zeros(batch, time, dtype=torch.long), use_cache=False)
    by_module, counted = counter.get_flop_counts(), counter.get_total_flops()
    for index, block in enumerate(shape.arch.blocks):
        if isinstance(block.attention, Mamba):
            assert shape.mamba is not None
            own = by_module[f"NemotronHForCausalLM.model.layers.{index}.mixer"]
            counted -= sum(n for op, n in own.items() if op in (torch.ops.aten.bmm, torch.ops.aten.convolution))
            counted += recurrence_flops(shape.mamba, block.attention.heads, batch, time)
    assert count(shape, shape.arch, workload).flops == counted


def recurrence_flops(mamba: MambaShape, heads: int, batch: int, time: int) -> int:
    """What torch counts for one Mamba-2 mixer's convolution and its recurrence, token by token."""
    channels = heads * mamba.head_dim + 2 * mamba.groups * mamba.state
    state, column, row = (
        torch.zeros(batch * heads, height, width)
        for height, width in ((mamba.head_dim, mamba.state), (mamba.head_dim, 1), (1, mamba.state))
    )
    with FlopCounterMode(display=False) as counter:
        rows = torch.zeros(batch, channels, time + mamba.kernel - 1)
        torch.nn.functional.conv1d(rows, torch.zeros(channels, 1, mamba.kernel), groups=channels)
        for _ in range(time):
            torch.baddbmm(state, column, row)
            torch.bmm(state, row.transpose(1, 2))
    return counter.get_total_flops()


def test_published_parameter_count_of_nemotron_nano_9b_v2() -> None:
    """NVIDIA-Nemotron-Nano-9B-v2: 56 layers, of which 27 are Mamba-2, 25 FFN and 4 attention; 8,888,227,328 parameters."""
    mixers: dict[str, AttentionVariant] = {"M": Mamba(heads=128), "*": Attention(kv_heads=8), "-": NoOp()}
    pattern = "M-M-M-MM-M-M-M*-M-M-M*-M-M-M-M*-M-M-M-M*-M-MM-M-M-M-M-M-"
    blocks = tuple(Block(attention=mixers[kind], ffn=Ffn(width=15680) if kind == "-" else NoOp()) for kind in pattern)
    shape = DecoderShape(
        family="nemotron_h",
        vocab=131072,
        hidden=4480,
        heads=40,
        head_dim=128,
        tied=False,
        gated=False,
        mamba=MambaShape(head_dim=80, groups=8, state=128),
        arch=DecoderArch(blocks=blocks),
    )
    assert (len(blocks), pattern.count("M"), pattern.count("-"), pattern.count("*")) == (56, 27, 25, 4)
    assert count(shape, shape.arch, Workload()).params == 8_888_227_328


def test_uneven_mamba_heads_are_refused() -> None:
    shape = replace(LLAMA_1B, mamba=MambaShape(head_dim=4, groups=4, state=8))
    with pytest.raises(IllegalArch, match="6 Mamba heads cannot share 4 SSM groups"):
        attention_cost(shape, Mamba(heads=6), Workload())
    with pytest.raises(IllegalArch, match="no `mamba` sizes"):
        attention_cost(LLAMA_1B, Mamba(heads=6), Workload())
