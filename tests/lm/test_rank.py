"""Importances against sums taken from the family's own model."""

from dataclasses import replace
from random import Random

import pytest
import torch
from safetensors.torch import load, save
from torch import nn

import members
import tiny
from befit.arch.member import whole
from befit.lm.child import from_parent
from befit.lm.families import family_of
from befit.lm.network import network_of
from befit.lm.rank import AxisRanking, Ranking, axis_scores, rank, rank_axes


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_importances_are_those_of_the_papers(family: str) -> None:
    original, tokens = tiny.original(family), tiny.tokens(5, 9)
    known = family_of(original.config)
    shape = known.describe(original.config)
    found = rank(from_parent(original), shape, known, tokens, batch=2)

    inputs: dict[nn.Module, torch.Tensor] = {}
    outputs: dict[nn.Module, torch.Tensor] = {}

    def keep(module: nn.Module, args: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
        inputs[module], outputs[module] = args[0].double(), output.double()

    watched = [m for n, m in original.named_modules() if n.endswith(("o_proj", "down_proj"))]
    for module in [*watched, *original.model.layers]:
        module.register_forward_hook(keep)
    with torch.no_grad():
        original(tokens)
    for i, layer in enumerate(original.model.layers):
        down = layer.mlp.down_proj
        for neuron in (0, 17, 47):
            column = down.weight[:, neuron].double().norm()
            assert found.neurons[i][neuron].item() == pytest.approx(
                (inputs[down][..., neuron].abs().mean() * column).item()
            )
        for head in range(shape.heads):
            own = inputs[layer.self_attn.o_proj][..., head * shape.head_dim : (head + 1) * shape.head_dim]
            assert found.heads[i][head].item() == pytest.approx(own.norm(dim=-1).mean().item())
        x, y = inputs[layer], outputs[layer]
        cosine = (x * y).sum(-1) / x.norm(dim=-1) / y.norm(dim=-1)
        assert found.influence[i] == pytest.approx((1 - cosine).mean().item(), rel=1e-4)


def test_hooks_are_gone_and_nothing_has_changed() -> None:
    model, tokens = tiny.parent(), tiny.tokens()
    known = family_of(model.config)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    rank(model, known.describe(tiny.config()), known, tokens)
    assert not any(module._forward_pre_hooks for module in model.modules())
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_through_a_file_and_back() -> None:
    ranking = Ranking(
        neurons=(torch.rand(6), torch.rand(6)), heads=(torch.rand(4), torch.rand(4)), influence=(0.25, 1 / 3)
    )
    back = Ranking.from_tensors(ranking.tensors())
    assert back.influence == ranking.influence
    for mine, theirs in zip(ranking.neurons + ranking.heads, back.neurons + back.heads, strict=True):
        assert torch.equal(mine, theirs)


def observed(model: nn.Module, tokens: torch.Tensor) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """Input and output (B, T, ...) of every part of a model, by its name, in fp64."""
    seen: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}

    def keep(name: str, args: tuple[torch.Tensor, ...], output: object) -> None:
        if args and isinstance(output, torch.Tensor):
            seen[name] = args[0].double(), output.double()

    handles = [
        part.register_forward_hook(lambda _, args, output, name=name: keep(name, args, output))
        for name, part in model.named_modules()
    ]
    with torch.no_grad():
        model(tokens)
    for handle in handles:
        handle.remove()
    return seen


def same(found: torch.Tensor, expected: torch.Tensor) -> None:
    torch.testing.assert_close(found.double(), expected.double(), rtol=1e-4, atol=1e-6)


