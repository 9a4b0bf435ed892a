"""What must hold for every family of parents. A family joins by a line in `FAMILIES`; `tests/lm/test_families.py` runs the laws.

A law about a part that a family does not have is in `NOT_FOR`, with the reason.

The truth is always the family's own transformers class: as it is, or with weights edited so that it computes what a variant
should (a dropped neuron's column set to zero, pooled heads in a model that has fewer).

Shapes: B batch, T tokens, V vocabulary, H heads, G KV heads, d head_dim; Mamba-2: P channels of a head, N state.
"""

import copy
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any
from unittest import mock

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoConfig, AutoModelForCausalLM, StaticCache
from transformers.models.nemotron_h import modeling_nemotron_h

import tiny
from befit.arch.decoder import (
    Attention,
    AttentionVariant,
    Block,
    DecoderArch,
    DecoderShape,
    Ffn,
    FfnVariant,
    Linear,
    Mamba,
    NoOp,
    Variant,
)
from befit.cost.count import count
from befit.cost.workload import Workload
from befit.lm.child import MODELS, adopt, arch_of, build, config_for, from_parent
from befit.lm.families import family_of
from befit.lm.family import Family
from befit.lm.modeling_befit import BefitForCausalLM
from befit.lm.rank import rank
from befit.lm.slice import initial
from befit.lm.sort import sort

SOME_WINDOWS = {"use_sliding_window": True, "sliding_window": 6, "max_window_layers": 2}
LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 10000.0,
    "factor": 4.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}

HYBRID = {
    "layers_block_type": tiny.kinds("M-*M-M*-"),
    "head_dim": 8,
    "mamba_num_heads": 4,
    "mamba_head_dim": 8,
    "ssm_state_size": 8,
    "chunk_size": 8,
    "time_step_min": 1e-6,  # transformers' scan keeps every step above it, its single step does not
}

FAMILIES: dict[str, tuple[dict[str, Any], ...]] = {
    "llama": (
        {"tie_word_embeddings": True},
        {"head_dim": 12, "attention_bias": True, "mlp_bias": True, "num_key_value_heads": 4},
        {"rope_parameters": LLAMA3_ROPE},
    ),
    "mistral": ({"head_dim": 12, "sliding_window": 6}, {"sliding_window": None, "tie_word_embeddings": True}),
    "nemotron_h": (
        HYBRID | {"n_groups": 1, "mamba_head_dim": 12, "conv_kernel": 3},
        HYBRID
        | {"n_groups": 2, "mamba_num_heads": 8, "mamba_head_dim": 4, "use_conv_bias": False}
        | {"head_dim": 12, "num_key_value_heads": 4, "mlp_bias": True},
    ),
    "qwen2": (SOME_WINDOWS, {"tie_word_embeddings": True, "num_key_value_heads": 4}),
    "qwen3": ({"head_dim": 12, "attention_bias": True} | SOME_WINDOWS, {"tie_word_embeddings": True}),
}
"""transformers' model_type, and what its tiny configurations change in `COMMON`: every feature that the family has."""

COMMON = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 64,
    "max_position_embeddings": 128,
    "tie_word_embeddings": False,
    "bos_token_id": 1,
    "eos_token_id": None,
    "pad_token_id": 0,
}


