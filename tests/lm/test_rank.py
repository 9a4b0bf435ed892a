"""Importances against sums taken from the family's own model."""

import pytest
import torch
from torch import nn

import tiny
from befit.lm.child import from_parent
from befit.lm.families import family_of
from befit.lm.rank import Ranking, rank


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