def test_axes_of_a_hybrid() -> None:
    """Every sum again, from what transformers' own modules are given and give."""
    kinds = ["linear_attention", "mlp", "full_attention", "linear_attention"]
    sizes = {"n_groups": 2, "mamba_num_heads": 6, "mamba_head_dim": 5, "ssm_state_size": 4, "use_conv_bias": True}
    heads = {"num_attention_heads": 6, "num_key_value_heads": 2, "head_dim": 3}
    config = members.hybrid_config(Random(3), layers_block_type=kinds, **sizes, **heads)
    known, tokens = members.parent_of(config, 3), tiny.tokens(5, 9, config.vocab_size)
    found = rank_axes(known.net, known.weights, tokens, batch=2)
    seen = observed(known.model, tokens)
    same(found.hidden, sum(seen[f"model.layers.{i}.norm"][1].abs().mean((0, 1)) for i in range(4)))  # type: ignore[arg-type]
    same(found.ffn[1], seen["model.layers.1.mixer.up_proj"][1].abs().mean((0, 1)))
    handed = seen["model.layers.2.mixer.o_proj"][0].unflatten(-1, (2, 3, 3))
    same(found.query[2], handed.norm(dim=-1).mean((0, 1)))
    same(found.kv[2], handed.norm(dim=-1).sum(-1).mean((0, 1)))
    for layer in (0, 3):
        base = f"model.layers.{layer}.mixer"
        projected = seen[f"{base}.in_proj"][1]  # [z 30 | x 30 | B 8 | C 8 | dt 6]
        size = projected[..., 30:60].abs().mean((0, 1)).view(6, 5)
        channels = size.square().sum(0).sqrt()
        same(found.channels[layer], channels)
        best = channels.sort(descending=True).indices[:3]
        same(found.mamba_heads[layer].flatten(), size[:, best].square().sum(1).sqrt())
        conv = known.model.get_submodule(f"{base}.conv1d")
        rows = nn.functional.pad(projected[..., 30:76].transpose(1, 2), (config.conv_kernel - 1, 0))
        mixed = nn.functional.conv1d(rows, conv.weight.double(), conv.bias.double(), groups=46)
        b, c = nn.functional.silu(mixed)[:, 30:].transpose(1, 2).chunk(2, dim=-1)
        same(found.state[layer].flatten(), (b * c).abs().mean((0, 1)))
    lengths = {axis: [len(x) for x in getattr(found, axis)] for axis in ("ffn", "query", "mamba_heads", "state")}
    width = config.intermediate_size
    assert lengths == {
        "ffn": [0, width, 0, 0],
        "query": [0, 0, 2, 0],
        "mamba_heads": [2, 0, 0, 2],
        "state": [2, 0, 0, 2],
    }


def test_axes_of_a_dense_network() -> None:
    original, tokens = tiny.original("qwen3"), tiny.tokens(5, 9)
    known = family_of(original.config)
    found = rank_axes(network_of(original.config, known), original.state_dict(), tokens, batch=2)
    seen = observed(original, tokens)
    norms = [seen[f"model.layers.{i}.{name}"][1] for i in range(4) for name in (known.attention_norm, known.ffn_norm)]
    same(found.hidden, sum(norm.abs().mean((0, 1)) for norm in norms))  # type: ignore[arg-type]
    for i in range(4):
        same(found.ffn[i], seen[f"model.layers.{i}.mlp.gate_proj"][1].abs().mean((0, 1)))
        handed = seen[f"model.layers.{i}.self_attn.o_proj"][0].unflatten(-1, (2, 2, 12))
        same(found.query[i], handed.norm(dim=-1).mean((0, 1)))
    assert not any(len(x) for x in found.mamba_heads + found.channels + found.state)


def test_axes_through_a_file_and_back() -> None:
    config = members.hybrid_config(Random(0), layers_block_type=["mlp", "linear_attention", "full_attention"])
    known = members.parent_of(config)
    found = rank_axes(known.net, known.weights, tiny.tokens(2, 6, config.vocab_size))
    back = AxisRanking.from_tensors(load(save(found.tensors())))
    for name, tensor in found.tensors().items():
        assert torch.equal(back.tensors()[name], tensor)
    assert len(back.ffn) == len(back.state) == 3 and back.hidden.dtype == torch.float32


@pytest.mark.parametrize("hybrid", [True, False])
def test_axis_scores_are_divergences_of_extracted_members(hybrid: bool) -> None:
    kinds = ["linear_attention", "mlp", "full_attention", "mlp"]
    draw = Random(5)
    config = members.hybrid_config(draw, layers_block_type=kinds) if hybrid else tiny.config("qwen2")
    known, tokens = members.parent_of(config, 5), tiny.tokens(3, 7, config.vocab_size)
    most = whole(known.net.shape)
    options = {
        "hidden": [most, replace(most, hidden=most.hidden // 2)],
        "depth": [replace(most, layers=(0, 2, 3)), replace(most, layers=(2,))],
        "none": [],
    }
    found = axis_scores(known.net, known.weights, options, tokens, batch=2)
    with torch.no_grad():
        full = known.model(tokens).logits.double().log_softmax(-1)
        for axis, chosen in options.items():
            assert len(found[axis]) == len(chosen)
            for member, score in zip(chosen, found[axis], strict=True):
                plain = members.plain(config, member, members.by_index(config, member, known.weights))
                logs = plain(tokens).logits.double().log_softmax(-1)
                expected = (full.exp() * (full - logs)).sum(-1).mean().item()
                assert score == pytest.approx(expected, rel=1e-3, abs=1e-5)
    assert found["hidden"][0] == pytest.approx(0, abs=1e-6) and found["hidden"][1] > 0.01