@dataclass(frozen=True, kw_only=True)
class Case:
    """One tiny parent."""

    name: str
    model_type: str
    changes: dict[str, Any]

    def config(self, **more: Any) -> Any:
        values = COMMON | self.changes | more
        if "layers_block_type" in values:
            del values["num_hidden_layers"]
        return AutoConfig.for_model(self.model_type, **values)

    def original(self, **more: Any) -> Any:
        """The family's own model with random weights; norms differ from one, biases from zero."""
        model = AutoModelForCausalLM.from_config(self.config(**more)).eval()
        tiny.randomise(model)
        return model

    @property
    def family(self) -> Family:
        return family_of(self.config())

    @property
    def shape(self) -> DecoderShape:
        return self.family.describe(self.config())

    @property
    def rounding(self) -> float:
        """What another order of sums may change: a gated norm over few channels makes much of little."""
        return 1e-4 if self.family.single else 1e-5

    @property
    def own(self) -> Attention:
        """The parent's own attention in its second layer that has one."""
        return [b.attention for b in self.shape.arch.blocks if isinstance(b.attention, Attention)][1]

    def mixed(self) -> DecoderArch:
        """Every variant at once, with no attention in the first layer, where caches are often asked for their length."""
        narrow = Attention(kv_heads=1, window=5)
        if self.family.single:
            mamba = Mamba(heads=self.config().mamba_num_heads // 2)
            return layers_of(NoOp(), Ffn(width=32), narrow, mamba, NoOp(), Linear(), self.own, "linear FFN")
        return DecoderArch(
            blocks=(
                Block(attention=NoOp(), ffn=Ffn(width=32)),
                Block(attention=self.own, ffn=NoOp()),
                Block(attention=narrow, ffn=Linear()),
                Block(attention=Linear(), ffn=Ffn(width=64)),
            )
        )

    def windowed(self) -> DecoderArch:
        """Windows of different sizes beside the parent's own attention, the first of them windowed, one layer empty."""
        full, third, fifth = Ffn(width=64), Attention(kv_heads=1, window=3), Attention(kv_heads=2, window=5)
        if self.family.single:
            mamba = Mamba(heads=self.config().mamba_num_heads)
            return layers_of(mamba, full, third, Linear(), Ffn(width=32), mamba, fifth, NoOp())
        return DecoderArch(
            blocks=(
                Block(attention=third, ffn=full),
                Block(attention=self.own, ffn=full),
                Block(attention=NoOp(), ffn=NoOp()),
                Block(attention=fifth, ffn=Ffn(width=32)),
            )
        )

    def child(self, arch: DecoderArch) -> Any:
        """A child with random weights."""
        model = build(config_for(self.config(), arch), device="cpu")
        tiny.randomise(model)
        return model

    def cut(self, original: Any, arch: DecoderArch) -> BefitForCausalLM:
        """The child that has the training-free weights cut from a parent."""
        row = from_parent(original)
        named = {name: t for name, t in row.state_dict().items() if ".layers." not in name}
        for i, block in enumerate(arch.blocks):
            layer = dict(row.model.layers[i].state_dict())
            for kind, variant in (("attention", block.attention), ("ffn", block.ffn)):
                for name, tensor in initial(layer, variant, kind, self.shape, self.family).items():
                    named[f"model.layers.{i}.{name}"] = tensor
        model = build(config_for(row.config, arch))
        adopt(model, named)
        return model

    def everywhere(self, change: Variant, of: type[Variant]) -> DecoderArch:
        """The parent's architecture with every sub-block of one type changed."""
        blocks = (
            Block(
                attention=change if isinstance(b.attention, of) else b.attention,  # type: ignore[arg-type]
                ffn=change if isinstance(b.ffn, of) else b.ffn,  # type: ignore[arg-type]
            )
            for b in self.shape.arch.blocks
        )
        return DecoderArch(blocks=tuple(blocks))


def layers_of(*variants: AttentionVariant | FfnVariant | str) -> DecoderArch:
    """A hybrid: one variant a layer."""
    blocks = []
    for variant in variants:
        if isinstance(variant, str):
            blocks.append(Block(attention=NoOp(), ffn=Linear()))
        elif isinstance(variant, Ffn):
            blocks.append(Block(attention=NoOp(), ffn=variant))
        else:
            blocks.append(Block(attention=variant, ffn=NoOp()))
    return DecoderArch(blocks=tuple(blocks))


CASES = [
    Case(name=f"{model_type}-{i}", model_type=model_type, changes=changes)
    for model_type, alternatives in FAMILIES.items()
    for i, changes in enumerate(alternatives)
]

IDS = tiny.tokens(2, 17).clamp(min=3)
"""Tokens to try models on; none is the padding token, which `generate` would take for padding."""


@torch.no_grad()
def logits(model: Any, ids: Tensor = IDS, **more: Any) -> Tensor:
    return model(input_ids=ids, **more).logits


def close(a: Tensor, b: Tensor, atol: float = 1e-5) -> None:
    torch.testing.assert_close(a, b, rtol=0, atol=atol)


def parts(original: Any) -> Iterator[tuple[Any, Any, Any]]:
    """Attention, Mamba-2 and FFN of every layer of a family's own model, None where there is none."""
    for layer in original.model.layers:
        if isinstance(layer, modeling_nemotron_h.NemotronHBlock):
            known = ("NemotronHAttention", "NemotronHMamba2Mixer", "NemotronHMLP")
            attention, mamba, mlp = (layer.mixer if type(layer.mixer).__name__ == name else None for name in known)
            yield attention, mamba, mlp
        else:
            yield layer.self_attn, None, layer.mlp


def attentions(original: Any) -> Iterator[Any]:
    return (attention for attention, _, _ in parts(original) if attention is not None)


def mambas(original: Any) -> Iterator[Any]:
    return (mamba for _, mamba, _ in parts(original) if mamba is not None)


def ffns(original: Any) -> Iterator[Any]:
    return (mlp for _, _, mlp in parts(original) if mlp is not None)


def erase(*tensors: Tensor | None) -> None:
    for tensor in tensors:
        if tensor is not None:
            nn.init.zeros_(tensor)


# ------------------------------------------------------------------------------------------------------- the parent


def row_of_blocks_is_the_parent(case: Case) -> None:
    original = case.original()
    row = from_parent(original)
    for ids in (IDS, IDS[:, :1], tiny.tokens(1, 40)):
        close(logits(row, ids), logits(original, ids), atol=1e-6)
    padding = torch.ones_like(IDS)
    padding[0, :4] = 0
    theirs = logits(original, attention_mask=padding)
    close(logits(row, attention_mask=padding)[padding.bool()], theirs[padding.bool()], atol=1e-6)
    assert arch_of(row.config) == arch_of(original.config) == case.shape.arch
    mine = {name: tensor.data_ptr() for name, tensor in row.state_dict().items()}
    assert mine == {name: tensor.data_ptr() for name, tensor in original.state_dict().items()}


def sorting_keeps_the_function(case: Case) -> None:
    row, tokens = from_parent(case.original()), tiny.tokens(4, 16, seed=1)
    before = logits(row)
    sort(row, case.shape, case.family, rank(row, case.shape, case.family, tokens))
    close(logits(row), before, atol=1e-4)
    again = rank(row, case.shape, case.family, tokens)
    for i, block in enumerate(case.shape.arch.blocks):
        falling = [again.neurons[i]]
        if isinstance(block.attention, Attention):
            by_group = again.heads[i].view(block.attention.kv_heads, -1)
            falling += [by_group.sum(1), *by_group]
        if isinstance(block.attention, Mamba) and case.shape.mamba:
            falling += [*again.mamba_heads[i].view(case.shape.mamba.groups, -1)]
        for scores in falling:
            assert (scores.diff() <= 1e-5).all()


# ------------------------------------------------------------------------------------------------- first weights


def narrow_ffn_is_the_parent_without_the_last_neurons(case: Case) -> None:
    child = case.cut(case.original(), case.everywhere(Ffn(width=32), Ffn))
    truth = case.original()
    for mlp in ffns(truth):
        erase(mlp.down_proj.weight[:, 32:])
    close(logits(child), logits(truth))


def fewer_kv_heads_are_means_of_neighbours(case: Case) -> None:
    original, shape = case.original(), case.shape
    blocks = (
        Block(attention=Attention(kv_heads=1, window=b.attention.window), ffn=b.ffn)
        if isinstance(b.attention, Attention)
        else b
        for b in shape.arch.blocks
    )
    child = case.cut(original, DecoderArch(blocks=tuple(blocks)))
    truth = case.original(num_key_value_heads=1)
    named = original.state_dict()
    for name, tensor in truth.state_dict().items():
        theirs = named[name]
        if "k_proj" in name or "v_proj" in name:
            theirs = sum(theirs.split(shape.head_dim)) / case.own.kv_heads
        tensor.copy_(theirs)
    close(logits(child), logits(truth))


def fewer_mamba_heads_are_the_first_of_each_group(case: Case) -> None:
    """The family's own model with half the heads, filled row by row: in_proj has z, x, B, C and dt, the convolution x, B, C."""
    original, config = case.original(), case.config()
    heads, groups = config.mamba_num_heads, config.n_groups
    child = case.cut(original, case.everywhere(Mamba(heads=heads // 2), Mamba))
    truth = case.original(mamba_num_heads=heads // 2)
    kept = [h for h in range(heads) if h % (heads // groups) < heads // groups // 2]
    inner = [h * config.mamba_head_dim + c for h in kept for c in range(config.mamba_head_dim)]
    width, shared = heads * config.mamba_head_dim, 2 * groups * config.ssm_state_size
    convolved = inner + list(range(width, width + shared))
    rows = {
        "in_proj": inner + [width + r for r in convolved] + [2 * width + shared + h for h in kept],
        "conv1d": convolved,
        "mixer.norm": inner,
        **dict.fromkeys(("A_log", "mixer.D", "dt_bias"), kept),
    }
    named = original.state_dict()
    for name, tensor in truth.state_dict().items():
        theirs = named[name][:, inner] if "out_proj" in name else named[name]
        for part, wanted in rows.items():
            theirs = theirs[wanted] if part in name else theirs
        tensor.copy_(theirs)
    close(logits(child), logits(truth))


def narrow_window_is_a_mask(case: Case) -> None:
    original = case.original()
    child = case.cut(original, case.everywhere(Attention(kv_heads=case.own.kv_heads, window=3), Attention))
    t = torch.arange(IDS.shape[1])
    seen = (t[None] <= t[:, None]) & (t[None] > t[:, None] - 3)
    close(logits(child), logits(original, attention_mask=seen.expand(2, 1, -1, -1)))


def absent_sub_blocks_add_nothing(case: Case) -> None:
    """Layers without their mixer, without their FFN, without both; in a hybrid without each of its kinds."""
    original, own = case.original(), case.shape.arch.blocks
    mixerless, ffnless = ((0, 2), (4,)) if case.family.single else ((0, 2), (1, 2))
    blocks = (
        Block(attention=NoOp() if i in mixerless else b.attention, ffn=NoOp() if i in ffnless else b.ffn)
        for i, b in enumerate(own)
    )
    child = case.cut(original, DecoderArch(blocks=tuple(blocks)))
    for i, (attention, mamba, mlp) in enumerate(parts(original)):
        if i in mixerless and attention is not None:
            erase(attention.o_proj.weight, attention.o_proj.bias)
        if i in mixerless and mamba is not None:
            erase(mamba.out_proj.weight, mamba.out_proj.bias)
        if i in ffnless:
            erase(mlp.down_proj.weight, mlp.down_proj.bias)
    close(logits(child), logits(original))


def linear_attention_is_exact_for_one_token(case: Case) -> None:
    """A token that sees only itself gets W_O W_V of itself, whatever queries and keys are; biases have no place in it."""
    original = case.original()
    for attention in attentions(original):
        erase(attention.v_proj.bias, attention.o_proj.bias)
    child = case.cut(original, case.everywhere(Linear(), Attention))
    one = torch.arange(3, 30)[:, None]
    close(logits(child, one), logits(original, one), atol=5e-5)


def linear_mamba_is_the_skip_with_open_gates(case: Case) -> None:
    """The parent whose state nothing enters, whose convolution sees one token, and whose norm, gate and activation are open."""
    original, config = case.original(), case.config()
    width, state = config.mamba_num_heads * config.mamba_head_dim, config.n_groups * config.ssm_state_size
    child = case.cut(original, case.everywhere(Linear(), Mamba))
    for mamba in mambas(original):
        erase(mamba.in_proj.weight[2 * width : 2 * width + state], mamba.conv1d.weight[..., :-1], mamba.conv1d.bias)
        mamba.activation = None
        mamba.norm.forward = lambda x, gate, weight=mamba.norm.weight: weight * x
    close(logits(child), logits(original), atol=5e-5)


def linear_ffn_is_the_parent_with_open_gates(case: Case) -> None:
    original = case.original()
    for mlp in ffns(original):
        erase(mlp.up_proj.bias, mlp.down_proj.bias)
    child = case.cut(original, case.everywhere(Linear(), Ffn))
    for mlp in ffns(original):
        mlp.act_fn = OpenGate() if case.shape.gated else nn.Identity()
    close(logits(child), logits(original), atol=5e-5)


class OpenGate(nn.Module):
    """In place of the activation: every gate lets everything through."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.ones_like(x)


# ----------------------------------------------------------------------------------------- children at work


def cache_changes_nothing(case: Case) -> None:
    for arch in (case.mixed(), case.windowed()):
        child = case.child(arch)
        full = logits(child)
        close(logits(child, use_cache=False), full)
        for steps in ([1] * 17, [7, 1, 1, 8], [2, 15], [16, 1]):
            cache, got = None, []
            for ids in IDS.split(steps, dim=1):
                with torch.no_grad():
                    out = child(ids, past_key_values=cache, use_cache=True)
                cache = out.past_key_values
                got.append(out.logits)
            close(torch.cat(got, 1), full, atol=case.rounding)
            assert cache is not None and len(cache.layers) == sum(
                isinstance(b.attention, Attention | Mamba) for b in arch.blocks
            )


def generation_agrees_with_itself(case: Case) -> None:
    for arch in (case.mixed(), case.windowed()):
        child = case.child(arch)
        options: dict[str, Any] = {"max_new_tokens": 9, "do_sample": False}
        truth = IDS
        for _ in range(9):
            truth = torch.cat([truth, logits(child, truth, use_cache=False)[:, -1:].argmax(-1)], 1)
        padded = torch.cat([torch.zeros(2, 3, dtype=torch.long), IDS], 1)
        mask = torch.ones_like(padded)
        mask[:, :3] = 0
        assert torch.equal(child.generate(IDS, **options), truth)
        assert torch.equal(child.generate(IDS, use_cache=False, **options), truth)
        assert torch.equal(child.generate(padded, attention_mask=mask, **options)[:, 3:], truth)
        static = {"cache_implementation": "static", "disable_compile": True}
        assert torch.equal(child.generate(IDS, **static, **options), truth)
        assert torch.equal(child.generate(padded, attention_mask=mask, **static, **options)[:, 3:], truth)
        beams = child.generate(IDS, num_beams=3, use_cache=False, **options)
        assert torch.equal(child.generate(IDS, num_beams=3, **options), beams)


def padding_changes_nothing(case: Case) -> None:
    """Rows of different lengths in one batch, padded on the left or on the right, give what each gives alone."""
    child = case.child(case.mixed())
    for left in (True, False):
        mask = torch.ones_like(IDS)
        mask[1, slice(0, 5) if left else slice(-5, None)] = 0
        got = logits(child, attention_mask=mask)
        close(got[:1], logits(child, IDS[:1]))
        kept = mask[1].bool()
        close(got[1:, kept], logits(child, IDS[1:, kept]))
        assert got.isfinite().all()


def eager_equals_sdpa(case: Case) -> None:
    for arch in (case.mixed(), case.windowed()):
        child = case.child(arch)
        config = copy.deepcopy(child.config)
        config._attn_implementation = "eager"
        eager = type(child)(config).eval()
        eager.load_state_dict(child.state_dict())
        mask = torch.ones_like(IDS)
        mask[1, :4] = 0
        close(logits(eager), logits(child))
        close(logits(eager, attention_mask=mask)[mask.bool()], logits(child, attention_mask=mask)[mask.bool()])
        close(eager(IDS[:, :9], use_cache=True).logits, child(IDS[:, :9]).logits)


def children_train(case: Case) -> None:
    child = case.child(case.mixed())
    assert (child.lm_head.weight is child.model.embed_tokens.weight) == case.shape.tied
    plain = _gradients(child)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # Newer transformers call it activation checkpointing.
        child.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    assert plain.keys() == dict(child.named_parameters()).keys()
    for name, gradient in _gradients(child).items():
        close(gradient, plain[name])
    optimiser, losses = torch.optim.Adam(child.parameters(), lr=0.01), []
    for _ in range(5):
        loss = child(IDS, labels=IDS).loss
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] - 0.1
    assert (child.lm_head.weight is child.model.embed_tokens.weight) == case.shape.tied


def _gradients(model: BefitForCausalLM) -> dict[str, Tensor]:
    model.train().requires_grad_(True)
    model.zero_grad()
    # Asking for a cache here must not enter keys twice when layers are run again.
    model(IDS, labels=IDS, use_cache=True).loss.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


# ------------------------------------------------------------------------------------------------------- prices


def costs_are_those_of_the_module(case: Case) -> None:
    work = Workload(batch=2, prompt=9, generate=4, weights="fp32", cache="fp32")
    for arch in (case.shape.arch, case.mixed(), case.windowed()):
        cost = count(case.shape, arch, work)
        config = config_for(case.config(), arch)
        config._attn_implementation = "eager"
        model = MODELS[case.model_type](config).eval()
        tiny.randomise(model)
        assert cost.params == sum(p.numel() for p in model.parameters())
        assert cost.weight_bytes == sum(p.nbytes for p in model.parameters())
        ids = tiny.tokens(work.batch, work.prompt)
        truth = logits(model, ids, use_cache=False)
        with (
            mock.patch.object(modeling_nemotron_h, "mamba2_chunk_scan", recurrence),
            mock.patch.object(modeling_nemotron_h, "causal_conv1d_fn", convolution),
            FlopCounterMode(display=False) as counter,
        ):
            close(logits(model, ids, use_cache=False), truth, atol=case.rounding)
        assert cost.flops == counter.get_total_flops()
        cache = StaticCache(model.config, max_cache_len=work.context)
        logits(model, tiny.tokens(work.batch, work.context), past_key_values=cache)
        assert cost.cache_bytes == sum(_cached_bytes(layer) for layer in cache.layers)


def _cached_bytes(layer: Any) -> int:
    states = (
        (layer.conv_states[0], layer.recurrent_states[0])
        if hasattr(layer, "conv_states")
        else (layer.keys, layer.values)
    )
    return sum(state.nbytes for state in states)


def recurrence(x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, **options: Any) -> Tensor:
    """Mamba-2's scan token by token: x (b, T, H, P), dt (b, T, H), A (H,), B and C (b, T, groups, N) -> (b, T, H, P)."""
    batch, count, heads, channels = x.shape
    step = F.softplus(dt + options["dt_bias"])
    read, write = (m.repeat_interleave(heads // m.shape[2], 2) for m in (C, B))
    state, outputs = x.new_zeros(batch * heads, channels, B.shape[-1]), []
    for t in range(count):
        decay = (step[:, t] * A).exp().flatten()[:, None, None]
        scaled = (x[:, t] * step[:, t, :, None]).flatten(0, 1)
        state = state * decay + torch.bmm(scaled[:, :, None], write[:, t].flatten(0, 1)[:, None])
        y = torch.bmm(state, read[:, t].flatten(0, 1)[:, :, None]).view(batch, heads, channels)
        outputs.append(y + x[:, t] * options["D"][:, None])
    return torch.stack(outputs, 1)


def convolution(x: Tensor, weight: Tensor, bias: Tensor | None = None, **options: Any) -> Tensor:
    """The causal convolution of (b, channels, T), padded on the left alone, where transformers makes and drops a few more."""
    padded = F.pad(x, (weight.shape[-1] - 1, 0))
    return F.silu(F.conv1d(padded, weight[:, None], bias, groups=len(weight)))


# ------------------------------------------------------------------------------------------------- configuration


def configuration_tells_the_architecture(case: Case) -> None:
    for arch in (case.shape.arch, case.mixed(), case.windowed()):
        config = config_for(case.config(), arch)
        assert arch_of(config) == arch
        assert arch_of(config_for(config, case.mixed())) == case.mixed(), "a child's configuration can be refitted too"


def own_class_refuses_every_child(case: Case) -> None:
    """One changed layer is enough: read without befit's module, the configuration fails instead of building the parent."""
    own = case.shape.arch.blocks
    arches = []
    for i, block in first_of_each_kind(own):
        for changed in smaller(block, case):
            arches.append(DecoderArch(blocks=(*own[:i], changed, *own[i + 1 :])))
    window = Attention(kv_heads=case.own.kv_heads, window=3)
    for arch in (*arches, case.everywhere(window, Attention), case.everywhere(NoOp(), Ffn)):
        with pytest.raises((RuntimeError, AttributeError, ValueError), match="per-layer"):
            logits(AutoModelForCausalLM.from_config(config_for(case.config(), arch)))


def first_of_each_kind(blocks: tuple[Block, ...]) -> list[tuple[int, Block]]:
    """The layers of a dense network's beginning, or of each kind of a hybrid."""
    found = {(type(b.attention), type(b.ffn)): (i, b) for i, b in reversed(list(enumerate(blocks)))}
    return list(found.values())


def smaller(block: Block, case: Case) -> Iterator[Block]:
    """A layer with one sub-block changed, in every way."""
    window = Attention(kv_heads=case.own.kv_heads, window=3)
    mixers: dict[type, tuple[AttentionVariant, ...]] = {
        Attention: (Attention(kv_heads=1), window, Linear(), NoOp()),
        Mamba: (Mamba(heads=2), Linear(), NoOp()),
    }
    for mixer in mixers.get(type(block.attention), ()):
        yield Block(attention=mixer, ffn=block.ffn)
    if isinstance(block.ffn, Ffn):
        yield from (Block(attention=block.attention, ffn=f) for f in (Ffn(width=32), Linear(), NoOp()))


LAWS: tuple[Callable[[Case], None], ...] = (
    row_of_blocks_is_the_parent,
    sorting_keeps_the_function,
    narrow_ffn_is_the_parent_without_the_last_neurons,
    fewer_kv_heads_are_means_of_neighbours,
    fewer_mamba_heads_are_the_first_of_each_group,
    narrow_window_is_a_mask,
    absent_sub_blocks_add_nothing,
    linear_attention_is_exact_for_one_token,
    linear_mamba_is_the_skip_with_open_gates,
    linear_ffn_is_the_parent_with_open_gates,
    cache_changes_nothing,
    generation_agrees_with_itself,
    padding_changes_nothing,
    eager_equals_sdpa,
    children_train,
    costs_are_those_of_the_module,
    configuration_tells_the_architecture,
    own_class_refuses_every_child,
)
"""Each takes a case and fails by an assertion."""

DENSE = tuple(model_type for model_type in FAMILIES if model_type != tiny.HYBRID)
NOT_FOR: dict[Callable[[Case], None], tuple[tuple[str, ...], str]] = {
    fewer_mamba_heads_are_the_first_of_each_group: (DENSE, "no layer is Mamba-2"),
    linear_mamba_is_the_skip_with_open_gates: (DENSE, "no layer is Mamba-2"),
}
"""Laws that say nothing about some families, and why."""
